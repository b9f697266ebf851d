"""From hints to today's parameters: which tensors a module's hint reaches, and what a parameter's hints add up to."""

import difflib
import re
import warnings
from collections.abc import Iterable
from fnmatch import fnmatchcase
from typing import Any

from torch import Tensor, nn

from torch_bnb.overrides import hints
from torch_bnb.overrides.declare import declared
from torch_bnb.overrides.hints import Hint, Level, ModuleHint
from torch_bnb.overrides.spec import OverrideError

Key = str | type[nn.Module]

_WRAPPERS = re.compile(r"(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
_PARAMETRIZED = re.compile(r"parametrizations\.([^.]+)\.original\d*$")

EMBEDDING_CONFIG = {"optim_bits": 32}


def clean_name(name: str) -> str:
    """A parameter's name as its author wrote it: without the wrappers of compilers, FSDP and parametrizations."""
    return _PARAMETRIZED.sub(r"\1", _WRAPPERS.sub("", name))


def names(module: nn.Module) -> list[tuple[str, Tensor]]:
    """(clean name, parameter) pairs below a module; a tied parameter comes under each of its names."""
    return [(clean_name(name), parameter) for name, parameter in module.named_parameters(remove_duplicate=False)]


def find(module: nn.Module, key: Key) -> list[tuple[str, Tensor]]:
    """The (name, parameter) pairs that `key` means below `module`.

    A module type: every parameter in modules of that type. ``"re:..."``: names in which the expression is found. A name
    with ``*``, ``?`` or ``[``: a glob over whole names, where a leading ``*.`` may also stand for nothing. Any other
    name: the module's own attribute or a dotted path; else every parameter whose last name it is.

    Raises:
        LookupError: There is none; the nearest name is given.
    """
    if isinstance(key, type):
        inside = {id(p) for child in module.modules() if isinstance(child, key) for p in child.parameters()}
        found = [(name, parameter) for name, parameter in names(module) if id(parameter) in inside]
    else:
        matches = _matcher(key)
        found = [(name, parameter) for name, parameter in names(module) if matches(name)]
        if not found and key.isidentifier():
            found = [(name, parameter) for name, parameter in names(module) if name.rpartition(".")[2] == key]
    if not found:
        raise LookupError(_nothing_found(module, key))
    return found


def _matcher(key: str) -> Any:
    if key.startswith("re:"):
        try:
            expression = re.compile(key.removeprefix("re:"))
        except re.error as error:
            raise OverrideError(f"{key!r} is no regular expression: {error}") from None
        return lambda name: expression.search(name) is not None
    if any(character in key for character in "*?["):
        return lambda name: fnmatchcase(name, key) or fnmatchcase(f".{name}", key)
    return lambda name: name == key


def _nothing_found(module: nn.Module, key: Key) -> str:
    if isinstance(key, type):
        return f"{type(module).__name__} has no parameter in a {key.__name__}"
    known = [name for name, _ in names(module)]
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.4)
    hint = f", did you mean {near[0]!r}?" if near else f"; it has {', '.join(known[:8]) or 'none'}"
    return f"{type(module).__name__} has no parameter {key!r}{hint}"


def hints_through(params: Iterable[Tensor], epoch: int) -> dict[int, list[Hint]]:
    """Every hint that reaches one of `params` through a known module, by ``id(parameter)``.

    Args:
        params: The parameters of one optimizer. A module none of whose parameters are among them is another's concern.
        epoch: Hints of earlier epochs are forgotten.

    Raises:
        OverrideError: A hint of a concerned module fits no parameter.
    """
    wanted = {id(parameter) for parameter in params}
    reached: dict[int, list[Hint]] = {}
    for module in hints.known_modules(epoch):
        given = _hints_of(module, epoch)
        if not given or wanted.isdisjoint(map(id, module.parameters())):
            continue
        for hint in given:
            for name, parameter in _targets(module, hint):
                near = (-name.count("."),) if hint.level is Level.MODULE else ()
                found = Hint(hint.config, hint.level, (*near, hint.order), hint.source, hint.epoch)
                known = reached.setdefault(id(parameter), [])
                if found not in known:  # a tied parameter has several names
                    known.append(found)
    return reached


def merge(given: Iterable[Hint]) -> dict[str, Any]:
    """What hints for one parameter add up to: of every key the strongest one's value."""
    merged: dict[str, Any] = {}
    for hint in by_strength(given):
        merged.update(hint.config)
    return merged


def by_strength(given: Iterable[Hint]) -> list[Hint]:
    """The weakest first."""
    return sorted(given, key=lambda hint: (hint.level, hint.rank))


def _targets(module: nn.Module, hint: ModuleHint) -> list[tuple[str, Tensor]]:
    try:
        return find(module, hint.key)
    except LookupError as error:
        if hint.must_match:
            raise OverrideError(f"{hint.source}: {error}") from None
        warnings.warn(f"{hint.source}: {error}", stacklevel=2)
        return []


def _hints_of(module: nn.Module, epoch: int) -> list[ModuleHint]:
    declarations = declared(module)
    found = [
        ModuleHint(name, config, Level.MODULE, order - len(declarations), source, epoch)  # before any given by hand
        for order, (name, config, source) in enumerate(declarations)
    ]
    notes = hints.notes(module)
    if notes is not None and notes.epoch >= epoch:
        found += [hint for hint in notes.hints if hint.epoch >= epoch]
        if notes.embeddings_32bit and any(isinstance(child, nn.Embedding) for child in module.modules()):
            source = "nn.Embedding keeps 32-bit state"
            found.append(ModuleHint(nn.Embedding, EMBEDDING_CONFIG, Level.EMBEDDING, 0, source, epoch))
    return found
