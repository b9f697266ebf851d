"""From hints to one parameter: which reach it, through its modules or on itself, and what they add up to."""

import functools
import warnings
from collections.abc import Callable, Iterable, Sequence, Set
from itertools import chain
from typing import Any

from torch import Tensor, nn

from torch_bnb.overrides import hints
from torch_bnb.overrides.declare import declared
from torch_bnb.overrides.hints import Hint, Level, ModuleHint
from torch_bnb.overrides.names import Called, called, find, own
from torch_bnb.overrides.spec import OverrideError

Alive = Callable[[], Set[int]]
"""The numbers of the Parameter objects (see `hints.Identity`) that the optimizer or a known module holds."""

EMBEDDING_CONFIG = {"optim_bits": 32}


def hints_through(params: Iterable[Tensor]) -> dict[int, list[Hint]]:
    """Every hint that reaches one of `params` through a known module, by ``id(parameter)``.

    Args:
        params: The parameters of one optimizer. Hints of modules that have none of them are not looked at: they are
            meant for another optimizer.

    Raises:
        OverrideError: A hint of a module that has some of them fits no parameter.
    """
    params = list(params)
    wanted = {id(parameter) for parameter in params}
    modules = list(hints.known_modules())
    alive = functools.cache(lambda: {hints.identity(p)[1] for p in chain(params, *(own(m).values() for m in modules))})
    reached: dict[int, dict[tuple, Hint]] = {}
    for module in _holding(wanted, modules):
        given = _hints_of(module)
        if not given:
            continue
        named = called(module)
        for place, hint in enumerate(given):
            for name, parameter in _targets(module, hint, named, alive):
                if id(parameter) not in wanted:
                    continue
                near = (-name.count("."),) if hint.level is Level.MODULE else ()
                found = Hint(hint.config, hint.level, (*near, hint.order), hint.source, hint.epoch, hint.withdrawn)
                # One hint counts once, though it may reach a tied parameter by several names, and though one given on
                # a Parameter object has a copy in every module that held the object.
                origin = (id(module), place) if hint.given_to is None else (hint.order,)
                known = reached.setdefault(id(parameter), {})
                if origin not in known or known[origin].rank < found.rank:
                    known[origin] = found
    return {parameter: _with_one_default(found.values()) for parameter, found in reached.items()}


def _holding(wanted: Set[int], modules: Sequence[nn.Module]) -> list[nn.Module]:
    """Those of the modules that have a parameter whose ``id()`` is wanted, their own or in a module below them."""
    parents: dict[int, list[nn.Module]] = {}
    for module in modules:
        for child in module._modules.values():
            parents.setdefault(id(child), []).append(module)
    found: set[int] = set()
    waiting = [module for module in modules if any(id(p) in wanted for p in module._parameters.values())]
    while waiting:
        module = waiting.pop()
        if id(module) not in found:
            found.add(id(module))
            waiting += parents.get(id(module), ())
    return [module for module in modules if id(module) in found]


def _with_one_default(found: Iterable[Hint]) -> list[Hint]:
    """Hints for one parameter with at most one EMBEDDING hint.

    Several registered modules may hold an embedding; the choice that was made last holds. If it was
    ``embeddings_32bit=False``, an empty hint, none is left.
    """
    defaults = [hint for hint in found if hint.level is Level.EMBEDDING]
    last = max(defaults, key=lambda hint: hint.rank, default=None)
    return [hint for hint in found if hint.level is not Level.EMBEDDING or (hint is last and hint.config)]


def merge(given: Iterable[Hint]) -> dict[str, Any]:
    """What hints for one parameter add up to: of every option the strongest hint's value."""
    return {option: hint.config[option] for option, hint in winners(given).items()}


def winners(given: Iterable[Hint]) -> dict[str, Hint]:
    """By option, the strongest of the hints for one parameter."""
    return {option: hint for hint in by_strength(given) for option in hint.config}


def by_strength(given: Iterable[Hint]) -> list[Hint]:
    """The hints, the weakest first."""
    return sorted(given, key=lambda hint: (hint.level, hint.rank))


def _targets(module: nn.Module, hint: ModuleHint, named: list[Called], alive: Alive) -> list[tuple[str, Tensor]]:
    """The (name, parameter) pairs that a module's hint reaches today."""
    if hint.given_to is not None:
        return _in_place(hint, named, alive)
    try:
        return find(module, hint.key, named)
    except LookupError as error:
        if hint.must_match:
            raise OverrideError(f"{hint.source}: {error}") from None
        warnings.warn(f"{hint.source}: {error}", stacklevel=2)
        return []


def _in_place(hint: ModuleHint, named: list[Called], alive: Alive) -> list[tuple[str, Tensor]]:
    """The parameter that a hint given on a Parameter object reaches in a module that held the object.

    That is the object if it is still there. Another parameter there, or several of which its tensor is made now, have
    taken its place only if the object is not `alive`, in the optimizer or in a known module: else the object has merely
    moved, and its hint with it.
    """
    found = [(one.name, one.parameter) for one in named if hint.key in one.names]
    return [(name, p) for name, p in found if hints.identity(p)[1] == hint.given_to or hint.given_to not in alive()]


def _hints_of(module: nn.Module) -> list[ModuleHint]:
    """What the module's classes declare, what its notes hold, and the default for its embeddings."""
    declarations, epoch = declared(module), hints.current_epoch()
    found = [
        ModuleHint(name, config, Level.MODULE, order - len(declarations), source, epoch)  # before any given by hand
        for order, (name, config, source) in enumerate(declarations)
    ]
    notes = hints.notes(module)
    if notes is not None:
        found += notes.hints
        embeddings = (child for child in module.modules() if isinstance(child, nn.Embedding))
        if notes.embeddings_32bit is not None and any(True for child in embeddings for _ in child.parameters()):
            config, order = EMBEDDING_CONFIG if notes.embeddings_32bit else {}, notes.embeddings_order
            source = "nn.Embedding keeps 32-bit state"
            found.append(ModuleHint(nn.Embedding, config, Level.EMBEDDING, order, source, epoch))
    return found
