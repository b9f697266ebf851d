"""Writes the documents' numbers from committed results: ``python benchmarks/readme.py``, or ``--check`` to compare.

A table stands between two comments; the first names the table and the result that it is made of::

    <!-- speed of benchmarks/results/cpu-name-step.json, written by benchmarks/readme.py -->
    <!-- /speed -->
"""

import argparse
import json
import re
import statistics
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
NAMES = {"fp32": "`torch.optim.AdamW`", "8bit": "8-bit `AdamW`, embeddings at 32 bits"}
MARKED = re.compile(r"(<!-- (\w+) of (\S+\.json), written by benchmarks/readme\.py -->\n).*?(<!-- /\2 -->)", re.DOTALL)


def spread(values: list[float], digits: int) -> str:
    """Mean, with the standard deviation where there are several values."""
    text = f"{statistics.mean(values):.{digits}f}"
    return text if len(values) == 1 else f"{text} ± {statistics.stdev(values):.{digits}f}"


def short(value: float, digits: int = 3) -> str:
    """So many digits that mean something, and all of those before the point: 0.0123, 12.3, 1234."""
    return f"{value:.0f}" if abs(value) >= 10 ** (digits - 1) else f"{value:#.{digits}g}".rstrip(".")


def demo_table(result: dict[str, Any], picture: str) -> str:
    """The demo's table, over all its seeds."""
    lines = ["| | training loss | validation loss | optimizer state | ms per step |", "|---|---|---|---|---|"]
    for kind, name in NAMES.items():
        runs = [run for run in result["runs"] if run["optimizer"] == kind]
        state = runs[0]["state bytes"]
        lines.append(
            f"| {name} | {spread([run['training loss'] for run in runs], 3)} | "
            f"{spread([run['validation loss'] for run in runs], 3)} | {state / 1e6:.2f} MB "
            f"({state / runs[0]['parameters']:.2f} bytes per parameter) | "
            f"{spread([run['ms per step'] for run in runs], 0)} |"
        )
    seeds = len({run["seed"] for run in result["runs"]})
    caption = (
        f"{seeds} seed{'s, mean ± standard deviation' if seeds > 1 else ''}; {result['steps']} steps, "
        f"{result['threads']} threads, torch {result['torch']}. A small model: the step is dominated by the forward "
        "and backward pass."
    )
    return "\n".join([*lines, "", caption, "", f"![Loss curves and memory of the demo]({picture})"])


def speed_table(result: dict[str, Any], picture: str) -> str:
    """Milliseconds of a step and how many times ours each peer takes: a line for each cell of ``benchmarks step``."""
    ours = "torch_bnb 8-bit"
    if not result["complete"]:
        raise SystemExit("the result of `benchmarks step` was interrupted: measure it again")
    found: dict[tuple, dict[str, dict[str, Any]]] = {}
    for row in result["rows"]:
        cell = row["title"], row["rule"], row["dtype"], row["threads"]
        found.setdefault(cell, {})[row["optimizer"]] = row
    names = [name for name in dict.fromkeys(row["optimizer"] for row in result["rows"]) if name != ours]
    lines = [f"| ms per step | {' | '.join([ours, *names])} |", f"|---|{'---|' * (1 + len(names))}"]
    for (title, rule, dtype, threads), rows in found.items():
        texts = [f"**{short(1e3 * rows[ours]['time']['median'])}**"]
        for name in names:
            against = rows[ours]["against"].get(name)
            time = against and short(1e3 * rows[name]["time"]["median"])
            texts.append(f"{time} ({short(1 / against['median'], 2)}x)" if against else "-")
        what = f"{rule}, {title}, {dtype}, {threads} thread{'s' * (threads > 1)}"
        lines.append(f"| {what} | {' | '.join(texts)} |")
    machine, settings = result["machine"], result["settings"]
    peers = ", ".join(f"{name} {version}" for name, version in machine["peers"].items() if version)
    caption = (
        f"Medians of up to {settings['repeats']} rounds in which all take turns, caches {settings['cache']}; in "
        f"brackets, how many times as long as {ours}, the median over the rounds that both were in. {machine['cpu']}, "
        f"{machine['cpus']} CPUs, {machine['torch instruction set']}; torch {machine['torch']}{peers and f', {peers}'}."
    )
    return "\n".join([*lines, "", caption, "", f"![Time per step compared with other libraries]({picture})"])


