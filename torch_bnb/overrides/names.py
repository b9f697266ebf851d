"""What parameters are called below a module, and which of them a key means: a name, a pattern or a module type."""

import difflib
import functools
import re
from collections.abc import Callable, Mapping, Set
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

from torch import Tensor, nn

from torch_bnb.overrides.spec import OverrideError, OverrideSpec, validate

Key = str | type[nn.Module]

_ATTRIBUTES = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module", "_original_module")
"""Under which wrappers of torch.compile, FSDP1, activation checkpointing and Lightning Fabric hold what they wrap."""

_WRAPPERS = re.compile(rf"(?<![^.])({'|'.join(_ATTRIBUTES)})\.")
_PARAMETRIZED = re.compile(r"(?<![^.])parametrizations\.([^.]+)\.original(\d*)$")
_ONE_OF_SEVERAL = re.compile(r"\.original\d+$")

_BEHIND_HOOK = re.compile(r"(.+)_(?:orig|g|v)$")
"""What torch.nn.utils.prune, spectral_norm and weight_norm call the parameters of which a hook computes a tensor."""

_ADAPTED = re.compile(r"(?<=\.)(?:base_layer|original_module|modules_to_save\.[^.]+)\.")
"""Where PEFT's adapters hold the layer that they have taken the place of, and the copy of it that is trained."""


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


def own(module: nn.Module) -> dict[str, Tensor]:
    """A module's own parameters by attribute."""
    return {attribute: p for attribute, p in module._parameters.items() if p is not None}


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
