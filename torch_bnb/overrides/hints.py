"""A hint, and where it lives: on the Parameter or the Module that it was given to.

Nothing here refers to a tensor: a hint dies with its owner, a new tensor at a freed address never meets it, and no weak
reference stands in the way of ``module.to()``, which refuses to swap a tensor that has one.
"""

import weakref
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from enum import IntEnum
from typing import Any

from torch import Tensor, nn

_ON_PARAMETER = "_torch_bnb_hints"
_ON_MODULE = "_torch_bnb_notes"

HISTORY = 16
"""Hints of one level that are kept apart for one parameter or name."""


class Level(IntEnum):
    """Who speaks, from the weakest to the strongest."""

    EMBEDDING = 0
    """The default for embeddings of known modules."""
    MODULE = 1
    """A module, by its class or by `register_module_override`."""
    PATTERN = 2
    """Patterns over a model's names: the user of a plugin."""
    PARAMETER = 3
    """`override_config`."""


@dataclass(frozen=True)
class Hint:
    """One wish for one parameter."""

    config: Mapping[str, Any]
    level: Level
    rank: tuple[int, ...]
    """Among hints of one level the greater rank wins: nearness of the module, then the order of writing."""
    source: str
    """Where it comes from, for people."""
    epoch: int
    """`GlobalOptimManager.initialize` starts a new one and forgets the hints of those before."""


@dataclass(frozen=True)
class ModuleHint:
    """One wish for the parameters that `key` names below a module, whichever objects they are by then."""

    key: str | type[nn.Module]
    config: Mapping[str, Any]
    level: Level
    order: int
    source: str
    epoch: int
    must_match: bool = True
    """Whether it is an error if nothing bears the name."""


@dataclass
class Notes:
    """What a known module bears. Follows a deep copy of the module: the copy is then known too."""

    owner: "weakref.ref[nn.Module]"
    epoch: int
    hints: list[ModuleHint] = field(default_factory=list)
    embeddings_32bit: bool | None = None
    """Whether its embeddings get 32-bit state unless something else was said; None: it was never registered."""

    def add(self, hint: ModuleHint) -> None:
        """Adds one, in place of one of the same order, and keeps what was said of the same name within bounds."""
        same = [h for h in self.hints if (h.key, h.level) == (hint.key, hint.level) and h.order != hint.order]
        others = [h for h in self.hints if (h.key, h.level) != (hint.key, hint.level)]
        self.hints = others + melt(sorted([*same, hint], key=lambda h: h.order))

    def __deepcopy__(self, memo: dict[int, Any]) -> "Notes | None":
        owner = memo.get(id(self.owner()))
        if owner is None:
            return None
        _known.add(owner)
        return replace(self, owner=weakref.ref(owner), hints=list(self.hints))

    def __reduce__(self) -> tuple:
        """Pickles as plain data, so that whoever loads the module needs no torch_bnb."""
        hints = [{**vars(hint), "level": int(hint.level)} for hint in self.hints]
        return dict, ({"epoch": self.epoch, "hints": hints, "embeddings": self.embeddings_32bit},)


_known: "weakref.WeakSet[nn.Module]" = weakref.WeakSet()


def melt(given: list[Any]) -> list[Any]:
    """The same wishes in at most `HISTORY` hints: the oldest become one. For programs that override in a loop."""
    while len(given) > HISTORY:
        older, newer, *rest = given
        given = [replace(newer, config={**older.config, **newer.config}), *rest]
    return given


def on_parameter(parameter: Tensor) -> list[Hint]:
    """The hints given on this very tensor, in the order of writing."""
    return [Hint(level=Level.PARAMETER, **stored) for stored in getattr(parameter, _ON_PARAMETER, ())]


def add_on_parameter(parameter: Tensor, config: Mapping[str, Any], order: int, epoch: int) -> None:
    """Adds one. Plain data, so that the tensor pickles as before."""
    hint = Hint(dict(config), Level.PARAMETER, (order,), "override_config", epoch)
    kept = melt([h for h in on_parameter(parameter) if h.epoch >= epoch] + [hint])
    setattr(parameter, _ON_PARAMETER, [{k: v for k, v in vars(h).items() if k != "level"} for h in kept])


def notes(module: nn.Module) -> Notes | None:
    """What this very module bears."""
    found = vars(module).get(_ON_MODULE)
    if isinstance(found, dict):  # unpickled
        hints = [ModuleHint(**{**hint, "level": Level(hint["level"])}) for hint in found["hints"]]
        found = vars(module)[_ON_MODULE] = Notes(weakref.ref(module), found["epoch"], hints, found["embeddings"])
    return found


def note(module: nn.Module, epoch: int) -> Notes:
    """Makes a module known and returns its notes; those of an earlier epoch are gone."""
    found = notes(module)
    if found is None or found.epoch < epoch:
        found = vars(module)[_ON_MODULE] = Notes(weakref.ref(module), epoch)
    _known.add(module)
    return found


def noted_modules(epoch: int) -> list[nn.Module]:
    """The modules that bear notes."""
    return [module for module in _known if (found := notes(module)) is not None and found.epoch >= epoch]


def known_modules(epoch: int) -> Iterator[nn.Module]:
    """The modules that bear notes and all modules below them, each once."""
    yield from {id(module): module for root in noted_modules(epoch) for module in root.modules()}.values()


def owners(modules: Iterable[nn.Module]) -> dict[int, list[nn.Module]]:
    """By ``id(parameter)``: the modules that hold it as their own attribute."""
    found: dict[int, list[nn.Module]] = {}
    for module in modules:
        for parameter in module._parameters.values():
            found.setdefault(id(parameter), []).append(module)
    return found
