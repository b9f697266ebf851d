"""The first step against a later one, each time in a process where nothing has run yet.

The first step makes the state; where a peer compiles, it waits for the compiler, which finds nothing on disk of what it
compiled before. Importing libraries and building the optimizer are not part of it.
"""

import argparse
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from benchmarks import alone
from benchmarks import cell as cells
from benchmarks.machine import cpus
from benchmarks.peers import BITSANDBYTES, TORCH_FUSED, TORCHAO, Peer
from benchmarks.report import columns, spread
from benchmarks.timing import paired_ratio, summary

HELP = "the first step against a later one, in new processes"
DEFAULTS = {
    "shapes": ["large", "small"],
    "rules": ["adamw"],
    "dtypes": ["fp32"],
    "threads": [cpus()],
    "bits": [8],
    "peers": [TORCH_FUSED, BITSANDBYTES, TORCHAO],
    "repeats": 5,
    "limit": 600.0,
}
QUICK = {"peers": [TORCH_FUSED, BITSANDBYTES], "repeats": 3, "limit": 60.0}

LATER = 5
"""Steps after the first; their median is the later step."""


add_arguments = alone.add_arguments


def timed(**which: Any) -> dict[str, float]:
    """In a new process: seconds of the first step, and the median of later ones."""
    params, build = alone.prepare(**which)
    optimizer = build(params)
    seconds = []
    for _ in range(1 + LATER):
        start = time.perf_counter()
        optimizer.step()
        seconds.append(time.perf_counter() - start)
    return {"first": seconds[0], "later": statistics.median(seconds[1:])}


def measure(cell: cells.Cell, peers: Sequence[Peer], args: argparse.Namespace) -> cells.Outcome:
    """One cell: the ratio is of the two steps in the same process."""
    found, left_out = alone.collect("benchmarks.first_step:timed", cell, peers, args.repeats, args.limit)
    rows = []
    for peer, results in found.items():
        first, later = ([result[key] for result in results] for key in ("first", "later"))
        measured = {"first": summary(first), "later": summary(later), "ratio": paired_ratio(first, later)}
        rows.append(alone.row(cell, peer, processes=results, **measured))
    return cells.Outcome(rows, left_out)


def table(rows: list[dict[str, Any]]) -> Table:
    """A line for each optimizer."""
    names = ("shapes, rule, dtype, threads", "optimizer", "first ms", "middle half", "later ms", "middle half")
    result = columns("First step", *names, "first / later", "middle half", "processes", left=2)
    for row in rows:
        cells_of_row = (*spread(row["first"], 1e3), *spread(row["later"], 1e3), *spread(row["ratio"]))
        here = "{shapes}, {rule}, {dtype}, {threads}".format(**row)
        result.add_row(here, row["optimizer"], *cells_of_row, str(row["ratio"]["count"]))
    return result


def draw(rows: list[dict[str, Any]], path: Path, caption: str) -> None:
    """One panel: how many times a later step the first one takes."""
    from benchmarks import picture

    figure, (panel,) = picture.panels(1, width=7)
    values: dict[str, dict[str, Any]] = {}
    for row in rows:
        group = f"{row['title']}\n{row['rule']}, {row['dtype']}, threads: {row['threads']}"
        values.setdefault(group, {})[row["optimizer"]] = row["ratio"]
    picture.bars(panel, values)
    panel.axhline(1, color="black", lw=0.8)
    panel.set(yscale="log", ylabel="first step / later step")
    picture.save(figure, path, caption)
