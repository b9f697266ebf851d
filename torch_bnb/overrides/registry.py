"""The hints of this process: which hold for a parameter, and who hears of new ones.

`GlobalOptimManager` gives hints here, checked; optimizers, plans and tables ask here. Hints themselves live on the
Parameters and Modules that they were given to (hints.py); the registry refers to optimizers and modules only, and
weakly. Its functions may be called from any thread.
"""

import threading
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import replace
from itertools import takewhile
from typing import Any, Protocol

from torch import Tensor, nn

from torch_bnb.overrides import hints, holders
from torch_bnb.overrides.hints import Hint, Identity, Level, ModuleHint
from torch_bnb.overrides.names import Key, find, names, own, spell
from torch_bnb.overrides.resolve import hints_through
from torch_bnb.overrides.spec import OverrideError, OverrideSpec, validate

Configs = Mapping[Key, Mapping[str, Any]]
"""From a name, pattern or module type to options, checked."""

Source = Callable[[Key], str]
"""What `explain` and errors call a hint, from its key."""


class Follower(Protocol):
    """What holds parameters and keeps hints given on them for whatever takes their place: an optimizer's slots."""

    def receive(self, parameter: Tensor, hint: Hint) -> None:
        """Called as soon as a hint is given on a Parameter object, whoever holds that."""

    def holds(self) -> Iterator[Identity]:
        """The identities of the parameters that it holds."""


_lock = threading.RLock()
_version = 0
_followers: "weakref.WeakSet[Follower]" = weakref.WeakSet()


def version() -> int:
    """Grows with every hint and registration: who has looked hints up at this version need not look again."""
    return _version


def follow(follower: Follower) -> None:
    """Lets a follower receive every hint that is given on a Parameter object, as long as the follower lives."""
    with _lock:
        _followers.add(follower)


def followers() -> list[Follower]:
    """All that live."""
    with _lock:
        return list(_followers)


def hints_for(params: Sequence[Tensor], carried: Mapping[int, Sequence[Hint]] | None = None) -> list[list[Hint]]:
    """Every hint in force, for each of an optimizer's parameters.

    Args:
        params: The parameters.
        carried: By index, hints that the optimizer has kept for this place, because they were given on a Parameter
            object that a framework has replaced since. A copied optimizer also keeps the original's hints through
            modules; those hold if no known module has the parameter.

    Raises:
        OverrideError: A hint of a module that has one of the parameters fits none.
    """
    with _lock:
        through_modules = hints_through(params)
        held: set[int] = set()
        if any(hint.level is not Level.PARAMETER for given in (carried or {}).values() for hint in given):
            held = {id(p) for module in hints.known_modules() for p in own(module).values()}
        result = []
        for index, parameter in enumerate(params):
            found = through_modules.get(id(parameter), [])
            given = [*(carried or {}).get(index, ()), *found, *hints.on_parameter(parameter)]
            others = [
                hint
                for hint in (found if id(parameter) in held else given)
                if hint.level is not Level.PARAMETER and hint.epoch >= hints.current_epoch()
            ]
            result.append([*others, *hints.last_said(hint for hint in given if hint.level is Level.PARAMETER)])
        return result


def named_hints(
    model: nn.Module, patterns: Mapping[Key, OverrideSpec] | None = None
) -> list[tuple[str, Tensor, list[Hint]]]:
    """(name, parameter, hints) for every parameter of a model; a tied one once, under its first name.

    Args:
        model: Any module, known or not.
        patterns: More hints, as for `GlobalOptimManager.override_named`, for this answer only.

    Raises:
        OverrideError: A hint or pattern fits no parameter, or an option of a pattern is unknown or impossible.
    """
    first: dict[int, tuple[str, Tensor]] = {}
    for name, parameter in names(model):
        first.setdefault(id(parameter), (name, parameter))
    given: dict[int, list[Hint]] = {}
    epoch = hints.current_epoch()
    for key, config in (patterns or {}).items():
        try:
            source = f"pattern {spell(key)}"
            hint = Hint(validate(config), Level.PATTERN, (hints.next_order(),), source, epoch)
            for parameter in {id(p): p for _, p in find(model, key)}.values():
                given.setdefault(id(parameter), []).append(hint)
        except (OverrideError, LookupError) as error:
            raise OverrideError(f"pattern {spell(key)}: {error}") from None
    found = hints_for([parameter for _, parameter in first.values()])
    return [
        (name, parameter, [*hints, *given.get(id(parameter), ())])
        for (name, parameter), hints in zip(first.values(), found, strict=True)
    ]


