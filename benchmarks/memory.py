"""Peak memory of building an optimizer and three steps, beside the bytes of its state. Linux only: it reads /proc.

Each measurement has a process of its own. There, one optimizer with a step on other parameters of the same shapes comes
first and is thrown away, so that threads, compiled code and the allocator's own memory are there already. Then the
kernel's mark of the peak is put back to what is resident now, and whatever it rises by belongs to the second optimizer.
What it rises above the state is temporary: a copy of a tensor, a float32 form of the state.
"""

import argparse
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from torch import nn

import torch_bnb as bnb
from benchmarks import alone
from benchmarks import cell as cells
from benchmarks.machine import cpus
from benchmarks.peers import LIBRARIES, OURS, TORCHAO, Peer
from benchmarks.report import columns
from benchmarks.shapes import parameters
from benchmarks.timing import summary
from benchmarks.traffic import state_bytes

HELP = "peak memory of an optimizer, beside the bytes of its state"
DEFAULTS = {
    "shapes": ["64M", "gpt2"],
    "rules": ["adamw"],
    "dtypes": ["fp32", "bf16"],
    "threads": [cpus()],
    "bits": [8, 32],
    "peers": list(LIBRARIES),
    "repeats": 3,
    "limit": 600.0,
}
QUICK = {
    "shapes": ["16M"],
    "dtypes": ["fp32"],
    "peers": [library for library in LIBRARIES if library != TORCHAO],
    "repeats": 1,
    "limit": 60.0,
}

STEPS = 3

RETURNED = {"MALLOC_MMAP_THRESHOLD_": str(64 * 1024)}
"""With it glibc gives every freed tensor back to the system at once, and resident memory is memory in use."""


add_arguments = alone.add_arguments


def resident() -> dict[str, int]:
    """Bytes of this process that are resident: ``VmRSS`` now, and ``VmHWM`` at most since `forget_peak`."""
    status = Path("/proc/self/status").read_text()
    return {key: 1024 * int(size) for key, size in re.findall(r"^(VmRSS|VmHWM):\s*(\d+) kB$", status, re.MULTILINE)}


def forget_peak() -> None:
    """Puts ``VmHWM`` to what is resident now (proc(5), clear_refs)."""
    Path("/proc/self/clear_refs").write_text("5")


def weighed(**which: Any) -> dict[str, float]:
    """In a new process: bytes that the peak rose by, that stayed, and that `torch_bnb.report` counts as state."""
    params, build = alone.prepare(**which)
    _throw_away_one(params, build)
    forget_peak()
    before = resident()["VmRSS"]
    optimizer = build(params)
    for _ in range(STEPS):
        optimizer.step()
    after = resident()
    return {
        "peak": after["VmHWM"] - before,
        "stayed": after["VmRSS"] - before,
        "reported": bnb.report(optimizer).total.state,
    }


def _throw_away_one(params: list[nn.Parameter], build: Callable[[list[nn.Parameter]], torch.optim.Optimizer]) -> None:
    others = [nn.Parameter(parameter.detach().clone()) for parameter in params]
    for other, parameter in zip(others, params, strict=True):
        other.grad = parameter.grad
    build(others).step()


def measure(cell: cells.Cell, peers: Sequence[Peer], args: argparse.Namespace) -> cells.Outcome:
    """One cell; everything is bytes per parameter."""
    found, left_out = alone.collect("benchmarks.memory:weighed", cell, peers, args.repeats, args.limit, RETURNED)
    count, dtype = parameters(cell.shapes), cells.DTYPES[cell.dtype]
    rows = []
    for peer, results in found.items():
        measured = {
            "parameters": count,
            "planned": state_bytes(cell.shapes, cell.rule, dtype, peer.bits) / count,
            # torchao's state is a subclass that says float32 of itself, so only ours is asked
            "reported": results[0]["reported"] / count if peer.library == OURS else None,
            "stayed": summary(result["stayed"] / count for result in results),
            "peak": summary(result["peak"] / count for result in results),
            "temporary": summary((result["peak"] - result["stayed"]) / count for result in results),
        }
        rows.append(alone.row(cell, peer, processes=results, **measured))
    return cells.Outcome(rows, left_out)


def table(rows: list[dict[str, Any]]) -> Table:
    """A line for each optimizer, in bytes per parameter."""
    names = ("shapes, rule, dtype", "optimizer", "state, computed", "state, by report", "stayed", "peak", "temporary")
    result = columns("Memory, bytes per parameter", *names, left=2)
    for row in rows:
        result.add_row(
            "{shapes}, {rule}, {dtype}".format(**row),
            row["optimizer"],
            f"{row['planned']:.3f}",
            "" if row["reported"] is None else f"{row['reported']:.3f}",
            *(f"{row[key]['median']:.3f}" for key in ("stayed", "peak", "temporary")),
        )
    return result


def draw(rows: list[dict[str, Any]], path: Path, caption: str) -> None:
    """One panel: what the peak rises by."""
    from benchmarks import picture

    values: dict[str, dict[str, Any]] = {}
    for row in rows:
        values.setdefault(f"{row['title']}\n{row['rule']}, {row['dtype']}", {})[row["optimizer"]] = row["peak"]
    figure, (panel,) = picture.panels(1, width=4 + 2 * len(values))
    picture.bars(panel, values)
    panel.set(ylabel="bytes per parameter, at the peak of three steps")
    picture.save(figure, path, caption)
