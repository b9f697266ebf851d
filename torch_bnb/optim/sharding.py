"""Tensors of which every process holds a part (``DTensor``): the part, where it lies, how to add up over all.

The only module that knows of meshes and placements. It must not know what is kept in the tensors.
"""

import gc
import math
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


def is_sharded(tensor: Tensor | None) -> bool:
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


def layout_of(tensor: Tensor) -> tuple[Any, Any]:
    """What says which part of a sharded tensor each process holds."""
    return tensor.device_mesh, tensor.placements


def lay_out_grads(parameters: Iterable[Tensor]) -> None:
    """Lays every gradient out as its parameter is, as sequence parallelism's partial sums are not.

    Processes may plan a step differently, as parts lie otherwise in memory, but here all of them move the same
    gradients in the same order, and each one once.
    """
    for parameter in parameters:
        if is_sharded(parameter) and is_sharded(grad := parameter.grad) and layout_of(grad) != layout_of(parameter):
            parameter.grad = grad.redistribute(*layout_of(parameter))


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
    """The cuts, one after the other: of which dimension, and the length of a full piece."""

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
        dims = [dim for dim, _ in self.cuts]
        if not self.affine or max(dims, default=0) > 1 or dims.count(1) > 1:
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
    mesh, order = parameter.device_mesh, _order_of_cuts(parameter)
    shape, offset, cuts = list(whole), [0] * len(whole), []
    for mesh_dim in order or ():
        dim = parameter.placements[mesh_dim].dim % len(whole)
        piece = math.ceil(shape[dim] / mesh.size(mesh_dim))  # as torch.chunk cuts
        first = min(mesh.get_local_rank(mesh_dim) * piece, shape[dim])
        cuts.append((dim, piece))
        offset[dim] += first
        shape[dim] = min(piece, shape[dim] - first)
    here = tuple(parameter.to_local().shape)
    return Part(here, tuple(offset), whole, order is not None and here == tuple(shape), tuple(cuts))


def _order_of_cuts(tensor: Tensor) -> list[int] | None:
    """The mesh dimensions that cut a sharded tensor, in the order in which they do; None if that cannot be told.

    A strided shard is FSDP2's cut of what tensor parallelism has cut in the same dimension before, over a mesh
    dimension that comes later: there are `split_factor` pieces by then. If those are uneven, FSDP2's are not the
    ones that its placements say.
    """
    mesh = tensor.device_mesh
    cutting = {dim: p for dim, p in enumerate(tensor.placements) if not p.is_replicate() and mesh.size(dim) > 1}
    kinds = {dim: type(placement).__name__ for dim, placement in cutting.items()}
    strided = [dim for dim in cutting if kinds[dim] == "_StridedShard"]
    if set(kinds.values()) - {"Shard", "_StridedShard"}:  # partial sums
        return None
    for dim in strided:
        before = [later for later in cutting if later > dim and cutting[later].dim == cutting[dim].dim]
        pieces = math.prod(map(mesh.size, before))
        if pieces != cutting[dim].split_factor or tensor.shape[cutting[dim].dim] % pieces:
            return None
    return [dim for dim in cutting if dim not in strided] + strided[::-1]


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
    order = _order_of_cuts(like)
    if order is None:
        raise ValueError(
            f"a tensor of shape {tuple(whole.shape)} that is whole cannot be cut as {like.placements} says (uneven "
            "tensor parallelism within FSDP2); load a sharded checkpoint, and shard a model before its optimizer steps"
        )
    here = whole
    for mesh_dim in order:
        dim, count = like.placements[mesh_dim].dim, like.device_mesh.size(mesh_dim)
        rank, pieces = like.device_mesh.get_local_rank(mesh_dim), here.chunk(count, dim)
        here = pieces[rank] if rank < len(pieces) else here.narrow(dim, 0, 0)
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
