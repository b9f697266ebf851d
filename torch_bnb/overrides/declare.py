"""Hints that a class declares: ``optim_overrides`` as a decorator, a class attribute or an instance's attribute."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from torch import nn

from torch_bnb.overrides.hints import note
from torch_bnb.overrides.spec import OverrideError, OverrideSpec, validate

ATTRIBUTE = "optim_overrides"

ModuleClass = TypeVar("ModuleClass", bound=type[nn.Module])


def optim_overrides(hints: Mapping[str, OverrideSpec]) -> Callable[[ModuleClass], ModuleClass]:
    """Class decorator: declares hints for the parameters of a module.

    Args:
        hints: From a parameter's name (``"weight"``, ``"head.bias"``, as in
            `GlobalOptimManager.register_module_override`) to its options. Subclasses inherit and refine them by name.

    Returns:
        A decorator that returns the same class, with the hints in its attribute ``optim_overrides``. Setting that
        attribute in the class body, or on an instance, does the same.

    Raises:
        OverrideError: An unknown option or an impossible value.
        TypeError: The decorated class is no ``nn.Module``.

    Example:
        >>> import torch, torch_bnb as bnb
        >>> @bnb.optim_overrides({"embed.weight": {"optim_bits": 32}})
        ... class Model(torch.nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.embed = torch.nn.Embedding(1000, 64)
        >>> Model.optim_overrides
        {'embed.weight': {'optim_bits': 32}}
    """
    if not isinstance(hints, Mapping):
        raise TypeError(f"optim_overrides takes a dict of names and options, got {hints!r}: @optim_overrides({{...}})")
    checked = {name: validate(config) for name, config in hints.items()}

    def decorate(cls: ModuleClass) -> ModuleClass:
        if not (isinstance(cls, type) and issubclass(cls, nn.Module)):
            raise TypeError(f"optim_overrides decorates an nn.Module class, got {cls!r}")
        setattr(cls, ATTRIBUTE, {**cls.__dict__.get(ATTRIBUTE, {}), **checked})
        construct = cls.__init__

        @functools.wraps(construct)
        def __init__(self: nn.Module, *args: Any, **kwargs: Any) -> None:
            construct(self, *args, **kwargs)
            note(self)

        cls.__init__ = __init__
        return cls

    return decorate


def declared(module: nn.Module) -> list[tuple[str, dict[str, Any], str]]:
    """(name, config, source) of every hint that a module's classes and the module itself declare, the weakest first."""
    found = []
    owners = [(vars(cls), cls.__name__) for cls in reversed(type(module).__mro__)]
    for attributes, owner in [*owners, (vars(module), f"this {type(module).__name__}")]:
        hints = attributes.get(ATTRIBUTE, {})
        source = f"{ATTRIBUTE} of {owner}"
        if not isinstance(hints, Mapping):
            raise OverrideError(f"{source}: expected a dict of names and options, got {hints!r}")
        for name, config in hints.items():
            try:
                found.append((name, validate(config), source))
            except OverrideError as error:
                raise OverrideError(f"{source}[{name!r}]: {error}") from None
    return found
