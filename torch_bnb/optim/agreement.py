"""Whether all processes mean the same: one small number is compared, and only if it differs, who says what.

Ranks with different overrides would keep different state, wait for different sums, or drift apart without a word.
"""

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from torch_bnb.optim import options, sharding
from torch_bnb.optim.slots import Place
from torch_bnb.overrides import spec

if TYPE_CHECKING:
    from torch_bnb.optim.base import BlockwiseOptimizer


def check_agreement(optimizer: "BlockwiseOptimizer", groups: Sequence[Any] | None = None) -> None:
    """Compares every parameter's options among processes; all of them must call it.

    An optimizer of sharded parameters does so by itself at its first step. With DDP, call it once after the set-up;
    the plugins do.

    Args:
        optimizer: One of torch_bnb.
        groups: Process groups. None: those of the meshes that its parameters are sharded over; without any, it returns.

    Raises:
        ValueError: On every process: some disagree. The first parameters are named, with what each side says.
    """
    if groups is None:
        groups = _groups([parameter for group in optimizer.param_groups for parameter in group["params"]])
    if not groups:
        return
    places = optimizer.configurations()
    said = [(place.name, _said(optimizer, place)) for place in places]
    digest = int.from_bytes(hashlib.sha256(repr(said).encode()).digest()[:7], "little")
    device = places[0].parameter.device
    extremes = torch.tensor([digest, -digest], device=device)
    for group in groups:
        torch.distributed.all_reduce(extremes, torch.distributed.ReduceOp.MAX, group=group)
    if extremes[0] == -extremes[1]:
        return
    everyones: list[Any] = [said]
    for group in groups:
        gathered: list[Any] = [None] * torch.distributed.get_world_size(group)
        torch.distributed.all_gather_object(gathered, everyones, group=group)
        everyones = [one for some in gathered for one in some]
    raise ValueError(f"{type(optimizer).__name__}: {_difference(everyones)}; every process must say the same")


def _groups(parameters: Sequence[torch.Tensor]) -> list[Any]:
    meshes = dict.fromkeys(p.device_mesh for p in parameters if sharding.is_sharded(p))
    return list(dict.fromkeys(mesh.get_group(dim) for mesh in meshes for dim in range(mesh.ndim)))


def _said(optimizer: "BlockwiseOptimizer", place: Place) -> dict[str, Any]:
    keys = [*spec.COMMON, *optimizer.options, *options.CONSTRUCTOR_ONLY]
    config = {key: place.config[key] for key in keys if key in place.config}
    plain = {key: value.item() if isinstance(value, torch.Tensor) else value for key, value in config.items()}
    return {"shape": tuple(place.parameter.shape), "dtype": str(place.parameter.dtype), **plain}


def _difference(everyones: Sequence[Sequence[tuple[str, dict[str, Any]]]]) -> str:
    first = everyones[0]
    for one in everyones[1:]:
        if len(one) != len(first):
            return f"a process has {len(first)} parameters, another {len(one)}"
        for (name, ours), (other, theirs) in zip(first, one, strict=True):
            if name != other:
                return f"the processes disagree about the order: {name} here, {other} there"
            for key in ours:
                if ours[key] != theirs[key]:
                    return f"the processes disagree about {name}: {key}={ours[key]!r} and {key}={theirs[key]!r}"
    return "the processes disagree"
