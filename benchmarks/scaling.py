"""Time per step as tensors and threads grow: 1M to 512M parameters in one tensor, 1 to all threads."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from benchmarks import cell as cells
from benchmarks import step
from benchmarks.machine import cpus
from benchmarks.peers import TORCH_FUSED, Peer
from benchmarks.report import columns, number, spread

HELP = "time per step from 1M to 512M parameters and from one thread to all"
DEFAULTS = {
    "shapes": [f"{2**power}M" for power in range(10)],
    "rules": ["adamw"],
    "dtypes": ["fp32"],
    "threads": sorted({*(2**power for power in range(cpus().bit_length())), cpus()}),
    "bits": [8],
    "peers": [TORCH_FUSED],
    "repeats": 15,
    "budget": 5.0,
}
QUICK = {"shapes": ["1M", "4M", "16M"], "repeats": 5, "budget": 1.0}

add_arguments = step.add_arguments


def measure(cell: cells.Cell, peers: Sequence[Peer], args: argparse.Namespace) -> cells.Outcome:
    """One cell."""
    return step.measure(cell, peers, args)


def table(rows: list[dict[str, Any]]) -> Table:
    """A line for each size, number of threads and optimizer; how much faster than on the fewest threads."""
    names = ("shapes, rule, dtype", "optimizer", "threads", "ms", "middle half", "ns/param", "of copy", "speed-up")
    result = columns("Time per step by size and threads", *names, left=2)
    first: dict[tuple, float] = {}
    for row in sorted(rows, key=lambda row: (row["rule"], row["dtype"], row["parameters"], row["optimizer"])):
        what = row["shapes"], row["rule"], row["dtype"], row["optimizer"]
        median, quartiles = spread(row["time"], 1e3)
        result.add_row(
            ", ".join(what[:3]),
            row["optimizer"],
            str(row["threads"]),
            median,
            quartiles,
            number(row["ns per parameter"]),
            f"{row['share of copy bandwidth']:.0%}",
            f"{number(first.setdefault(what, row['time']['median']) / row['time']['median'])}x",
        )
    return result


def draw(rows: list[dict[str, Any]], path: Path, caption: str) -> None:
    """A panel for each dtype: nanoseconds per parameter over size, paler with fewer threads."""
    from benchmarks import picture

    kinds = list(dict.fromkeys((row["rule"], row["dtype"]) for row in rows))
    threads = sorted({row["threads"] for row in rows})
    figure, axes = picture.panels(len(kinds))
    for panel, kind in zip(axes, kinds, strict=True):
        for index, count in enumerate(threads):
            values: dict[str, dict[float, Any]] = {}
            for row in rows:
                if (row["rule"], row["dtype"]) == kind and row["threads"] == count:
                    per_parameter = {key: 1e9 * row["time"][key] / row["parameters"] for key in ("median", "q1", "q3")}
                    values.setdefault(row["optimizer"], {})[row["parameters"]] = per_parameter
            picture.lines(panel, values, alpha=(index + 1) / len(threads))
        panel.set_xscale("log", base=2)
        panel.set_yscale("log")
        panel.set(xlabel="parameters", ylabel="ns per parameter and step")
        panel.set_title(f"{', '.join(kind)}; threads: {', '.join(map(str, threads))} (fewer are paler)")
    picture.save(figure, path, caption)
