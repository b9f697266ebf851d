"""Tensors of which every process holds a part (``DTensor``): the part, where it lies, how to add up over all.

The only module that knows of meshes and placements. It must not know what is kept in the tensors.
"""

import gc
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


def is_sharded(tensor: Tensor) -> bool:
    """Whether a tensor is a ``DTensor``, be it replicated."""
    known = sys.modules.get("torch.distributed.tensor")  # slow to import; without it there are none
    return known is not None and isinstance(tensor, known.DTensor)


def local(tensor: Tensor) -> Tensor:
    """What this process holds of a tensor, detached; of a plain tensor all of it."""
    if not is_sharded(tensor):
        return tensor
    with torch.no_grad():
        return tensor.to_local()


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor, detached. Of a sharded one every process must ask."""
    return tensor.detach().full_tensor() if is_sharded(tensor) else tensor


def is_laid_out_alike(grad: Tensor, parameter: Tensor) -> bool:
    """Whether processes hold the same parts of a parameter and its gradient; so it is if neither is sharded."""
    if not is_sharded(grad) or not is_sharded(parameter):
        return is_sharded(grad) is is_sharded(parameter)
    return (grad.device_mesh, grad.placements) == (parameter.device_mesh, parameter.placements)


def local_grad(grad: Tensor, parameter: Tensor) -> Tensor:
    """What this process holds of a parameter's gradient, laid out as the parameter is."""
    if is_sharded(grad) and not is_laid_out_alike(grad, parameter):
        grad = grad.redistribute(parameter.device_mesh, parameter.placements)
    return local(grad)


@dataclass(frozen=True)
class Part:
    """Where the part of a parameter that a process holds lies in the whole."""

    shape: tuple[int, ...]
    offset: tuple[int, ...]
    """Of its first element, by dimension."""
    whole: tuple[int, ...]
    """Shape of the whole."""
    affine: bool
    """Whether it is one box of the whole. If not, `offset` means nothing."""
    cuts: tuple[tuple[int, int], ...]
    """The dimensions that are cut, each with the length of a full piece."""

    @property
    def row(self) -> int:
        """Elements of a row (all but the first dimension) here."""
        return math.prod(self.shape[1:])

    @property
    def row_stride(self) -> int:
        """Elements of a row of the whole."""
        return math.prod(self.whole[1:])

    @property
    def origin(self) -> int:
        """Index in the whole of the first element here."""
        if not self.whole:
            return 0
        inner = math.prod(self.whole[2:])
        return self.offset[0] * self.row_stride + sum(first * inner for first in self.offset[1:2])

    def keeps_blocks_whole(self, blocksize: int) -> bool:
        """Whether no block of the whole's rows is cut, nor laid out otherwise than their absmax are.

        A cut of the first dimension is one between rows. One of the second must be between blocks, on every process.
        """
        if not self.affine or any(dim > 1 for dim, _ in self.cuts):
            return False
        inner = math.prod(self.whole[2:])
        for dim, piece in self.cuts:
            if dim == 1:
                pieces = math.ceil(self.whole[1] / piece)
                in_blocks = math.ceil(math.ceil(self.row_stride / blocksize) / pieces)
                if piece * inner != in_blocks * blocksize:
                    return False
        return True


def part_of(parameter: Tensor) -> Part:
    """Where this process's part of a parameter lies."""
    whole = tuple(parameter.shape)
    if not is_sharded(parameter):
        return Part(whole, (0,) * len(whole), whole, True, ())
    shape, offset, cuts = list(whole), [0] * len(whole), []
    affine = True
    mesh = parameter.device_mesh
    for mesh_dim, placement in enumerate(parameter.placements):
        if placement.is_replicate():
            continue
        if type(placement).__name__ != "Shard":  # partial sums, strided shards
            affine = False
            continue
        dim = placement.dim % len(whole)
        affine = affine and dim not in (cut for cut, _ in cuts)  # cut twice: pieces of pieces
        piece = math.ceil(shape[dim] / mesh.size(mesh_dim))  # as torch.chunk cuts
        first = min(mesh.get_local_rank(mesh_dim) * piece, shape[dim])
        cuts.append((dim, piece))
        offset[dim] += first
        shape[dim] = min(piece, shape[dim] - first)
    here = tuple(parameter.to_local().shape)
    return Part(here, tuple(offset), whole, affine and here == tuple(shape), tuple(cuts))


def wrap(here: Tensor, like: Tensor, shape: Sequence[int] | None = None) -> Tensor:
    """A tensor laid out as another is: what `here` is of it.

    Args:
        here: This process's part.
        like: A parameter; if it is plain, `here` is all.
        shape: Of the whole; None: the parameter's.
    """
    if not is_sharded(like):
        return here
    from torch.distributed.tensor import DTensor

    shape = torch.Size(like.shape if shape is None else shape)
    stride = tuple(math.prod(shape[dim + 1 :]) for dim in range(len(shape)))
    return DTensor.from_local(here, like.device_mesh, like.placements, run_check=False, shape=shape, stride=stride)


def take(whole: Tensor, like: Tensor) -> Tensor:
    """This process's part of a tensor that it has whole, laid out as a parameter of the same dimensions is.

    Raises:
        ValueError: The parameter's parts are no pieces of the whole, one after the other.
    """
    from torch.distributed.tensor import Shard

    here = whole
    for mesh_dim, placement in enumerate(like.placements):
        if type(placement) is not Shard and not placement.is_replicate():
            raise ValueError(
                f"a tensor of shape {tuple(whole.shape)} that is whole cannot be cut as {like.placements} says (tensor "
                "parallelism within FSDP2); load a sharded checkpoint, and shard a model before its optimizer steps"
            )
        if isinstance(placement, Shard):
            rank, count = like.device_mesh.get_local_rank(mesh_dim), like.device_mesh.size(mesh_dim)
            pieces = here.chunk(count, placement.dim)
            here = pieces[rank] if rank < len(pieces) else here.narrow(placement.dim, 0, 0)
    return wrap(here.contiguous().to(like.device), like, whole.shape)


def groups_of(parameter: Tensor) -> tuple[Any, ...]:
    """The process groups over which sums of parts are sums of the whole, one after the other."""
    if not is_sharded(parameter):
        return ()
    mesh = parameter.device_mesh
    sharded = (dim for dim, placement in enumerate(parameter.placements) if not placement.is_replicate())
    return tuple(mesh.get_group(dim) for dim in sharded if mesh.size(dim) > 1)


def add_up(sums: Tensor, groups: Sequence[Any]) -> None:
    """Sums of this process become sums of all, in place. Every process of the groups calls it."""
    for group in groups:
        torch.distributed.all_reduce(sums, group=group)


def flat_gradients() -> list[tuple[int, ...]]:
    """Shapes of all parameters that FSDP1 has made of others by flattening them and that have a gradient."""
    if "torch.distributed.fsdp" not in sys.modules:
        return []
    tensors = (thing for thing in gc.get_objects() if issubclass(type(thing), Tensor))
    flat = (tensor for tensor in tensors if vars(tensor).get("_is_flat_param", False))
    return [tuple(parameter.shape) for parameter in flat if parameter.grad is not None]
