"""A hint, and where it lives: on the Parameter or the Module that it was given to.

Nothing here refers to a tensor: a hint dies with its owner, a new tensor at a freed address never meets it, and no weak
reference stands in the way of ``module.to()``, which refuses to swap a tensor that has one.

A hint says something of every option in it: a value, or that an earlier value is withdrawn. Hints of one *voice*
replace each other: what the voice said last of an option holds, what it said of it before is dropped. One voice are all
hints given on one Parameter object, and on those whose place it has taken; and, among the hints given to one module,
those with the same key, level and source. Between voices level and rank decide (resolve.py).
"""

import itertools
import threading
import uuid
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import IntEnum
from typing import Any

from torch import Tensor, nn

_ON_PARAMETER = "_torch_bnb_hints"
_ON_MODULE = "_torch_bnb_notes"
_IDENTITY = "_torch_bnb_identity"

Identity = tuple[int, int]
"""Tells Parameter objects apart: an address, and a number that no other object ever has. See `identity`."""


class Level(IntEnum):
    """How strong hints are, by how they were given; the weakest first."""

    EMBEDDING = 0
    """The 32-bit default for embeddings of registered modules."""
    MODULE = 1
    """``optim_overrides`` of a class or an instance, and `register_module_override`."""
    PATTERN = 2
    """`override_named`, and the patterns that users give to a plugin."""
    PARAMETER = 3
    """`override_config` and `forget_config`: hints given on Parameter objects."""


@dataclass(frozen=True)
class Hint:
    """What one voice says of one parameter."""

    config: Mapping[str, Any]
    level: Level
    rank: tuple[int, ...]
    """Of two hints of one level the one with the greater rank wins. The last number is the order of giving; before it
    stands, for MODULE, how near the module is to the parameter."""
    source: str
    """Who gave it, in words for tables and errors: ``override_named('*.weight')``."""
    epoch: int
    """The epoch in which it was given: `GlobalOptimManager.initialize` begins a new one and voids earlier hints."""
    withdrawn: tuple[str, ...] = ()
    """Options whose earlier values, set by the same voice, hold no longer; `forget_config` gives such hints."""

    @property
    def speaks_of(self) -> set[str]:
        """The options that it sets or withdraws."""
        return {*self.config, *self.withdrawn}


@dataclass(frozen=True)
class ModuleHint:
    """What one voice says of the parameters below a module that have the name `key` when hints are looked up."""

    key: str | type[nn.Module]
    config: Mapping[str, Any]
    level: Level
    order: int
    """Its place in the order in which hints were given."""
    source: str
    """As in `Hint`."""
    epoch: int
    """As in `Hint`."""
    must_match: bool = True
    """Whether it is an error if no parameter has the name when hints are looked up; else a warning."""
    given_to: int | None = None
    """In the copy of a hint that was given on a Parameter object: the object's number (see `Identity`). The key is then
    the attribute under which this very module held the object."""
    withdrawn: tuple[str, ...] = ()
    """As in `Hint`."""

    @property
    def speaks_of(self) -> set[str]:
        """As in `Hint`."""
        return {*self.config, *self.withdrawn}


@dataclass
class Notes:
    """A known module's hints, kept in an attribute of the module. A deep copy of the module is known, too."""

    owner: "weakref.ref[nn.Module]"
    epoch: int
    hints: list[ModuleHint] = field(default_factory=list)
    embeddings_32bit: bool | None = None
    """Whether its embeddings keep 32-bit state by default; None: the module was not registered."""
    embeddings_order: int = 0
    """The place of that choice in the order of hints; 0: it is the default, no caller chose."""

    def add(self, *given: ModuleHint) -> None:
        """Adds hints and drops what they replace."""
        self.hints = [*superseded(self.hints, given, lambda h: (h.key, h.level, h.given_to, h.source)), *given]

    def __deepcopy__(self, memo: dict[int, Any]) -> "Notes | None":
        owner = memo.get(id(self.owner()))
        if owner is None:
            return None
        with _lock:
            _known.setdefault(owner)
        return replace(self, owner=weakref.ref(owner), hints=list(map(inherited, self.hints)))

    def __reduce__(self) -> tuple:
        """Pickles as plain data, so that whoever loads the module needs no torch_bnb."""
        hints = [{**vars(hint), "level": int(hint.level)} for hint in map(inherited, self.hints)]
        embeddings = self.embeddings_32bit, self.embeddings_order
        return dict, ({"hints": hints, "embeddings": embeddings},)


_known: "weakref.WeakKeyDictionary[nn.Module, None]" = weakref.WeakKeyDictionary()
"""The modules with notes, in the order in which they became known, so that every process resolves hints alike."""
_lock = threading.RLock()
_numbers = itertools.count(1)
_order = 0
_epoch = 0
_PROCESS = uuid.uuid4().hex
"""Kept with hints on Parameters, because their epochs and orders mean nothing in another process that unpickles them. A
forked process has its parent's, and goes on with the parent's epochs and orders."""


def current_epoch() -> int:
    """The number of the epoch; hints of earlier ones are void."""
    return _epoch


def next_epoch() -> None:
    """Voids every hint given so far, and makes every module unknown."""
    global _epoch
    with _lock:
        _epoch += 1


