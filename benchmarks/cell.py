"""One cell of a benchmark's grid: every optimizer there is for it, stepped in turn on the same machine state."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from benchmarks.bandwidth import cache_sweep, copy_bandwidth
from benchmarks.machine import memory
from benchmarks.peers import BITSANDBYTES, OURS, TORCH_FOREACH, TORCHAO, Peer
from benchmarks.shapes import parameters, shapes, title
from benchmarks.timing import alternate, paired_ratio, summary
from benchmarks.traffic import state_bytes, step_bytes

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
CACHES = ("cold", "warm")

WARM_UP = 2
"""Steps before the first that is timed; the first of them makes the state, and compiles where a peer compiles."""

TEMPORARIES = {TORCH_FOREACH: 4, BITSANDBYTES: 20, TORCHAO: 8}
"""Bytes per parameter that a step takes and gives back, found by `benchmarks memory`; to check that memory suffices."""


@dataclass(frozen=True)
class Cell:
    """Where optimizers meet."""

    shapes: str
    rule: str
    dtype: str
    """From `DTYPES`, of parameters and gradients."""
    threads: int

    def labels(self) -> dict[str, Any]:
        """What a row says of its cell."""
        return {**asdict(self), "title": title(self.shapes)}

    def __str__(self) -> str:
        return f"{self.shapes} {self.rule} {self.dtype}, {self.threads} thread{'s' * (self.threads > 1)}"


@dataclass
class Outcome:
    """What a cell gave: a row for each optimizer, and who was left out, and why."""

    rows: list[dict[str, Any]]
    left_out: list[dict[str, str]]


def make(names: str, dtype: torch.dtype) -> list[nn.Parameter]:
    """Random parameters; a gradient is the caller's."""
    return [nn.Parameter(torch.randn(shape).to(dtype)) for shape in shapes(names)]


def needed(cell: Cell, peers: Sequence[Peer]) -> int:
    """Bytes of memory that a cell takes: gradients are shared, parameters and state are each optimizer's own."""
    dtype, count = DTYPES[cell.dtype], parameters(cell.shapes)
    states = sum(state_bytes(cell.shapes, cell.rule, dtype, peer.bits) for peer in peers)
    temporaries = max([4, *(TEMPORARIES.get(peer.library, 0) for peer in peers)])  # 4: a random number not yet rounded
    return count * (dtype.itemsize * (1 + len(peers)) + temporaries) + states


def measure(cell: Cell, peers: Sequence[Peer], repeats: int, budget: float, cache: str = "cold") -> Outcome:
    """Steps everything that has the cell's rule, in turn.

    Args:
        cell: What and how.
        peers: Ours and others.
        repeats: Rounds.
        budget: Seconds of stepping after which an optimizer sits out further rounds.
        cache: Before each timed step, ``cold``: the caches hold something else; ``warm``: the same step has just run.

    Returns:
        A row for each optimizer: its times by round, their summary, and for ours the paired ratios against the others.
    """
    peers = [peer for peer in peers if cell.rule in peer.rules]
    available = memory("MemAvailable")
    if available is not None and needed(cell, peers) > available:
        why = f"needs {needed(cell, peers) / 1e9:.1f} GB of memory, {available / 1e9:.1f} GB are available"
        return Outcome([], [{"what": str(cell), "why": why}])
    threads = torch.get_num_threads()
    torch.set_num_threads(cell.threads)
    try:
        return _measure(cell, peers, repeats, budget, cache)
    finally:
        torch.set_num_threads(threads)


def _measure(cell: Cell, peers: Sequence[Peer], repeats: int, budget: float, cache: str) -> Outcome:
    steps: dict[str, Callable[[], object]] = {}
    left_out = []
    dtype = DTYPES[cell.dtype]
    grads = [torch.randn(shape).to(dtype) for shape in shapes(cell.shapes)]
    for peer in peers:
        params = make(cell.shapes, dtype)
        for parameter, grad in zip(params, grads, strict=True):
            parameter.grad = grad
        try:
            optimizer = peer.build(cell.rule, params)
            for _ in range(WARM_UP):
                optimizer.step()
        except Exception as error:  # whatever a peer cannot do is part of the result
            left_out.append({"what": f"{peer.name}: {cell}", "why": reason(error)})
        else:
            steps[peer.name] = optimizer.step
    copy = copy_bandwidth()
    sweep = cache_sweep()
    before = (lambda step: sweep()) if cache == "cold" else (lambda step: step())
    times = alternate(steps, repeats, before, budget)
    rows = [_row(cell, peer, times, copy) for peer in peers if peer.name in times]
    return Outcome(rows, left_out)


def _row(cell: Cell, peer: Peer, times: dict[str, list[float | None]], copy: float) -> dict[str, Any]:
    own = times[peer.name]
    time, count = summary(own), parameters(cell.shapes)
    moved = step_bytes(cell.shapes, cell.rule, DTYPES[cell.dtype], peer.bits)
    against = {}
    if peer.library == OURS:
        against = {name: paired_ratio(own, other) for name, other in times.items() if name != peer.name}
    return {
        **cell.labels(),
        "parameters": count,
        "optimizer": peer.name,
        "bits": peer.bits,
        "seconds": [None if t is None else float(f"{t:.4g}") for t in own],
        "time": time,
        "ns per parameter": 1e9 * time["median"] / count,
        "bytes per parameter": moved / count,
        "copy bandwidth": copy,
        "share of copy bandwidth": moved / time["median"] / copy,
        "against": against,
    }


def reason(error: Exception) -> str:
    """An error in one line."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__
