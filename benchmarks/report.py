"""A benchmark's result: a record that is written as JSON while it grows, and the words that tables use."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.table import Table

FORMAT = 1
"""Grows when readers of the JSON must change."""


@dataclass
class Record:
    """Everything that a run found, and where it ran."""

    benchmark: str
    settings: dict[str, Any]
    machine: dict[str, Any]
    rows: list[dict[str, Any]] = field(default_factory=list)
    left_out: list[dict[str, str]] = field(default_factory=list)
    """What was not measured, and why."""
    complete: bool = False
    """False as long as cells are missing, and for ever if the run was interrupted."""

    def save(self, path: Path) -> None:
        """Writes it all, so that a reader finds the old file or the new one, never half of one."""
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps({"format": FORMAT, **asdict(self)}) + "\n")
        partial.replace(path)


def number(value: float) -> str:
    """Three digits that mean something, without an exponent: 0.0123, 1.23, 12.3, 123, 1234."""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:#.3g}"


def spread(values: dict[str, float], scale: float = 1.0) -> tuple[str, str]:
    """(median, the quartiles around it) of a `timing.summary`."""
    return number(scale * values["median"]), f"{number(scale * values['q1'])} - {number(scale * values['q3'])}"


def columns(title: str, *names: str, left: int) -> Table:
    """An empty table whose first columns are words and whose others are numbers."""
    table = Table(title=title, title_justify="left")
    for index, name in enumerate(names):
        table.add_column(name, justify="left" if index < left else "right", no_wrap=index < left)
    return table
