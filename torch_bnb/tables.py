"""Tables as text: drawn by rich where it is installed, aligned columns otherwise. Knows nothing of what they show."""

import importlib.util
from collections.abc import Sequence


def render(header: Sequence[str], rows: Sequence[Sequence[str]], left: Sequence[str], title: str = "") -> str:
    """A table.

    Args:
        header: The columns' names.
        rows: Cells; a cell may have several lines.
        left: The columns that are aligned to the left.
        title: A line above it.
    """
    if importlib.util.find_spec("rich"):
        return _rich(header, rows, left, title)
    widths = [max(len(line) for row in [header, *rows] for line in row[i].split("\n")) for i in range(len(header))]
    lines = [title] if title else []
    for row in [header, *rows]:
        columns = [cell.split("\n") for cell in row]
        for i in range(max(map(len, columns))):
            texts = [column[i] if i < len(column) else "" for column in columns]
            aligned = [
                text.ljust(width) if name in left else text.rjust(width)
                for text, width, name in zip(texts, widths, header, strict=True)
            ]
            lines.append("  ".join(aligned).rstrip())
    return "\n".join(lines)


def readable_bytes(size: int) -> str:
    """A number of bytes in the unit that suits it."""
    for unit, factor in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if size >= factor:
            return f"{size / factor:.2f} {unit}"
    return f"{size} B"


def _rich(header: Sequence[str], rows: Sequence[Sequence[str]], left: Sequence[str], title: str) -> str:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title or None, title_justify="left", box=box.SIMPLE_HEAD)
    for column in header:
        table.add_column(column, justify="left" if column in left else "right", no_wrap=True)
    for row in rows:
        table.add_row(*map(Text, row))
    # Room for everything, and no colours: what is too wide for a terminal wraps there, but no name is cut anywhere.
    console = Console(width=10_000, color_system=None)
    with console.capture() as capture:
        console.print(table)
    return "\n".join(line.rstrip() for line in capture.get().split("\n")).strip("\n")
