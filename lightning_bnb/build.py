"""From a module to its 8-bit optimizers: hints said, optimizers made or replaced, what cannot be refused.

The callback and the mixin both come here. Knows nothing of when: that is theirs.
"""

import copy
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import nn
from torch.optim.optimizer import Optimizer

from lightning_bnb.replace import replace_optimizers
from lightning_bnb.twins import REPLACED
from torch_bnb import OverrideError, OverrideSpec, report
from torch_bnb.optim import BlockwiseOptimizer, GlobalOptimManager

SOURCE = "EightBitOptimizer"
"""Stands before the patterns of the callback in tables and errors."""

Overrides = Mapping[str | type[nn.Module], OverrideSpec]


@contextmanager
def misconfigurations() -> Iterator[None]:
    """Turns what is wrong with hints into the error that Lightning's users look for."""
    try:
        yield
    except OverrideError as error:
        said = str(error)
        raise MisconfigurationException(said if said.startswith(SOURCE) else f"{SOURCE}: {said}") from error


def register(
    module: "pl.LightningModule", overrides: Overrides | None, embeddings_32bit: bool | None, strict: bool
) -> None:
    """Makes a module known with the hints that it declares, and says the callback's patterns about it.

    Args:
        module: The one to be trained.
        overrides: Patterns over its names; those of an earlier call are taken back.
        embeddings_32bit: As in `GlobalOptimManager.register_parameters`.
        strict: A pattern that fits no parameter is an error now; else a warning whenever hints are looked up.

    Raises:
        OverrideError: A hint or pattern is impossible, or fits nothing.
    """
    manager = GlobalOptimManager.get_instance()
    manager.register_parameters(module, embeddings_32bit)
    manager.say_named(module, overrides or {}, strict, SOURCE, only=True)


def replaced(configured: Any, optim_bits: int) -> tuple[Any, Callable[[], None]]:
    """What ``configure_optimizers`` returned, with 8-bit twins in it, and what gives the originals their place back.

    Raises:
        MisconfigurationException: An optimizer uses an option that its twin lacks.
    """
    try:
        return replace_optimizers(configured, optim_bits)
    except OverrideError:
        raise
    except ValueError as error:
        raise MisconfigurationException(f"EightBitOptimizer: {error}") from error


def heeding(optimizer: Optimizer) -> list[BlockwiseOptimizer]:
    """The optimizers that heed hints: this one, or what it wraps (ZeroRedundancyOptimizer, SAM) as an attribute."""
    if isinstance(optimizer, BlockwiseOptimizer):
        return [optimizer]
    return [held for held in vars(optimizer).values() if isinstance(held, BlockwiseOptimizer)]


def warn_of_full_precision(optimizer: Optimizer, replace: bool = True, optim_bits: int = 8) -> None:
    """Warns of an optimizer none of whose state is in 8 bits.

    Args:
        optimizer: As it will train.
        replace: Whether it would have been replaced, had it a twin.
        optim_bits: What was asked for; none is said of 32.
    """
    ours = heeding(optimizer)
    if not ours:
        why = (
            f"has no 8-bit twin ({', '.join(REPLACED)} have)"
            if replace
            else "is not replaced (replace_torch_optimizers=False)"
        )
        rank_zero_warn(
            f"EightBitOptimizer: {type(optimizer).__name__} {why} and stays as it is, its state at full precision; no "
            "hint holds for it"
        )
    for inner in ours if optim_bits == 8 else []:
        memory = report(inner)
        if not any(row.bits == 8 for row in memory.rows):
            planned = memory.total.planned / 2**20
            rank_zero_warn(
                f"EightBitOptimizer: all state of {type(inner).__name__} stays in 32 bits, {planned:.2f} MiB; "
                f"{_why_32_bits(inner)}"
            )


def _why_32_bits(optimizer: BlockwiseOptimizer) -> str:
    if not any(group["optim_bits"] == 8 for group in optimizer.param_groups):
        return "set optim_bits=8"
    double = {p.dtype == torch.float64 for group in optimizer.param_groups for p in group["params"]}
    if double == {True}:
        return "parameters in float64 keep 32-bit state"
    also = "in float64, " if True in double else ""
    return f"trainable parameters are {also}below min_8bit_size or kept at 32 bits by hints"


def refuse_idle_overrides(optimizers: Sequence[Optimizer]) -> None:
    """Raises MisconfigurationException where hints were given and no optimizer heeds any."""
    if optimizers and not any(map(heeding, optimizers)):
        names = ", ".join(dict.fromkeys(type(optimizer).__name__ for optimizer in optimizers))
        raise MisconfigurationException(
            f"EightBitOptimizer: overrides hold for optimizers of torch_bnb only, and here is {names}; "
            "strict=False makes this a warning"
        )


def warn_of_idle_patterns(module: "pl.LightningModule", optimizers: Sequence[Optimizer]) -> None:
    """Warns of patterns that fit none of the optimizers' parameters."""
    trained = (p for optimizer in optimizers for group in optimizer.param_groups for p in group["params"])
    for said in GlobalOptimManager.get_instance().idle_patterns(module, trained):
        rank_zero_warn(said)


def warn_of_unused_configuration(module: "pl.LightningModule") -> None:
    """Warns that the module's own is not called; whether it has a schedule, only a call would tell."""
    rank_zero_warn(
        f"EightBitOptimizer(optimizer=...) stands in place of {type(module).__name__}.configure_optimizers: its "
        "optimizers and schedulers are not used. To keep a schedule leave optimizer= out; what the module returns is "
        "replaced"
    )


def wrap_configure_optimizers(
    module: "pl.LightningModule", around: Callable[[Callable[[], Any]], Any]
) -> Callable[[], None]:
    """Puts ``around(original)`` in the place of the module's ``configure_optimizers``.

    Args:
        module: The one to be trained. Copies and pickles of it have their own original.
        around: Called with the module's own method, bound.

    Returns:
        What puts the original back.
    """
    original = module.configure_optimizers
    own_attribute = "configure_optimizers" in vars(module)
    module.configure_optimizers = wrapped = _Wrapped(original, around)

    def restore() -> None:
        wrapped.around = None
        if own_attribute:
            module.configure_optimizers = original
        else:
            vars(module).pop("configure_optimizers", None)

    return restore


class _Wrapped:
    """A ``configure_optimizers`` for the module that is trained and no copy of it; after the fit, the original."""

    def __init__(self, original: Callable[[], Any], around: Callable[[Callable[[], Any]], Any] | None) -> None:
        self.original, self.around = original, around
        # Lightning asks whether it is the empty one, and looks one deep.
        self.__wrapped__ = inspect.unwrap(getattr(original, "__func__", original))

    def __call__(self) -> Any:
        return self.original() if self.around is None else self.around(self.original)

    def __deepcopy__(self, memo: dict[int, Any]) -> Callable[[], Any]:
        return copy.deepcopy(self.original, memo)

    def __reduce__(self) -> tuple[Any, ...]:
        return _itself, (self.original,)


def _itself(original: Callable[[], Any]) -> Callable[[], Any]:
    return original
