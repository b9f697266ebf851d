"""A hint, and where it lives: on the Parameter or the Module that it was given to.

Nothing here refers to a tensor: a hint dies with its owner, a new tensor at a freed address never meets it, and no weak
reference stands in the way of ``module.to()``, which refuses to swap a tensor that has one.
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
    withdrawn: tuple[str, ...] = ()
    """Options of which what the same voice has said before holds no more."""

    @property
    def speaks_of(self) -> set[str]:
        """The options that it sets or takes back."""
        return {*self.config, *self.withdrawn}


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
    given_to: int | None = None
    """For a hint given on a Parameter object: its number. The key is then an attribute of this very module."""
    withdrawn: tuple[str, ...] = ()
    """As in `Hint`."""

    @property
    def speaks_of(self) -> set[str]:
        """As in `Hint`."""
        return {*self.config, *self.withdrawn}


@dataclass
class Notes:
    """What a known module bears. Follows a deep copy of the module: the copy is then known too."""

    owner: "weakref.ref[nn.Module]"
    epoch: int
    hints: list[ModuleHint] = field(default_factory=list)
    embeddings_32bit: bool | None = None
    """Whether its embeddings get 32-bit state unless something else was said; None: it was not registered."""
    embeddings_order: int = 0
    """When that was said, in the order of hints; 0: nobody did, and it is the default."""

    def add(self, *given: ModuleHint) -> None:
        """Adds some; what the same voices said before about the same options is gone."""
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
"""In the order in which they became known, so that every process resolves hints alike."""
_lock = threading.RLock()
_numbers = itertools.count(1)
_order = 0
_epoch = 0
_PROCESS = uuid.uuid4().hex
"""Tells hints that were pickled by another process, whose epochs and orders are its own. A fork goes on with both."""


def current_epoch() -> int:
    """Hints of earlier epochs are forgotten."""
    return _epoch


def next_epoch() -> None:
    """Forgets every hint given so far, and which modules are known."""
    global _epoch
    with _lock:
        _epoch += 1


def next_order(at_least: int = 0) -> int:
    """A number greater than every hint's so far."""
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
    """Each one's address, and its `identity` or None where that has not been asked for."""
    return list(map(id, parameters)), [parameter.__dict__.get(_IDENTITY) for parameter in parameters]


def inherited(hint: ModuleHint) -> ModuleHint:
    """A hint in a copy of its module: what was given to a Parameter object holds for whatever is in that place."""
    return hint if hint.given_to is None else replace(hint, given_to=0)  # no object has this number


def taken_over(given: Iterable[Hint]) -> list[Hint]:
    """Hints of what was copied or unpickled, maybe from another process: in force now, and weaker than later ones."""
    given = [replace(hint, epoch=_epoch) for hint in given]
    next_order(1 + max((hint.rank[-1] for hint in given), default=0))
    return given


def superseded(given: Iterable[Any], by: Iterable[Any], voice: Any) -> list[Any]:
    """`given` without the options that one in `by`, of the same voice, speaks of."""
    later: dict[Any, set[str]] = {}
    for hint in by:
        later.setdefault(voice(hint), set()).update(hint.speaks_of)
    kept = []
    for hint in given:
        if said := later.get(voice(hint)):
            config = {key: value for key, value in hint.config.items() if key not in said}
            hint = replace(hint, config=config, withdrawn=tuple(key for key in hint.withdrawn if key not in said))
        if hint.speaks_of:
            kept.append(hint)
    return kept


def latest_words(given: Iterable[Hint]) -> list[Hint]:
    """Of hints of one voice, what was said last about every option; the forgotten left out."""
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
    """The hints given on this very tensor, in the order of writing."""
    stored = getattr(parameter, _ON_PARAMETER, None)
    if stored is None:
        return []
    given = [Hint(level=Level.PARAMETER, **hint) for hint in stored["hints"]]
    if stored["process"] != _PROCESS:
        given = taken_over(given)
        _keep(parameter, given)
    return [hint for hint in given if hint.epoch >= _epoch]


def _keep(parameter: Tensor, given: Iterable[Hint]) -> None:
    """Keeps hints on a tensor, as plain data, so that it pickles as before."""
    plain = [{key: value for key, value in vars(hint).items() if key != "level"} for hint in given]
    setattr(parameter, _ON_PARAMETER, {"process": _PROCESS, "hints": plain})


def add_on_parameter(parameter: Tensor, config: Mapping[str, Any], withdrawn: tuple[str, ...] = ()) -> Hint:
    """Adds one and returns it."""
    earlier = on_parameter(parameter)
    order = next_order(1 + max((hint.rank[0] for hint in earlier), default=0))
    hint = Hint(dict(config), Level.PARAMETER, (order,), "override_config", _epoch, withdrawn)
    _keep(parameter, [*superseded(earlier, [hint], lambda h: h.level), hint])
    return hint


def notes(module: nn.Module) -> Notes | None:
    """What this very module bears."""
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
    """The modules that bear notes."""
    with _lock:
        return [module for module in _known if notes(module) is not None]


def known_modules() -> Iterator[nn.Module]:
    """The modules that bear notes and all modules below them, each once."""
    yield from {id(module): module for root in noted_modules() for module in root.modules()}.values()
