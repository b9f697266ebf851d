"""From hints to today's parameters: which tensors a module's hint reaches, and what a parameter's hints add up to."""

import difflib
import re
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn

from torch_bnb.overrides.declare import declared
from torch_bnb.overrides.hints import Hint, Level, ModuleHint, on_module
from torch_bnb.overrides.spec import OverrideError

_WRAPPERS = re.compile(r"(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
_PARAMETRIZED = re.compile(r"parametrizations\.([^.]+)\.original\d*$")


def clean_name(name: str) -> str:
    """A parameter's name as its author wrote it: without the wrappers of compilers, FSDP and parametrizations."""
    return _PARAMETRIZED.sub(r"\1", _WRAPPERS.sub("", name))


def find(module: nn.Module, key: str) -> list[tuple[str, Tensor]]:
    """The (name, parameter) pairs that `key` means below `module`.

    The module's own attribute or a dotted path; else every descendant parameter whose last name is `key`.

    Raises:
        LookupError: There is none; the nearest name is given.
    """
    names = [(clean_name(name), parameter) for name, parameter in module.named_parameters(remove_duplicate=False)]
    exact = [(name, parameter) for name, parameter in names if name == key]
    found = exact or [(name, parameter) for name, parameter in names if name.rpartition(".")[2] == key]
    if not found:
        near = difflib.get_close_matches(key, [name for name, _ in names], n=1, cutoff=0.4)
        hint = (
            f", did you mean {near[0]!r}?" if near else f"; it has {', '.join(name for name, _ in names[:8]) or 'none'}"
        )
        raise LookupError(f"{type(module).__name__} has no parameter {key!r}{hint}")
    return found


def hints_through(modules: Iterable[nn.Module], params: Iterable[Tensor], epoch: int) -> dict[int, list[Hint]]:
    """Every hint that reaches one of `params` through a module, by ``id(parameter)``.

    Args:
        modules: Roots; they and all modules below them are asked.
        params: The parameters of one optimizer. A module none of whose parameters are among them is another's concern.
        epoch: Hints of earlier epochs are forgotten.

    Raises:
        OverrideError: A hint of a concerned module names a parameter that does not exist.
    """
    wanted = {id(parameter) for parameter in params}
    reached: dict[int, list[Hint]] = {}
    for module in {id(m): m for root in modules for m in root.modules()}.values():
        hints = _hints_of(module, epoch)
        if not hints or wanted.isdisjoint(map(id, module.parameters())):
            continue
        for hint in hints:
            try:
                targets = find(module, hint.key)
            except LookupError as error:
                raise OverrideError(f"{hint.source}: {error}") from None
            for name, parameter in targets:
                nearness = -name.count(".")
                found = Hint(hint.config, Level.MODULE, (nearness, hint.order), hint.source, hint.epoch)
                reached.setdefault(id(parameter), []).append(found)
    return reached


def merge(hints: Iterable[Hint]) -> dict[str, Any]:
    """What hints for one parameter add up to: of every key the strongest one's value."""
    merged: dict[str, Any] = {}
    for hint in sorted(hints, key=lambda hint: (hint.level, hint.rank)):
        merged.update(hint.config)
    return merged


def _hints_of(module: nn.Module, epoch: int) -> list[ModuleHint]:
    declarations: list[tuple[str, Mapping[str, Any], str]] = declared(module)
    by_class = [
        ModuleHint(name, config, order - len(declarations), source, epoch)  # negative: before any registered by hand
        for order, (name, config, source) in enumerate(declarations)
    ]
    return by_class + [hint for hint in on_module(module) if hint.epoch >= epoch]