def next_order(at_least: int = 0) -> int:
    """A number greater than the order of every hint so far, and no less than `at_least`."""
    global _order
    with _lock:
        _order = max(_order + 1, at_least)
        return _order


def identity(parameter: Tensor) -> Identity:
    """Tells one Parameter object from every other, also from a later one at its address, without referring to it."""
    known = parameter.__dict__.get(_IDENTITY)
    if known is None or known[0] != id(parameter):  # attributes follow a tensor through pickle, and into copies
        known = parameter.__dict__[_IDENTITY] = id(parameter), next(_numbers)
    return known


def identities(parameters: Sequence[Tensor]) -> tuple[list[int], list[Identity | None]]:
    """Each one's address, and its `identity` or None where nobody has asked for it: cheap enough for every step."""
    return list(map(id, parameters)), [parameter.__dict__.get(_IDENTITY) for parameter in parameters]


def inherited(hint: ModuleHint) -> ModuleHint:
    """A module's hint as a copy of the module gets it.

    A hint given on a Parameter object holds, in the copy, for whatever parameter is in the object's place.
    """
    return hint if hint.given_to is None else replace(hint, given_to=0)  # no object has this number


def taken_over(given: Iterable[Hint]) -> list[Hint]:
    """Hints that came with a copy or a pickle, maybe from another process, as hints of this epoch.

    Hints that are given from now on rank above them.
    """
    given = [replace(hint, epoch=_epoch) for hint in given]
    next_order(1 + max((hint.rank[-1] for hint in given), default=0))
    return given


def superseded(given: Iterable[Any], by: Iterable[Any], voice: Any) -> list[Any]:
    """Hints without what later ones of the same voice replace.

    Args:
        given: The earlier hints.
        by: The later ones.
        voice: From a hint to its voice.
    """
    later: dict[Any, set[str]] = {}
    for hint in by:
        later.setdefault(voice(hint), set()).update(hint.speaks_of)
    kept = []
    for hint in given:
        if replaced := later.get(voice(hint)):
            config = {key: value for key, value in hint.config.items() if key not in replaced}
            hint = replace(hint, config=config, withdrawn=tuple(key for key in hint.withdrawn if key not in replaced))
        if hint.speaks_of:
            kept.append(hint)
    return kept


def last_said(given: Iterable[Hint]) -> list[Hint]:
    """Of one voice's hints those that hold, each with only the options of which it was the last to say something."""
    kept: list[Hint] = []
    said: set[str] = set()
    for hint in sorted(given, key=lambda hint: hint.rank, reverse=True):
        if hint.epoch < _epoch:
            continue
        if new := {key: value for key, value in hint.config.items() if key not in said}:
            kept.append(replace(hint, config=new))
        said |= hint.speaks_of
    return kept


def on_parameter(parameter: Tensor) -> list[Hint]:
    """The hints given on this very tensor, in the order of giving."""
    stored = getattr(parameter, _ON_PARAMETER, None)
    if stored is None:
        return []
    given = [Hint(level=Level.PARAMETER, **hint) for hint in stored["hints"]]
    if stored["process"] != _PROCESS:
        given = taken_over(given)
        _keep(parameter, given)
    return [hint for hint in given if hint.epoch >= _epoch]


def _keep(parameter: Tensor, given: Iterable[Hint]) -> None:
    """Keeps hints on a tensor, as plain data: whoever loads the pickled tensor needs no torch_bnb."""
    plain = [{key: value for key, value in vars(hint).items() if key != "level"} for hint in given]
    setattr(parameter, _ON_PARAMETER, {"process": _PROCESS, "hints": plain})


def add_on_parameter(parameter: Tensor, config: Mapping[str, Any], withdrawn: tuple[str, ...] = ()) -> Hint:
    """Gives a Parameter object a hint and returns the hint."""
    earlier = on_parameter(parameter)
    order = next_order(1 + max((hint.rank[0] for hint in earlier), default=0))
    hint = Hint(dict(config), Level.PARAMETER, (order,), "override_config", _epoch, withdrawn)
    _keep(parameter, [*superseded(earlier, [hint], lambda h: h.level), hint])
    return hint


def notes(module: nn.Module) -> Notes | None:
    """The notes of this very module; None if it is not known."""
    found = vars(module).get(_ON_MODULE)
    if isinstance(found, dict):  # unpickled, maybe from another process
        hints = [ModuleHint(**{**hint, "level": Level(hint["level"]), "epoch": _epoch}) for hint in found["hints"]]
        embeddings = found["embeddings"]
        next_order(1 + max((*(hint.order for hint in hints), embeddings[1])))
        found = vars(module)[_ON_MODULE] = Notes(weakref.ref(module), _epoch, hints, *embeddings)
    return found if found is not None and found.epoch >= _epoch else None


def note(module: nn.Module) -> Notes:
    """Makes a module known and returns its notes."""
    with _lock:
        found = notes(module)
        if found is None:
            found = vars(module)[_ON_MODULE] = Notes(weakref.ref(module), _epoch)
        _known.setdefault(module)
        return found


def noted_modules() -> list[nn.Module]:
    """The modules that have notes."""
    with _lock:
        return [module for module in _known if notes(module) is not None]


def known_modules() -> Iterator[nn.Module]:
    """The modules that have notes and all modules below them, each once."""
    yield from {id(module): module for root in noted_modules() for module in root.modules()}.values()
