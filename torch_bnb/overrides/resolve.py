"""From hints to today's parameters: which tensors a module's hint reaches, and what a parameter's hints add up to."""

import difflib
import functools
import re
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from fnmatch import fnmatchcase
from itertools import chain
from typing import Any, NamedTuple

from torch import Tensor, nn

from torch_bnb.overrides import hints
from torch_bnb.overrides.declare import declared
from torch_bnb.overrides.hints import Hint, Level, ModuleHint
from torch_bnb.overrides.spec import OverrideError, OverrideSpec, validate

Key = str | type[nn.Module]
Alive = Callable[[], Set[int]]
"""The numbers of the Parameter objects (see `hints.Identity`) that the optimizer or a known module holds."""

_ATTRIBUTES = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module", "_original_module")
"""Under which wrappers of torch.compile, FSDP1, activation checkpointing and Lightning Fabric hold what they wrap."""

_WRAPPERS = re.compile(rf"(?<![^.])({'|'.join(_ATTRIBUTES)})\.")
_PARAMETRIZED = re.compile(r"(?<![^.])parametrizations\.([^.]+)\.original(\d*)$")
_ONE_OF_SEVERAL = re.compile(r"\.original\d+$")
_BEHIND_HOOK = re.compile(r"(.+)_(?:orig|g|v)$")
"""What torch.nn.utils.prune, spectral_norm and weight_norm call the parameters of which a hook computes a tensor."""
_ADAPTED = re.compile(r"(?<=\.)(?:base_layer|original_module|modules_to_save\.[^.]+)\.")
"""Where PEFT's adapters hold the layer that they have taken the place of, and the copy of it that is trained."""

EMBEDDING_CONFIG = {"optim_bits": 32}


def spell(key: Key) -> str:
    """A key as people write it."""
    return key.__name__ if isinstance(key, type) else repr(key)


def check_overrides(
    overrides: Mapping[Key, OverrideSpec], what: str = "overrides", source: Callable[[Key], str] | None = None
) -> dict[Key, dict[str, Any]]:
    """Checks patterns and their options while there is no model to look for names in.

    Args:
        overrides: From a name, a glob, ``"re:..."`` or a module type to options, as in
            `GlobalOptimManager.override_named`.
        what: What errors call the whole.
        source: From a key to what errors call the one pattern.

    Returns:
        A copy with aliases replaced and values converted.

    Raises:
        OverrideError: It is no such dict, an option is unknown (the nearest spelling is named) or its value impossible.

    Example:
        >>> import torch_bnb as bnb
        >>> bnb.check_overrides({"*.embed*.weight": {"betas": [0.9, 0.98], "is_sparse": True}})
        {'*.embed*.weight': {'betas': (0.9, 0.98), 'skip_zeros': True}}
    """
    if not isinstance(overrides, Mapping):
        raise OverrideError(f"{what}: expected a dict of names and options, got {overrides!r}")
    checked = {}
    for key, config in overrides.items():
        if not (isinstance(key, str) or (isinstance(key, type) and issubclass(key, nn.Module))):
            raise OverrideError(f"{what}: expected a name, a pattern or a module type, got {type(key).__name__}")
        try:
            checked[key] = validate(config)
            if isinstance(key, str):
                _matcher(key)
        except OverrideError as error:
            raise OverrideError(f"{source(key) if source else f'{what}[{spell(key)}]'}: {error}") from None
    return checked


@functools.lru_cache(maxsize=1 << 16)
def clean_name(name: str) -> str:
    """A parameter's name as its author wrote it: without the wrappers of compilers, FSDP and parametrizations.

    A parametrization that makes one tensor of several (weight_norm) has ``weight.original0`` and ``weight.original1``.
    """
    name = _WRAPPERS.sub("", name)
    return _PARAMETRIZED.sub(lambda found: f"{found[1]}.original{found[2]}" if found[2] else found[1], name)


def names(module: nn.Module) -> list[tuple[str, Tensor]]:
    """(clean name, parameter) pairs below a module; a tied parameter comes under each of its names.

    What wraps the whole module, a DistributedDataParallel too, adds nothing to the names.
    """
    prefix = _prefix_in_wrappers(module)
    found = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        cleaned = clean_name(name.removeprefix(prefix))
        found[cleaned, id(parameter)] = cleaned, parameter  # Fabric's wrapper holds its module twice
    return list(found.values())


def _prefix_in_wrappers(module: nn.Module) -> str:
    """What the names of all parameters begin with because of wrappers around the whole module."""
    prefix = ""
    while True:
        parallel = isinstance(module, (nn.parallel.DistributedDataParallel, nn.DataParallel))
        children = module._modules
        attribute = "module" if parallel else next((a for a in _ATTRIBUTES if a in children), None)
        if attribute is None or (inner := children.get(attribute)) is None:
            return prefix
        prefix, module = f"{prefix}{attribute}.", inner


