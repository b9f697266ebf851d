"""What the callback keeps in a checkpoint: what held for each parameter, so that a resumed run can say what changed."""

from collections.abc import Iterable, Mapping
from typing import Any

from torch.optim.optimizer import Optimizer

from torch_bnb.optim import BlockwiseOptimizer, GlobalOptimManager

Choices = dict[str, dict[str, Any]]
"""By parameter name, the bits of its state and every overridden option. Plain data, for ``weights_only=True``."""

GROUPS = "the group's"
"""Stands in messages for an option that is not overridden."""


def choices(optimizers: Iterable[Optimizer]) -> Choices:
    """What holds now for the parameters of these optimizers."""
    explain = GlobalOptimManager.get_instance().explain
    rows = [row for optimizer in optimizers if isinstance(optimizer, BlockwiseOptimizer) for row in explain(optimizer)]
    return {row.name: {**row.overrides, "optim_bits": row.bits} for row in rows}


def changes(saved: Mapping[str, Mapping[str, Any]], now: Choices) -> list[str]:
    """In words, every parameter of both whose options differ; ``the group's`` stands for what its group says."""
    found = []
    for name in saved.keys() & now.keys():
        before, after = saved[name], now[name]
        different = [key for key in {**before, **after} if before.get(key) != after.get(key)]
        if different:
            said = ", ".join(
                f"{key} {before.get(key, GROUPS)} -> {after.get(key, GROUPS)}" for key in sorted(different)
            )
            found.append(f"{name}: {said}")
    return sorted(found)
