"""Steps of parameters on a GPU whose state is kept in host memory: it comes and goes in chunks, beside the arithmetic.

While one chunk is stepped, the next one arrives and the last one leaves, each on a stream of its own. What the device
does after the step comes after the last chunk has left. Knows calls and streams; no rule, no group.
"""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from typing_extensions import override

from torch_bnb import ops
from torch_bnb.codec import BLOCK_SIZE
from torch_bnb.optim import state as storage
from torch_bnb.optim.calls import Call, Grid
from torch_bnb.optim.state import HISTORY, Form

CHUNK_BYTES = 32 * 2**20
"""Of state that travels together: enough to fill the bus, and little beside a model."""

ROOMS = 3
"""Chunks on the device at a time: one that arrives, one that is stepped, one that leaves."""

ALIGNMENT = 16
"""Of tensors on the device, in bytes: what a kernel reads at once."""


class Extent(NamedTuple):
    """How much state a parameter has, and how it may be cut."""

    numel: int
    unit: int
    """Elements that stay together; the last unit may be shorter."""
    nbytes: int
    """Of all its states."""


class Piece(NamedTuple):
    """Elements of one parameter."""

    index: int
    """Of the parameter."""
    begin: int
    end: int


def chunks(extents: Sequence[Extent], limit: int) -> list[list[Piece]]:
    """Cuts state into chunks, in order.

    Args:
        extents: Of each parameter.
        limit: Bytes of a chunk. A unit that is larger is a chunk by itself.

    Returns:
        Chunks that cover every parameter once; of one parameter, each has one piece at most. An empty parameter has an
        empty piece.
    """
    planned: list[list[Piece]] = [[]]
    left = limit
    for index, (numel, unit, nbytes) in enumerate(extents):
        units = math.ceil(numel / unit) if numel else 0
        each = math.ceil(nbytes / units) if units else 0
        if not units:
            planned[-1].append(Piece(index, 0, 0))
        done = 0
        while done < units:
            fit = min(units - done, left // each if each else units)
            if fit <= 0 and planned[-1]:
                planned.append([])
                left = limit
                continue
            fit = max(1, fit)
            planned[-1].append(Piece(index, done * unit, min(numel, (done + fit) * unit)))
            done += fit
            left -= fit * each
    return planned if planned[-1] else []


class Lane:
    """What a device does one after the other: a CUDA stream."""

    def __init__(self, stream: torch.cuda.Stream) -> None:
        self._stream = stream

    def do(self, work: Callable[[], Any]) -> None:
        """Has the device do what `work` launches."""
        with torch.cuda.stream(self._stream):
            work()

    def mark(self) -> torch.cuda.Event:
        """A mark behind all that has been given to it."""
        return self._stream.record_event()

    def wait(self, mark: torch.cuda.Event) -> None:
        """What follows waits for another lane's mark; the host does not."""
        self._stream.wait_event(mark)


class Lanes(NamedTuple):
    """The three of a step."""

    arriving: Lane
    stepping: Lane
    leaving: Lane


@functools.cache
def _side_streams(device: torch.device) -> tuple[torch.cuda.Stream, torch.cuda.Stream]:
    return torch.cuda.Stream(device), torch.cuda.Stream(device)


def lanes_of(device: torch.device) -> Lanes:
    """Two streams for copies beside the current one."""
    arriving, leaving = _side_streams(device)
    return Lanes(Lane(arriving), Lane(torch.cuda.current_stream(device)), Lane(leaving))


@dataclass
class Chunk:
    """The operator's arguments for some pieces, with state where it is kept."""

    params: list[Tensor]
    grads: list[Tensor]
    values: list[Tensor]
    absmax: list[Tensor]
    keywords: dict[str, Any]

    @property
    def nbytes(self) -> int:
        """What its state takes on the device."""
        return sum(_aligned(tensor.nbytes) for tensor in (*self.values, *self.absmax))

    def settle_in(self, room: Tensor) -> "Chunk":
        """The same with state in a room on the device, uint8 of at least `nbytes`. Nothing is copied yet."""
        count, state = len(self.values), [*self.values, *self.absmax]
        taken = [_aligned(tensor.nbytes) for tensor in state]
        room = room[: sum(taken)]
        places = {
            dtype: room.view(dtype).split([nbytes // dtype.itemsize for nbytes in taken])
            for dtype in {tensor.dtype for tensor in state}
        }
        here = [_part(places[tensor.dtype][i], 0, tensor.numel()) for i, tensor in enumerate(state)]
        return Chunk(self.params, self.grads, here[:count], here[count:], self.keywords)

    def copy_state_to(self, other: "Chunk") -> None:
        """Copies its state into the other's, without waiting."""
        sources = [tensor for tensor in (*self.values, *self.absmax) if tensor.numel() > 0]
        targets = [tensor for tensor in (*other.values, *other.absmax) if tensor.numel() > 0]
        if targets:
            torch._foreach_copy_(targets, sources, non_blocking=True)

    def step(self, rule: str, scalars: Mapping[str, float]) -> None:
        """Steps it; its state is on the device."""
        ops.update(rule, self.params, self.grads, self.values, self.absmax, scalars, **self.keywords)


def _aligned(nbytes: int) -> int:
    return -(-nbytes // ALIGNMENT) * ALIGNMENT


def _flat(tensor: Tensor) -> Tensor:
    return tensor if tensor.dim() == 1 else tensor.view(-1)


def _part(tensor: Tensor, begin: int, end: int) -> Tensor:
    """Elements of a contiguous tensor: itself, if that is all."""
    return tensor if end - begin == tensor.numel() else tensor.view(-1)[begin:end]


@dataclass
class PagedCall(Call):
    """A call of parameters whose state is in host memory."""

    whole: bool = False
    """Whether the kernel must see every parameter in one piece, to measure it."""

    @override
    def finds_state(self) -> bool:
        """Also that it is still in host memory; a framework may have moved it."""
        if not super().finds_state():
            return False
        moments = (value for state in self.states for key, value in state.items() if key not in ("step", HISTORY))
        return all(tensor.device.type == "cpu" for tensor in moments)

    @override
    def update(self, rule: str, names: Mapping[str, bool]) -> None:
        planned = self._chunks(names)
        if not planned:
            return
        device = self.params[0].device
        lanes = lanes_of(device)
        size = max(chunk.nbytes for chunk in planned)
        rooms = [torch.empty(size, dtype=torch.uint8, device=device) for _ in planned[:ROOMS]]
        lanes.arriving.wait(lanes.stepping.mark())  # what the rooms' memory held before is done with
        left: list[Any] = []
        try:
            for number, kept in enumerate(planned):
                here = kept.settle_in(rooms[number % ROOMS])
                if number >= ROOMS:
                    lanes.arriving.wait(left[number - ROOMS])
                lanes.arriving.do(functools.partial(kept.copy_state_to, here))
                lanes.stepping.wait(lanes.arriving.mark())
                lanes.stepping.do(functools.partial(here.step, rule, self.scalars))
                lanes.leaving.wait(lanes.stepping.mark())
                lanes.leaving.do(functools.partial(here.copy_state_to, kept))
                left.append(lanes.leaving.mark())
        finally:
            # The rooms' memory is free for what is launched from here on, and so is the state in host memory.
            lanes.stepping.wait(lanes.arriving.mark())
            lanes.stepping.wait(lanes.leaving.mark())

    def _chunks(self, names: Mapping[str, bool]) -> list[Chunk]:
        params, grads, values, absmax = self.tensors(names)
        values, absmax = list(map(_flat, values)), list(map(_flat, absmax))  # as they lie in a room
        count = len(params)
        states = range(len(names))
        units = [self._unit(i) for i in range(count)]
        nbytes = [value.nbytes + its.nbytes for value, its in zip(values, absmax, strict=True)]
        extents = [Extent(p.numel(), units[i], sum(nbytes[i::count])) for i, p in enumerate(params)]

        def of_elements(tensor: Tensor, piece: Piece) -> Tensor:
            return _part(tensor, piece.begin, min(piece.end, tensor.numel()))  # of a state that is not there: nothing

        def of_blocks(tensor: Tensor, piece: Piece) -> Tensor:
            unit = units[piece.index]
            each = tensor.numel() // max(1, math.ceil(params[piece.index].numel() / unit))
            return _part(tensor, piece.begin // unit * each, math.ceil(piece.end / unit) * each)

        return [
            Chunk(
                [of_elements(params[piece.index], piece) for piece in chunk],
                [of_elements(grads[piece.index], piece) for piece in chunk],
                [of_elements(values[k * count + piece.index], piece) for k in states for piece in chunk],
                [of_blocks(absmax[k * count + piece.index], piece) for k in states for piece in chunk],
                self._keywords(chunk),
            )
            for chunk in chunks(extents, CHUNK_BYTES)
        ]

    def _unit(self, i: int) -> int:
        """Elements of a parameter that cannot be cut."""
        numel = max(1, self.params[i].numel())
        form = next((storage.form_of(self.states[i], name) for name in self.active), Form.FLOAT32)
        if self.whole or form is Form.WHOLE:
            return numel
        return self.grids[i].row if form is Form.ROWS else BLOCK_SIZE

    def _keywords(self, chunk: Sequence[Piece]) -> dict[str, Any]:
        """The keyword arguments of consecutive parameters' pieces."""
        part = slice(chunk[0].index, chunk[-1].index + 1)
        grids = self.grids[part] or [Grid()] * len(chunk)
        own: dict[str, Any] = {
            "keys": self.keys[part],
            "rows": [grid.row for grid in grids],
            "row_strides": [grid.stride for grid in grids],
            "origins": [grid.origin + piece.begin for grid, piece in zip(grids, chunk, strict=True)],
        }
        if self.grad_scales is not None:
            own["grad_scales"] = self.grad_scales[part]
        return {**self.keywords(), **own}
