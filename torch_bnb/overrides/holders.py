"""Which modules hold a Parameter object, so that a hint given on the object also holds for what takes its place there.

Called by the registry only, which lets one thread at a time in.
"""

import weakref
from collections.abc import Iterable, Sequence
from itertools import chain

from torch import Tensor, nn

from torch_bnb.overrides import hints
from torch_bnb.overrides.hints import Level, ModuleHint
from torch_bnb.overrides.names import own

Holder = tuple[nn.Module, str]
"""A module, and the attribute under which it has the parameter as its own."""

_noted: "dict[int, list[tuple[weakref.ref[nn.Module], str]]]" = {}
"""By ``id(parameter)``, the holders that the last search found. They may hold something else by now."""


def below(module: nn.Module) -> Iterable[Holder]:
    """The holders of all parameters in a module."""
    return ((child, attribute) for child in module.modules() for attribute in own(child))


def of(parameters: Sequence[Tensor]) -> Iterable[Holder]:
    """The holders of these very objects among known modules."""
    found = list(map(_still_holding, parameters))
    if not all(found):  # maybe modules were added, or their parameters replaced, since the last search
        forget()
        for module in hints.known_modules():
            for attribute, parameter in own(module).items():
                _noted.setdefault(id(parameter), []).append((weakref.ref(module), attribute))
        found = list(map(_still_holding, parameters))
    return chain.from_iterable(found)


def forget() -> None:
    """Drops what the last search found."""
    _noted.clear()


def bind(holders: Iterable[Holder]) -> None:
    """Copies hints given on Parameter objects to the modules that hold them, where they outlive the objects."""
    bound: dict[nn.Module, list[ModuleHint]] = {}
    for module, attribute in holders:
        parameter = module._parameters[attribute]
        number = hints.identity(parameter)[1]
        for hint in hints.on_parameter(parameter):
            said = (hint.config, Level.PARAMETER, hint.rank[0], hint.source, hint.epoch)
            copied = ModuleHint(attribute, *said, given_to=number, withdrawn=hint.withdrawn)
            bound.setdefault(module, []).append(copied)
    for module, copies in bound.items():
        notes, again = hints.note(module), {(h.key, h.order, h.given_to) for h in copies}
        notes.hints = [h for h in notes.hints if (h.key, h.order, h.given_to) not in again]
        notes.add(*copies)


def _still_holding(parameter: Tensor) -> list[Holder]:
    noted = ((module(), attribute) for module, attribute in _noted.get(id(parameter), ()))
    holders = [(module, attribute) for module, attribute in noted if module is not None]
    return [(module, attribute) for module, attribute in holders if module._parameters.get(attribute) is parameter]
