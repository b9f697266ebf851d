"""FSDP1's checkpoints: state in a form that it can shard, and state to load into. Knows no plugin."""

import torch

from torch_bnb.optim import BlockwiseOptimizer


def make_loadable(optimizer: BlockwiseOptimizer) -> None:
    """Lets an optimizer under FSDP1 be saved and loaded by Accelerate, once model and optimizer are prepared.

    FSDP1 gathers and shards state as it does parameters and knows nothing of 8 bits, so state is portable. And it loads
    only the entries that an optimizer has: into a fresh one, none and without a word, so they are made here.
    """
    optimizer.checkpoint_format = "portable"
    if not optimizer.state:
        _step_in_place(optimizer)


def _step_in_place(optimizer: BlockwiseOptimizer) -> None:
    """A step with gradients and rates of zero: it makes all state, moves nothing and is not counted."""
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