class Called(NamedTuple):
    """A parameter below a module."""

    name: str
    """As in `names`."""
    parameter: Tensor
    names: Set[str]
    """All names by which a key can mean it, `name` among them."""


def called(module: nn.Module) -> list[Called]:
    """The parameters below a module and what they are called, also after torch or PEFT has renamed them.

    A parametrization that makes ``weight`` of several tensors has ``weight.original0``, which ``weight`` means, too.
    It also means ``weight_orig`` (pruning, `spectral_norm`), ``weight_g`` and ``weight_v`` (`weight_norm`) where a hook
    makes the module's ``weight`` of them; and ``head.weight`` means ``head.base_layer.weight`` (PEFT) where nothing
    else has that name.
    """
    named = names(module)
    known = {name for name, _ in named}
    hooked = _behind_hooks(module) if any(name.endswith(("_orig", "_g", "_v")) for name in known) else set()
    return [
        Called(name, parameter, {name, *(_earlier_names(name, id(parameter) in hooked) - known)})
        for name, parameter in named
    ]


@functools.lru_cache(maxsize=1 << 16)
def _earlier_names(name: str, hooked: bool) -> Set[str]:
    """What a parameter was called before it got this name, if it did."""
    whole = _ONE_OF_SEVERAL.sub("", name)
    said = {whole, _BEHIND_HOOK.sub(r"\1", whole) if hooked else whole}
    return frozenset(said | {_ADAPTED.sub("", each) for each in said})


def _behind_hooks(module: nn.Module) -> set[int]:
    """By ``id()``, the parameters of which a hook makes the tensor that a module has as a plain attribute."""
    return {
        id(parameter)
        for child in module.modules()
        for attribute, parameter in own(child).items()
        if (plain := _BEHIND_HOOK.match(attribute)) and isinstance(vars(child).get(plain[1]), Tensor)
    }


def find(module: nn.Module, key: Key, named: list[Called] | None = None) -> list[tuple[str, Tensor]]:
    """The (name, parameter) pairs that `key` means below `module`.

    A module type: every parameter in modules of that type. ``"re:..."``: names in which the expression is found. A name
    with ``*``, ``?`` or ``[``: a glob over whole names, where a leading ``*.`` may also stand for nothing. Any other
    name: the module's own attribute or a dotted path; else every parameter whose last name it is.

    Args:
        module: Where to look.
        key: What for.
        named: What `called` says of the module, where it is at hand.

    Raises:
        LookupError: There is none; the nearest name is given.
    """
    named = called(module) if named is None else named
    if isinstance(key, type):
        inside = {id(p) for child in module.modules() if isinstance(child, key) for p in child.parameters()}
        found = [one for one in named if id(one.parameter) in inside]
    else:
        exact = {key, clean_name(key.removeprefix(_prefix_in_wrappers(module)))}  # as named_parameters() has it, too
        found = [one for one in named if exact & one.names]
        if not found:
            matches = _matcher(key)
            found = [one for one in named if any(map(matches, one.names))]
    if not found:
        raise LookupError(_nothing_found(module, key))
    return [(one.name, one.parameter) for one in found]


def _matcher(key: str) -> Callable[[str], bool]:
    """Tells which names a key means, if it is no parameter's whole name."""
    if key.startswith("re:"):
        try:
            expression = re.compile(key.removeprefix("re:"))
        except re.error as error:
            raise OverrideError(f"{key!r} is no regular expression: {error}") from None
        return lambda name: expression.search(name) is not None
    if any(character in key for character in "*?["):
        return lambda name: fnmatchcase(name, key) or fnmatchcase(f".{name}", key)
    return lambda name: name.rpartition(".")[2] == key


def _nothing_found(module: nn.Module, key: Key) -> str:
    if isinstance(key, type):
        return f"{type(module).__name__} has no {key.__name__} with a parameter"
    known = [name for name, _ in names(module)]
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.4)
    parents = {name[:dot] for name in known for dot, character in enumerate(name) if character == "."}
    if whole := [parent for parent in sorted(parents) if parent == key or _matcher(key)(parent)]:
        near = [f"{whole[0]}.*"]
    elif key.endswith(".*") and (closest := difflib.get_close_matches(key[:-2], sorted(parents), n=1)):
        near = [f"{closest[0]}.*"]
    hint = f", did you mean {near[0]!r}?" if near else f"; it has {', '.join(known[:8]) or 'none'}"
    return f"{type(module).__name__} has no parameter {key!r}{hint}"


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


def own(module: nn.Module) -> dict[str, Tensor]:
    """A module's own parameters by attribute."""
    return {attribute: p for attribute, p in module._parameters.items() if p is not None}


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