def freeze_table(result: dict[str, Any], _: str) -> str:
    """Decoded moments over exact ones, by state and decay."""
    names = {"exp_avg_sq": "second moment", "exp_avg": "first moment"}
    who = {1: "all", 2: "every second"}
    cases = sorted({(row["every"], -row["scale"]) for row in result["freeze"]})
    roundings = ("nearest", "stochastic")
    header = [f"{who[every]} to {-scale}, {rounding}" for every, scale in cases for rounding in roundings]
    lines = [f"| | beta | {' | '.join(header)} |", f"|---|---|{'---|' * len(header)}"]
    ratio = {(r["state"], r["beta"], r["every"], -r["scale"], r["rounding"]): r["ratio"] for r in result["freeze"]}
    for state, name in names.items():
        for beta in sorted({row["beta"] for row in result["freeze"]}):
            found = [ratio[(state, beta, *case, rounding)] for case in cases for rounding in roundings]
            lines.append(f"| {name} | {beta} | {' | '.join(f'{value:.2f}' for value in found)} |")
    return "\n".join(lines)


def rounding_table(result: dict[str, Any], _: str) -> str:
    """Validation losses by training and rounding."""
    lines = ["| training | data | state | validation loss | to fp32 | second moment |", "|---|---|---|---|---|---|"]
    for row in result["summary"]:
        difference = "" if row["variant"] == "fp32" else f"{row['difference']:+.4f} ± {row['error']:.4f}"
        lines.append(
            f"| {row['task']} | {'shift' if row['shifts'] else 'stay'} | {row['variant']} | {row['mean']:.4f} ± "
            f"{row['deviation']:.4f} | {difference} | {row['second moment ratio']:.2f} |"
        )
    seeds = max(row["seeds"] for row in result["summary"])
    return "\n".join([*lines, "", f"{seeds} seeds, {result['steps']} steps, torch {result['torch']}."])


def parts_table(result: dict[str, Any], _: str) -> str:
    """The parts of a step by instruction set: nanoseconds per element, and instructions per 16 elements."""
    found = {(row["part"], row["isa"]): row for row in result["rows"]}
    sets = list(dict.fromkeys(row["isa"] for row in result["rows"]))
    lines = [f"| ns per element (instructions per 16) | {' | '.join(sets)} |", f"|---|{'---|' * len(sets)}"]
    for part in dict.fromkeys(row["part"] for row in result["rows"]):
        cells = []
        for isa in sets:
            row = found[part, isa]
            counted = row["instructions per 16"]
            cells.append(short(row["ns"], 3) + (f" ({counted:.0f})" if counted else ""))
        lines.append(f"| {part} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", f"{result['machine']['cpu']}, torch {result['machine']['torch']}."])


def instructions_table(result: dict[str, Any], _: str) -> str:
    """A GPU's instructions for a block by rule, dtype and width: all, and those of the integer units."""
    found: dict[tuple, dict[str, dict[str, Any]]] = {}
    for row in result["rows"]:
        found.setdefault((row["rule"], row["dtype"], row["bits"]), {})[row["architecture"]] = row
    names = list(dict.fromkeys(row["architecture"] for row in result["rows"]))
    lines = [f"| instructions (integer, exchange) | {' | '.join(names)} |", f"|---|{'---|' * len(names)}"]
    for (rule, dtype, bits), rows in found.items():
        if rule in ("AdamW", "Lion"):
            kinds = [rows[name]["kinds"] for name in names]
            texts = [
                f"{rows[name]['instructions']} ({kind.get('integer', 0)}, {kind.get('exchange', 0)})"
                for name, kind in zip(names, kinds, strict=True)
            ]
            lines.append(f"| {rule}, {dtype}, {bits} bits | {' | '.join(texts)} |")
    return "\n".join([*lines, "", f"nvcc {result['nvcc']}; all rules are in the result."])