def parameter_names() -> dict[int, str]:
    """By ``id(parameter)``: its name in the largest known module that holds it."""
    with _lock:
        found: dict[int, str] = {}
        roots = [
            (len(named := names(module)), sum(len(name) for name, _ in named), named)
            for module in hints.noted_modules()
        ]
        for _, _, named in sorted(roots, key=lambda root: root[:2], reverse=True):  # a wrapper's names are longer
            for name, parameter in named:
                found.setdefault(id(parameter), name)
        return found


def registered_parameters() -> set[int]:
    """``id(parameter)`` of all that registered modules hold now."""
    with _lock:
        registered = (m for m in hints.noted_modules() if hints.note(m).embeddings_32bit is not None)
        return {id(parameter) for module in registered for parameter in module.parameters()}


def known_parameters(identities: Set[Identity]) -> list[Tensor]:
    """The parameters that known modules hold now and whose `identity` is one of these."""
    with _lock:
        held = {id(p): p for module in hints.known_modules() for p in own(module).values()}
    return [parameter for parameter in held.values() if hints.identity(parameter) in identities]


def forget() -> None:
    """Makes every hint given so far void, and every module unknown."""
    with _lock:
        hints.next_epoch()
        holders.forget()
        _changed()


def register(module: nn.Module, embeddings_32bit: bool | None) -> None:
    """Makes a module known; hints that were given on its Parameter objects then hold for their places in it.

    Args:
        module: The module.
        embeddings_32bit: Whether its embeddings keep 32-bit state by default. None: as an earlier call has it, else
            they do.
    """
    with _lock:
        notes = hints.note(module)
        if embeddings_32bit is not None:
            notes.embeddings_32bit, notes.embeddings_order = embeddings_32bit, hints.next_order()
        elif notes.embeddings_32bit is None:
            notes.embeddings_32bit = True
        holders.bind(holders.below(module))
        _changed()


def give(parameters: Sequence[Tensor], config: Mapping[str, Any], withdrawn: tuple[str, ...] = ()) -> None:
    """Gives each of these Parameter objects a hint, and tells the followers.

    Args:
        parameters: The objects.
        config: The options, checked.
        withdrawn: Options about which earlier hints on the objects no longer hold.
    """
    with _lock:
        following = followers()
        for parameter in parameters:
            hint = hints.add_on_parameter(parameter, config, withdrawn)
            for follower in following:
                follower.receive(parameter, hint)
        holders.bind(holders.of(parameters))
        _changed()


def give_through(module: nn.Module, configs: Configs, level: Level, source: Source, strict: bool) -> None:
    """Gives a module hints for the parameters that keys name below it, whichever objects have the names by then.

    Args:
        module: Where names are looked up.
        configs: The hints, one for each key.
        level: That of the hints.
        source: Names each of them.
        strict: Whether it is an error if a key names nothing when hints are looked up; else it is a warning.
    """
    with _lock:
        for key, config in configs.items():
            order, epoch = hints.next_order(), hints.current_epoch()
            hints.note(module).add(ModuleHint(key, config, level, order, source(key), epoch, strict))
        _changed()


def give_again(module: nn.Module, configs: Configs, source: Source, strict: bool, only: bool) -> None:
    """Gives a plugin's patterns, which it may have given before.

    As long as they are those of before, from the first one on, they keep their order among all hints. The first that is
    new or different, and all after it, are the latest hints.

    Args:
        module: Where names are looked up.
        configs: All the plugin's patterns.
        source: Names each of them, and tells them from others' hints.
        strict: As for `give_through`.
        only: Whether the plugin's other hints on the module are taken back.
    """
    with _lock:
        notes = hints.note(module)
        own_hints = [hint for hint in notes.hints if hint.source == source(hint.key)]
        same = [hint for hint in own_hints if configs.get(hint.key) == hint.config]
        as_before = takewhile(lambda pair: pair[0].key == pair[1], zip(same, configs, strict=False))
        kept = [hint for hint, _ in as_before]
        notes.hints = [
            replace(hint, must_match=strict) if hint in kept else hint
            for hint in notes.hints
            if hint in kept or not (only and hint in own_hints)
        ]
        rest = dict(list(configs.items())[len(kept) :])
        give_through(module, rest, Level.PATTERN, source, strict)


def _changed() -> None:
    """Lets every optimizer look hints up at its next step."""
    global _version
    _version += 1
