"""Time per step, beside the peers: shapes x rules x dtypes x threads x widths of state."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from benchmarks import cell as cells
from benchmarks.arguments import seconds
from benchmarks.machine import cpus
from benchmarks.peers import BITSANDBYTES, LIBRARIES, TORCH_FOREACH, TORCH_FUSED, Peer
from benchmarks.report import columns, number, spread
from benchmarks.shapes import NAMED

HELP = "time per step, beside the peers"
DEFAULTS = {
    "shapes": list(NAMED),
    "rules": ["adamw"],
    "dtypes": list(cells.DTYPES),
    "threads": [cpus()],
    "bits": [8, 32],
    "peers": list(LIBRARIES),
    "repeats": 30,
    "budget": 3.0,
}
QUICK = {
    "shapes": ["large", "small"],
    "dtypes": ["fp32", "bf16"],
    "peers": [TORCH_FUSED, TORCH_FOREACH, BITSANDBYTES],
    "repeats": 10,
    "budget": 1.0,
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options that only timed steps have."""
    parser.add_argument(
        "--budget",
        type=seconds,
        metavar="SECONDS",
        help="of stepping, after which an optimizer sits out rounds",
    )
    parser.add_argument(
        "--cache",
        choices=cells.CACHES,
        default="cold",
        help="before each timed step: other data in the caches (cold), or the same step (warm)",
    )


def measure(cell: cells.Cell, peers: Sequence[Peer], args: argparse.Namespace) -> cells.Outcome:
    """One cell."""
    return cells.measure(cell, peers, args.repeats, args.budget, args.cache)


def table(rows: list[dict[str, Any]]) -> Table:
    """A section for each cell, a line for each optimizer."""
    ours = [name for name in dict.fromkeys(row["optimizer"] for row in rows if row["against"])]
    ratios = [f"{name.removeprefix('torch_bnb ')} / it" for name in ours]
    names = (
        "shapes, rule, dtype, threads",
        "optimizer",
        "ms",
        "middle half",
        "ns/param",
        "B/param",
        "of copy",
        *ratios,
    )
    result = columns("Time per step", *names, left=2)
    previous = None
    for row in rows:
        here = row["shapes"], row["rule"], row["dtype"], row["threads"]
        if previous not in (None, here):
            result.add_section()
        median, quartiles = spread(row["time"], 1e3)
        result.add_row(
            "" if previous == here else "{}, {}, {}, {}".format(*here),
            row["optimizer"],
            median,
            quartiles,
            number(row["ns per parameter"]),
            f"{row['bytes per parameter']:.1f}",
            f"{row['share of copy bandwidth']:.0%}",
            *(_ratio(rows, here, name, row["optimizer"]) for name in ours),
        )
        previous = here
    return result


def _ratio(rows: list[dict[str, Any]], here: tuple, ours: str, other: str) -> str:
    """How many times as long ours takes as another, in one cell."""
    for row in rows:
        if (row["shapes"], row["rule"], row["dtype"], row["threads"], row["optimizer"]) == (*here, ours):
            return number(row["against"][other]["median"]) if other in row["against"] else ""
    return ""


def draw(rows: list[dict[str, Any]], path: Path, caption: str) -> None:
    """A panel for each dtype: nanoseconds per parameter over shapes, or over rules where there are several."""
    from benchmarks import picture

    dtypes = list(dict.fromkeys(row["dtype"] for row in rows))
    most = max(row["threads"] for row in rows)
    several = len({row["rule"] for row in rows}) > 1
    figure, axes = picture.panels(len(dtypes))
    for panel, dtype in zip(axes, dtypes, strict=True):
        values: dict[str, dict[str, Any]] = {}
        for row in rows:
            if row["dtype"] == dtype and row["threads"] == most:
                group = f"{row['shapes']}\n{row['rule']}" if several else row["title"].replace(" of ", "\nof ")
                per_parameter = {key: 1e9 * row["time"][key] / row["parameters"] for key in ("median", "q1", "q3")}
                values.setdefault(group, {})[row["optimizer"]] = per_parameter
        picture.bars(panel, values)
        panel.tick_params(axis="x", labelsize="x-small")
        panel.set(yscale="log", ylabel="ns per parameter and step", title=f"{dtype}, threads: {most}")
    picture.save(figure, path, caption)
