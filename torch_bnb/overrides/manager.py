"""The process-wide manager through which users say what single parameters should get."""

import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import replace
from itertools import chain, takewhile
from typing import Any

from torch import Tensor, nn

from torch_bnb.overrides import hints, targets
from torch_bnb.overrides.declare import declared
from torch_bnb.overrides.explain import Explanation, explain
from torch_bnb.overrides.hints import Hint, Level, ModuleHint
from torch_bnb.overrides.resolve import Key, check_overrides, find, hints_through, names, own, spell
from torch_bnb.overrides.spec import OverrideError, OverrideSpec, known_names, known_options, validate

Holder = tuple[nn.Module, str]
"""What holds a parameter: a module, and under which attribute."""

_Source = Callable[[Key], str]
"""What `explain` calls a hint, from its key."""


class GlobalOptimManager:
    """Overrides an optimizer's options for single parameters, at any time.

    There is one per process; `get_instance` returns it. A hint is kept on the Parameter or Module that it was given to,
    so it dies with it and reaches no other; the manager keeps nothing alive. An optimizer applies hints when it is
    built and again at the next step after any was written: a changed ``optim_bits`` then converts the live state,
    nothing is reset. All methods may be called from any thread.

    Precedence, weakest first: constructor default, parameter group, 32-bit embeddings, hints of outer modules, hints of
    inner modules, patterns, `override_config`; within one level the later one wins.

    Example:
        >>> import torch, torch_bnb as bnb
        >>> model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.Linear(64, 64))
        >>> manager = bnb.optim.GlobalOptimManager.get_instance()
        >>> manager.register_parameters(model.parameters())
        >>> optimizer = bnb.optim.Adam(model.parameters(), lr=0.001, optim_bits=8)
        >>> manager.override_config(model[0].weight, "optim_bits", 32)
        >>> biases = [model[0].bias, model[1].bias]
        >>> manager.override_config(biases, key_value_dict={"lr": 1e-4, "betas": (0.9, 0.98)})
    """

    _instance: "GlobalOptimManager | None" = None
    _lock = threading.RLock()

    version: int
    """Grows with every hint and registration: an optimizer that has seen it need not look again."""

    def __init__(self) -> None:
        raise RuntimeError("GlobalOptimManager is a singleton: call GlobalOptimManager.get_instance()")

    @classmethod
    def get_instance(cls) -> "GlobalOptimManager":
        """The process's manager."""
        with cls._lock:
            if cls._instance is None:
                cls._instance = super().__new__(cls)
                cls._instance.version = 0
                cls._instance._followers = weakref.WeakSet()
                cls._instance._holders = {}
        return cls._instance

    def __reduce__(self) -> tuple:
        """Copies and pickles as itself: there is one."""
        return GlobalOptimManager.get_instance, ()

    def initialize(self) -> None:
        """Forgets everything: hints on parameters and modules, and which modules are known. Class declarations stay."""
        with self._lock:
            hints.next_epoch()
            self._holders = {}
            self.version += 1

    def register_parameters(
        self, params: nn.Module | Tensor | Iterable[Any], embeddings_32bit: bool | None = None
    ) -> None:
        """Makes parameters known, usually while the model is still on the CPU.

        Args:
            params: A module, whose classes' ``optim_overrides`` then apply; or parameters, ``(name, parameter)`` pairs
                or parameter groups, which are checked. Registering again is harmless, so is an empty list.
            embeddings_32bit: For a module: ``nn.Embedding`` weights below it keep 32-bit state unless a hint or their
                group says otherwise. None: they do, unless somebody has said so of a module that holds them or is said
                later; of several words the last one holds.

        Raises:
            TypeError: Something else was given.
            OverrideError: A module declares an unknown option or an impossible value.
        """
        if not isinstance(params, nn.Module):
            targets.flatten(params, "register_parameters")
            return
        for module in params.modules():
            declared(module)
        with self._lock:
            notes = hints.note(params)
            if embeddings_32bit is not None:
                notes.embeddings_32bit, notes.embeddings_order = embeddings_32bit, hints.next_order()
            elif notes.embeddings_32bit is None:
                notes.embeddings_32bit = True
            self._bind((module, attribute) for module in params.modules() for attribute in own(module))
            self.version += 1

    def override_config(
        self,
        parameters: Tensor | Iterable[Tensor],
        key: str | None = None,
        value: Any = None,
        key_value_dict: OverrideSpec | None = None,
    ) -> None:
        """Sets options for one parameter or for several: the strongest kind of hint.

        Where a known module holds the parameter, the hint also holds for whatever takes its place there.

        Args:
            parameters: A parameter, or a list of them. Each keeps a copy of its own.
            key: One option's name, with `value`.
            value: Its value.
            key_value_dict: Several options at once; may stand beside `key`.

        Raises:
            OverrideError: Nothing to set, an unknown option (with the nearest spelling) or an impossible value.
            TypeError: `parameters` holds something that is no parameter.
        """
        if isinstance(key, Mapping) or (key_value_dict is not None and not isinstance(key_value_dict, Mapping)):
            raise OverrideError("override_config: several options go into key_value_dict={...}")
        config = validate({**(key_value_dict or {}), **({} if key is None else {key: value})})
        if not config:
            raise OverrideError("override_config: give a key and its value, or key_value_dict")
        self._say_of(targets.parameters(parameters, "override_config"), config)

    def forget_config(self, parameters: Tensor | Iterable[Tensor], *keys: str) -> None:
        """Takes back what `override_config` said of one parameter or of several; what modules and patterns say holds.

        Args:
            parameters: A parameter, or a list of them.
            *keys: The options; none: all.

        Raises:
            OverrideError: No parameters, or an unknown option (with the nearest spelling).
            TypeError: `parameters` holds something that is no parameter.

        Example:
            >>> import torch, torch_bnb as bnb
            >>> layer, manager = torch.nn.Linear(4, 4), bnb.optim.GlobalOptimManager.get_instance()
            >>> manager.override_config(layer.weight, key_value_dict={"lr": 0.5, "eps": 1e-6})
            >>> manager.forget_config(layer.weight, "lr")
            >>> manager.explain(layer)["weight"].overrides
            {'eps': 1e-06}
        """
        withdrawn = known_names(keys) if keys else tuple(known_options())
        self._say_of(targets.parameters(parameters, "forget_config"), {}, withdrawn)

    def register_module_override(self, module: nn.Module, param_name: Key, config: OverrideSpec) -> None:
        """Sets options for parameters of a module by name, whichever objects bear it when the optimizer steps.

        Args:
            module: Where to look; ``self`` in a module's ``__init__``.
            param_name: The module's own attribute (``"weight"``), else a dotted path (``"head.weight"``), else the last
                name of any number of parameters below it. Also a glob, ``"re:..."`` or a module type.
            config: The options.

        Raises:
            OverrideError: No parameter has that name, an unknown option, or an impossible value.
            TypeError: `module` is no ``nn.Module``.
        """
        caller = "register_module_override"
        source = f"{caller}({type(module).__name__}, {spell(param_name)})"
        checked = _checked(module, {param_name: config}, Level.MODULE, lambda _: source, caller, strict=True)
        self._add(module, checked, Level.MODULE, lambda _: source, strict=True)

    def override_named(
        self,
        model: nn.Module,
        patterns: Mapping[Key, OverrideSpec],
        strict: bool = True,
        source: str = "override_named",
    ) -> None:
        """Sets options for parameters of a model by patterns over their names. Stronger than what modules say.

        Args:
            model: The names' root.
            patterns: From a name, a glob (``"*.embed*.weight"``), ``"re:..."`` or a module type to options. All that
                match apply; of one option the later pattern's value holds.
            strict: A pattern that fits no parameter is an error: here if the model has parameters, and whenever an
                optimizer is built or its hints change. Else a warning then.
            source: How `explain` names these hints.

        Raises:
            OverrideError: A pattern fits no parameter, an unknown option, or an impossible value.
            TypeError: `model` is no ``nn.Module``.

        Example:
            >>> import torch, torch_bnb as bnb
            >>> model = torch.nn.ModuleDict({"embed": torch.nn.Embedding(9, 4), "norm": torch.nn.LayerNorm(4)})
            >>> manager = bnb.optim.GlobalOptimManager.get_instance()
            >>> hints = {"embed.*": {"optim_bits": 32}, torch.nn.LayerNorm: {"weight_decay": 0.0}}
            >>> manager.override_named(model, hints)
        """
        named = _sources(source)
        checked = _checked(model, patterns, Level.PATTERN, named, "override_named", strict)
        self._add(model, checked, Level.PATTERN, named, strict)

    def say_named(
        self, model: nn.Module, patterns: Mapping[Key, OverrideSpec], strict: bool, source: str, only: bool = False
    ) -> None:
        """`override_named` for a plugin, which says the same at several points of a set-up.

        What it has said before keeps its place among all words, up to the first pattern that is new: what others have
        said since then is still later.

        Args:
            model: The names' root.
            patterns: As for `override_named`.
            strict: As there.
            source: As there; tells the plugin's words from others'.
            only: Whatever else was said of the model under this source is taken back.

        Raises:
            OverrideError: As there.
            TypeError: As there.
        """
        named = _sources(source)
        checked = _checked(model, patterns, Level.PATTERN, named, "override_named", strict)
        with self._lock:
            notes = hints.note(model)
            mine = [hint for hint in notes.hints if hint.source == named(hint.key)]
            alike = [hint for hint in mine if checked.get(hint.key) == hint.config]
            known = [
                hint for hint, _ in takewhile(lambda pair: pair[0].key == pair[1], zip(alike, checked, strict=False))
            ]
            notes.hints = [
                replace(hint, must_match=strict) if hint in known else hint
                for hint in notes.hints
                if hint in known or not (only and hint in mine)
            ]
            rest = {key: checked[key] for key in list(checked)[len(known) :]}
            self._add(model, rest, Level.PATTERN, named, strict)

    def explain(self, model_or_optimizer: Any) -> Explanation:
        """Who gets what, and which hint said so: a table to print, rows to read, ``.to_dict()`` for programs.

        Args:
            model_or_optimizer: An optimizer of torch_bnb, whose wrappers of frameworks are looked through; or a
                module, whose rows show hints only.

        Raises:
            TypeError: Neither.
            OverrideError: A hint fits no parameter, or the optimizer's rule cannot honour it.
        """
        return explain(model_or_optimizer, self)

    def follow(self, follower: Any) -> None:
        """Lets ``follower.receive(parameter, hint)`` hear of every `override_config`, as long as it lives."""
        with self._lock:
            self._followers.add(follower)

    def followers(self) -> list[Any]:
        """Those that hear of it."""
        with self._lock:
            return list(self._followers)

    def hints_for(
        self, params: Sequence[Tensor], carried: Mapping[int, Sequence[Hint]] | None = None
    ) -> list[list[Hint]]:
        """Every hint in force, for each of an optimizer's parameters.

        Args:
            params: The parameters.
            carried: By index, hints given on a Parameter object that a framework has since replaced at this place. In a
                copy of an optimizer also hints through modules, which hold where no known module has the parameter.
        """
        with self._lock:
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
                result.append([*others, *hints.latest_words(hint for hint in given if hint.level is Level.PARAMETER)])
            return result

    def named_hints(
        self, model: nn.Module, patterns: Mapping[Key, OverrideSpec] | None = None
    ) -> list[tuple[str, Tensor, list[Hint]]]:
        """(name, parameter, hints) for every parameter of a model; a tied one once, under its first name.

        Args:
            model: Any module, known or not.
            patterns: More hints, as for `override_named`, for this answer only.

        Raises:
            OverrideError: A hint or pattern fits no parameter, or says something impossible.
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
        found = self.hints_for([parameter for _, parameter in first.values()])
        return [
            (name, parameter, [*hints, *given.get(id(parameter), ())])
            for (name, parameter), hints in zip(first.values(), found, strict=True)
        ]

    def idle_patterns(self, model: nn.Module, trained: Iterable[Tensor]) -> list[str]:
        """Says of every pattern of `override_named` that fits parameters, but none that trains, what it fits.

        Args:
            model: The names' root.
            trained: The parameters of all its optimizers.
        """
        held = set(map(id, trained))
        fits: dict[str, list[tuple[str, bool]]] = {}
        for name, parameter, given in self.named_hints(model):
            for source in (hint.source for hint in given if hint.level is Level.PATTERN):
                fits.setdefault(source, []).append((name, id(parameter) in held))
        said = []
        for source, found in fits.items():
            if not any(trains for _, trains in found):
                more = f" and {len(found) - 3} more" if len(found) > 3 else ""
                some = ", ".join(name for name, _ in found[:3])
                said.append(
                    f"{source} fits only {some}{more}, which no optimizer has: frozen, or left out of it; it will hold "
                    "once one has been given them"
                )
        return said

    def parameter_names(self) -> dict[int, str]:
        """By ``id(parameter)``: its name in the largest known module that holds it."""
        with self._lock:
            found: dict[int, str] = {}
            roots = [
                (len(named := names(module)), sum(len(name) for name, _ in named), named)
                for module in hints.noted_modules()
            ]
            for _, _, named in sorted(roots, key=lambda root: root[:2], reverse=True):  # a wrapper's names are longer
                for name, parameter in named:
                    found.setdefault(id(parameter), name)
            return found

    def known_parameters(self, identities: Set[tuple[int, int]]) -> list[Tensor]:
        """Those that known modules hold now and whose `identity` is one of these."""
        with self._lock:
            held = {id(p): p for module in hints.known_modules() for p in own(module).values()}
        return [parameter for parameter in held.values() if hints.identity(parameter) in identities]

    def _add(
        self, module: nn.Module, checked: Mapping[Key, dict[str, Any]], level: Level, source: _Source, strict: bool
    ) -> None:
        with self._lock:
            for key, config in checked.items():
                order, epoch = hints.next_order(), hints.current_epoch()
                hints.note(module).add(ModuleHint(key, config, level, order, source(key), epoch, strict))
            self.version += 1

    def _say_of(self, parameters: list[Tensor], config: dict[str, Any], withdrawn: tuple[str, ...] = ()) -> None:
        with self._lock:
            for parameter in parameters:
                hint = hints.add_on_parameter(parameter, config, withdrawn)
                for follower in list(self._followers):
                    follower.receive(parameter, hint)
            self._bind(self._holders_of(parameters))
            self.version += 1

    def _holders_of(self, parameters: list[Tensor]) -> Iterator[Holder]:
        """Where known modules hold these very parameters as their own."""
        found = list(map(self._known_holders, parameters))
        if not all(found):  # maybe modules were added or their parameters replaced since
            self._holders = {}
            for module in hints.known_modules():
                for attribute, held in own(module).items():
                    self._holders.setdefault(id(held), []).append((weakref.ref(module), attribute))
            found = list(map(self._known_holders, parameters))
        return chain.from_iterable(found)

    def _known_holders(self, parameter: Tensor) -> list[Holder]:
        noted = ((module(), attribute) for module, attribute in self._holders.get(id(parameter), ()))
        holders = [(module, attribute) for module, attribute in noted if module is not None]
        return [(module, attribute) for module, attribute in holders if module._parameters.get(attribute) is parameter]

    def _bind(self, holders: Iterable[Holder]) -> None:
        """Lets hints given on Parameter objects hold for the places that the objects are in."""
        bound: dict[nn.Module, list[ModuleHint]] = {}
        for module, attribute in holders:
            parameter = module._parameters[attribute]
            number = hints.identity(parameter)[1]
            for hint in hints.on_parameter(parameter):
                said = (hint.config, Level.PARAMETER, hint.rank[0], hint.source, hint.epoch)
                its = ModuleHint(attribute, *said, given_to=number, withdrawn=hint.withdrawn)
                bound.setdefault(module, []).append(its)
        for module, given in bound.items():
            note, again = hints.note(module), {(h.key, h.order, h.given_to) for h in given}
            note.hints = [h for h in note.hints if (h.key, h.order, h.given_to) not in again]
            note.add(*given)


def _sources(source: str) -> _Source:
    return lambda key: f"{source}({spell(key)})"


def _checked(
    module: Any, given: Mapping[Key, OverrideSpec], level: Level, source: _Source, caller: str, strict: bool
) -> dict[Key, dict[str, Any]]:
    """Patterns over a module's names, checked as far as that can be done now."""
    if not isinstance(module, nn.Module):
        raise TypeError(f"{caller}: expected an nn.Module, got {type(module).__name__}")
    checked = check_overrides(given, caller, source)
    if strict and (level is Level.MODULE or any(True for _ in module.parameters())):
        named = names(module)
        for key in checked:
            try:
                find(module, key, named)
            except (OverrideError, LookupError) as error:
                raise OverrideError(f"{source(key)}: {error}") from None
    return checked
