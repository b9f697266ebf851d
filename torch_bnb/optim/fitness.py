"""What a parameter can be stepped with: its gradient, its options and its state, before anything is written."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from torch_bnb import ops
from torch_bnb.optim import host, sharding
from torch_bnb.optim import state as storage
from torch_bnb.optim.slots import Group

if TYPE_CHECKING:
    from torch_bnb.optim.base import BlockwiseOptimizer

FLOATING = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def refuse_dtypes(params: Sequence[Tensor], what: str) -> None:
    """Raises ValueError for a group's first parameter that cannot be trained by its dtype.

    Frozen ones in other dtypes, as the packed weights of QLoRA, are passed over like all that have no gradient, if
    there is something to train beside them.

    Args:
        params: The group's.
        what: It, for the error.
    """
    trains = any(parameter.dtype in FLOATING for parameter in params)
    for position, parameter in enumerate(params):
        frozen = isinstance(parameter, torch.nn.Parameter) and not (parameter.requires_grad or parameter.is_complex())
        if parameter.dtype not in FLOATING and not (frozen and trains):
            raise ValueError(
                f"{what}: parameter {position} of shape {tuple(parameter.shape)} is {parameter.dtype}; "
                f"expected one of {', '.join(map(str, FLOATING))}"
            )


def measures(optimizer: "BlockwiseOptimizer", config: Group) -> bool:
    """Whether a step needs a norm over a whole parameter first."""
    return optimizer.layerwise or config["max_unorm"] > 0


def check_grad(
    optimizer: "BlockwiseOptimizer", parameter: Tensor, grad: Tensor, config: Group, group: int, position: int
) -> None:
    """Raises an error that names the parameter, if it cannot be stepped with this gradient."""
    what = error = None
    sharded = sharding.is_sharded(parameter)
    whole = _needs_whole(optimizer, config)
    required = optimizer.active_states(config).keys() - optimizer.optional
    if sharded and not sharding.is_sharded(grad):
        what, error = "it is sharded (a DTensor) and its gradient is a plain tensor", ValueError
    elif sharded and not config["block_wise"]:
        what, error = "block_wise=False needs the whole tensor, it is sharded", NotImplementedError
    elif sharded and grad.layout is not torch.strided:
        what, error = f"it is sharded and its gradient is {grad.layout}; expected a dense one", NotImplementedError
    elif whole and getattr(parameter, "_fsdp_flattened", False):
        what, error = f"{whole} needs the whole tensor, FSDP1 gives a shard; use fully_shard", NotImplementedError
    elif is_traceable_wrapper_subclass(parameter) and not sharded:
        what, error = f"this version takes no {type(parameter.data).__name__}", NotImplementedError
    elif any(step == 0 and size > 1 for step, size in zip(parameter.stride(), parameter.shape, strict=True)):
        what, error = "its elements share memory (it is expanded); expected one that owns each", ValueError
    elif not ops.has_kernel(optimizer.rule, parameter.device):
        what, error = f"torch_bnb was built without kernels for {parameter.device.type}", NotImplementedError
    elif sharded and host.on_host(config) and parameter.device.type != "cpu":
        what = "state_device='cpu' takes no sharded parameter; FSDP2's CPUOffloadPolicy keeps it and its state there"
        error = NotImplementedError
    elif grad.layout not in (torch.strided, torch.sparse_coo):
        what, error = f"its gradient is {grad.layout}; expected a dense or COO tensor", NotImplementedError
    elif grad.layout is torch.sparse_coo and (grad.sparse_dim() != 1 or not parameter.is_contiguous()):
        what, error = "a sparse gradient must be one of rows, for a contiguous parameter", NotImplementedError
    elif grad.layout is torch.sparse_coo and host.is_away(config, parameter):
        what, error = "state_device='cpu' takes no sparse gradient", NotImplementedError
    elif grad.layout is torch.sparse_coo and whole and whole != "percentile_clipping":
        what, error = f"{whole} needs the whole tensor, its gradient is sparse", NotImplementedError
    elif not {grad.dtype, parameter.dtype} <= {*FLOATING} or grad.device != parameter.device:
        theirs = f"{grad.dtype} on {grad.device}"
        what, error = f"its gradient is {theirs}, the parameter {parameter.dtype} on {parameter.device}", ValueError
    elif unfit := storage.misfit(optimizer.state.get(parameter, {}), optimizer.states, required, parameter):
        what, error = unfit, ValueError
    if error is not None:
        raise error(f"{_called(optimizer, parameter, group, position)}: {what}")


def refuse_freed(optimizer: "BlockwiseOptimizer", stepping: Sequence[tuple[int, int, Tensor]]) -> None:
    """Raises an error that names the first parameter which has no memory, or whose gradient or state has none.

    Args:
        optimizer: Whose parameters.
        stepping: Those with a gradient, each behind its group and its position there.
    """
    tensors = [_tensors(optimizer, parameter) for _, _, parameter in stepping]
    if ops.headers_of([tensor for own in tensors for tensor in own.values()]) is not None:  # all have some
        return
    for (group, position, parameter), own in zip(stepping, tensors, strict=True):
        for key, tensor in own.items():
            if _is_freed(tensor):
                place = _called(optimizer, parameter, group, position)
                raise ValueError(f"{place}: {key} has no memory, its storage has been freed")


def _tensors(optimizer: "BlockwiseOptimizer", parameter: Tensor) -> dict[str, Tensor]:
    state = optimizer.state.get(parameter, {})
    kept = {f"its {key}": value for key, value in state.items() if key != "step" and isinstance(value, Tensor)}
    return {"the parameter": parameter, "its gradient": parameter.grad, **kept}


def _is_freed(tensor: Tensor) -> bool:
    """Whether a tensor has elements and no memory for them, as after ``untyped_storage().resize_(0)``."""
    here = sharding.local(tensor)
    if here.layout is not torch.strided or here._is_zerotensor():
        return False
    return here.numel() > 0 and not here.untyped_storage().nbytes()


def _called(optimizer: "BlockwiseOptimizer", parameter: Tensor, group: int, position: int) -> str:
    return f"{type(optimizer).__name__}: parameter {position} of group {group}, shape {tuple(parameter.shape)}"


def _needs_whole(optimizer: "BlockwiseOptimizer", config: Group) -> str | None:
    """What of an optimizer's options needs to know the whole of a parameter, if anything."""
    if optimizer.layerwise:
        return type(optimizer).__name__
    if config["max_unorm"]:
        return "max_unorm"
    if not config["block_wise"]:
        return "block_wise=False"
    return "percentile_clipping" if config["percentile_clipping"] < 100 else None
