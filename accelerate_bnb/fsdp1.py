"""FSDP1's checkpoints: state in a form that it can shard, and state to load into. Knows no plugin."""

from typing import Any

import torch
from accelerate import Accelerator

from torch_bnb.optim import BlockwiseOptimizer


def make_loadable(accelerator: Accelerator, optimizer: BlockwiseOptimizer) -> None:
    """Lets an optimizer under FSDP1 be saved and loaded by Accelerate.

    FSDP1 gathers and shards state as it does parameters and knows nothing of 8 bits, so state is portable. And it loads
    only the entries that an optimizer has: of a fresh one, none and without a word, so they are made before.
    """
    optimizer.checkpoint_format = "portable"

    def make_state(models: list[Any], input_dir: str) -> None:
        if not optimizer.state:
            _step_in_place(optimizer)

    accelerator.register_load_state_pre_hook(make_state)


def _step_in_place(optimizer: BlockwiseOptimizer) -> None:
    """A step with gradients and rates of zero: it makes all state and moves nothing."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    kept = [parameter.grad for parameter in parameters]
    rates = [group["lr"] for group in optimizer.param_groups]
    try:
        for parameter in parameters:
            parameter.grad = torch.zeros_like(parameter) if parameter.numel() else None
        for group in optimizer.param_groups:
            group["lr"] = 0.0
        optimizer.step()
    finally:
        for parameter, grad in zip(parameters, kept, strict=True):
            parameter.grad = grad
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