def gpu_table(result: dict[str, Any], _: str) -> str:
    """Milliseconds of the device for a step, and the bytes a second that a step must move (that cross the bus).

    Where the host takes a tenth longer to launch the step than the device to do it, its time.
    """
    found: dict[tuple, dict[str, dict[str, Any]]] = {}
    for row in result["cells"]:
        found.setdefault((row["shapes"], row["rule"], row["dtype"]), {})[row["optimizer"]] = row
    names = list(dict.fromkeys(row["optimizer"] for row in result["cells"]))
    lines = [f"| ms per step (TB/s) | {' | '.join(names)} |", f"|---|{'---|' * len(names)}"]
    for what, rows in found.items():
        lines.append(f"| {', '.join(what)} | {' | '.join(gpu_time(rows.get(name)) for name in names)} |")
    copy = result.get("copy_bytes_per_second")
    moves = f"; a copy moves {copy / 1e12:.2f} TB/s" if copy else ""
    return "\n".join([*lines, "", f"{result['device']}, torch {result['torch']}{moves}."])


def gpu_headline(result: dict[str, Any], picture: str) -> str:
    """Of `gpu_table`, AdamW for the shapes of a large model; and the picture."""
    cells = [row for row in result["cells"] if row["rule"] == "adamw" and row["shapes"] == "7B-shaped"]
    return f"{gpu_table({**result, 'cells': cells}, picture)}\n\n![AdamW on a GPU]({picture})"


def gpu_time(row: dict[str, Any] | None) -> str:
    """One cell of it."""
    if row is None:
        return "-"
    if "error" in row:
        return "fails"
    device, host = (row[key]["median"] for key in ("seconds", "host_seconds"))
    if "bus_bytes" in row:
        return f"{short(1e3 * device)} ({row['bus_bytes'] / device / 1e12:.3f} each way)"
    if host > 1.1 * device:
        return f"{short(1e3 * device)}, host {short(1e3 * host)}"
    return f"{short(1e3 * device)} ({row['floor_bytes'] / device / 1e12:.2f})"


TABLES = {
    "demo": demo_table,
    "speed": speed_table,
    "freeze": freeze_table,
    "rounding": rounding_table,
    "parts": parts_table,
    "instructions": instructions_table,
    "gpu": gpu_table,
    "headline": gpu_headline,
}


def written(text: str, root: Path, name_of_text: str = "README.md") -> str:
    """The text with every marked table made anew from the results below `root`."""

    def table(match: re.Match[str]) -> str:
        opening, name, source, closing = match.groups()
        if name not in TABLES:
            raise SystemExit(f"{name_of_text} marks a table {name!r}; expected one of {', '.join(TABLES)}")
        up = "../" * name_of_text.count("/")
        picture = up + source.removesuffix(".json") + ".png"
        return f"{opening}{TABLES[name](json.loads((root / source).read_text()), picture)}\n{closing}"

    result, count = MARKED.subn(table, text)
    if count != text.count("written by benchmarks/readme.py"):
        raise SystemExit(f"{name_of_text} has a mark of a table that does not read as benchmarks/readme.py says")
    return result


def main() -> None:
    """Writes, or with --check compares."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="fail if a document differs, write nothing")
    args = parser.parse_args()
    for document in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        name, before = str(document.relative_to(ROOT)), document.read_text()
        after = written(before, ROOT, name)
        if args.check and after != before:
            raise SystemExit(f"{name} does not show the results in benchmarks/results: run `make readme`")
        if not args.check:
            document.write_text(after)


if __name__ == "__main__":
    main()
