"""Each optimizer of a cell in processes of its own: those measure, this collects. Knows nothing of what is measured."""

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import nn

from benchmarks import peers as registry
from benchmarks.arguments import seconds
from benchmarks.cell import DTYPES, Cell, make, needed
from benchmarks.machine import memory
from benchmarks.peers import Peer
from benchmarks.process import Failed, call

Found = dict[Peer, list[dict[str, float]]]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options that only new processes have."""
    parser.add_argument("--limit", type=seconds, metavar="SECONDS", help="for one process, with start and compilation")


def collect(
    function: str,
    cell: Cell,
    peers: Sequence[Peer],
    repeats: int,
    limit: float,
    environment: Mapping[str, str] | None = None,
) -> tuple[Found, list[dict[str, str]]]:
    """Calls a function in a new process for each optimizer and repetition, the optimizers taking turns.

    Args:
        function: ``module:name``; gets the arguments of `prepare`.
        cell: What is stepped.
        peers: Those without the cell's rule are passed over.
        repeats: Processes for each.
        limit: Seconds for each process.
        environment: Variables to set in it.

    Returns:
        (what the function returned, by optimizer, and who was left out, and why).
    """
    found: Found = {peer: [] for peer in peers if cell.rule in peer.rules}
    left_out = []
    for _ in range(repeats):
        for peer in list(found):
            try:
                found[peer].append(_once(function, cell, peer, limit, environment))
            except Failed as error:
                del found[peer]
                left_out.append({"what": f"{peer.name}: {cell}", "why": str(error)})
    return found, left_out


def _once(
    function: str, cell: Cell, peer: Peer, limit: float, environment: Mapping[str, str] | None
) -> dict[str, float]:
    needs, available = needed(cell, [peer]), memory("MemAvailable")
    if available is not None and needs > available:
        raise Failed(f"needs {needs / 1e9:.1f} GB of memory, {available / 1e9:.1f} GB are available")
    return call(function, {"library": peer.library, "bits": peer.bits, **asdict(cell)}, limit, environment)


def prepare(
    library: str, bits: int | None, shapes: str, rule: str, dtype: str, threads: int
) -> tuple[list[nn.Parameter], Callable[[list[nn.Parameter]], torch.optim.Optimizer]]:
    """In the new process: parameters with gradients, and what builds the optimizer for them."""
    torch.set_num_threads(threads)
    params = make(shapes, DTYPES[dtype])
    for parameter in params:
        parameter.grad = torch.randn(parameter.shape).to(parameter.dtype)
    peer = registry.one(library, bits)
    return params, lambda some: peer.build(rule, some)


def row(cell: Cell, peer: Peer, **measured: Any) -> dict[str, Any]:
    """A row of the result."""
    return {**cell.labels(), "optimizer": peer.name, "bits": peer.bits, **measured}
