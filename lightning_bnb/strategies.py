"""What a strategy asks of the optimizers, before it gets them. The only place that names strategies."""

from collections.abc import Iterable

import torch
from lightning.pytorch.strategies import Strategy
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch.optim.optimizer import Optimizer

import torch_bnb as bnb
from lightning_bnb.either import is_a
from torch_bnb.optim import BlockwiseOptimizer, GlobalOptimManager


def sees_groups_only(strategy: Strategy) -> bool:
    """Whether it flattens parameters group by group, so that what is said of one parameter could not hold."""
    return is_a(strategy, "DeepSpeedStrategy")


def prepare(strategy: Strategy, optimizers: Iterable[Optimizer]) -> None:
    """Readies optimizers for a strategy.

    FSDP gathers a checkpoint's state as tensors of the parameter's own shape and of one dtype, so it gets the state in
    its portable form. FSDP2 (``ModelParallelStrategy``) and the others take it as it is.

    Args:
        strategy: The trainer's.
        optimizers: Fresh from ``configure_optimizers``.

    Raises:
        MisconfigurationException: A hint about a single parameter, under a strategy that sees groups only.
    """
    for optimizer in optimizers:
        if not isinstance(optimizer, BlockwiseOptimizer):
            continue
        if is_a(strategy, "FSDPStrategy"):
            optimizer.checkpoint_format = "portable"
        if sees_groups_only(strategy):
            _refuse_hints(strategy, optimizer)


def check_agreement(strategy: Strategy, optimizers: Iterable[Optimizer]) -> None:
    """Makes sure that processes which keep the same state also mean the same by it. All of them must call it.

    Optimizers of sharded parameters see to it themselves, at their first step; under FSDP each has other pieces.

    Args:
        strategy: The trainer's.
        optimizers: As they will step.

    Raises:
        MisconfigurationException: On every process: they disagree. The first difference is named.
    """
    if not (is_a(strategy, "DDPStrategy") and strategy.world_size > 1):
        return
    for optimizer in optimizers:
        if isinstance(optimizer, BlockwiseOptimizer):
            try:
                bnb.check_agreement(optimizer, [torch.distributed.group.WORLD])
            except ValueError as error:
                raise MisconfigurationException(f"EightBitOptimizer: {error}") from error


def _refuse_hints(strategy: Strategy, optimizer: BlockwiseOptimizer) -> None:
    hinted = [row for row in GlobalOptimManager.get_instance().explain(optimizer) if row.overrides]
    if hinted:
        named = ", ".join(f"{row.name}: {sorted(row.overrides)}" for row in hinted[:4])
        more = f" and {len(hinted) - 4} more" if len(hinted) > 4 else ""
        raise MisconfigurationException(
            f"EightBitOptimizer: {type(strategy).__name__} flattens the parameters of a group into one, so a hint "
            f"about a single parameter cannot hold ({named}{more}). Give the optimizer "
            "bnb.param_groups(self, overrides=...) in configure_optimizers: every set of options is then its own group"
        )
