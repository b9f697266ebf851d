"""The program: ``python -m benchmarks step|first-step|memory|scaling``; ``--help`` has the options of each."""

import argparse
import sys
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from benchmarks import first_step, memory, peers, scaling, shapes, step
from benchmarks import machine as machines
from benchmarks.arguments import whole
from benchmarks.cell import DTYPES, Cell
from benchmarks.report import Record

COMMANDS = {"step": step, "first-step": first_step, "memory": memory, "scaling": scaling}
"""A command has HELP, DEFAULTS, QUICK, add_arguments, measure (a cell), table and draw."""


def make_parser() -> argparse.ArgumentParser:
    """All commands have the same grid; each adds its own options."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, command in COMMANDS.items():
        sub = commands.add_parser(
            name,
            help=command.HELP,
            description=command.__doc__,
            epilog=f"defaults: {_words(command.DEFAULTS)} -- with --quick: {_words(command.QUICK)}",
        )
        many = {"nargs": "+", "metavar": "X"}
        sub.add_argument(
            "--shapes",
            **many,
            type=shapes.parse,
            help=f"of {', '.join(shapes.NAMED)}, or one tensor's size such as 16M or 64K",
        )
        sub.add_argument("--rules", **many, choices=[*peers.RULES, "all"], help=f"all, or of {', '.join(peers.RULES)}")
        sub.add_argument("--dtypes", **many, choices=DTYPES, help=f"of {', '.join(DTYPES)}")
        threads = whole(machines.cpus(), "the CPUs of this machine")
        sub.add_argument("--threads", **many, type=threads, help="numbers of threads")
        sub.add_argument("--bits", **many, type=int, choices=(8, 32), help="of state: 8, 32 or both")
        sub.add_argument(
            "--peers",
            nargs="*",
            metavar="X",
            choices=peers.LIBRARIES,
            help=f"what to compare with, or nothing: of {', '.join(peers.LIBRARIES)}",
        )
        sub.add_argument("--repeats", type=whole(), metavar="N", help="measurements of each optimizer")
        sub.add_argument("--quick", action="store_true", help="other defaults: about a minute in all")
        sub.add_argument(
            "--out",
            type=Path,
            metavar="FILE.json",
            help="write the result there, and a picture beside it; {machine} in the name becomes the processor's name",
        )
        command.add_arguments(sub)
    return parser


def _words(defaults: dict[str, Any]) -> str:
    """Options as one would type them."""
    lists = {key: value if isinstance(value, list) else [value] for key, value in defaults.items()}
    return " ".join(f"--{key} {' '.join(map(str, values))}" for key, values in lists.items())


def settings(args: argparse.Namespace) -> dict[str, Any]:
    """The options of a run, defaults filled in, without those that do not bear on the result."""
    command = COMMANDS[args.command]
    defaults = {**command.DEFAULTS, **(command.QUICK if args.quick else {})}
    given = {key: value for key, value in vars(args).items() if key not in ("command", "out")}
    chosen = {key: defaults.get(key) if value is None else value for key, value in given.items()}
    if "all" in chosen["rules"]:
        chosen["rules"] = list(peers.RULES)
    return chosen


def run(command: Any, chosen: dict[str, Any], record: Record, path: Path | None, console: Console) -> None:
    """Measures cell after cell into the record, which is saved after each; an interrupt keeps what there is."""
    found, missing = peers.find(chosen["peers"], chosen["bits"])
    record.left_out += [{"what": library, "why": why} for library, why in missing.items()]
    grid = [Cell(*point) for point in product(*(chosen[key] for key in ("shapes", "rules", "dtypes", "threads")))]
    weights = [_work(cell, found) for cell in grid]
    progress = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[done]} of {task.fields[cells]}, so far"),
        TimeElapsedColumn(),
        TextColumn("left, about"),
        TimeRemainingColumn(),
        console=console,
        speed_estimate_period=24 * 3600,
    )
    try:
        with progress:
            task = progress.add_task("", total=sum(weights), done=0, cells=len(grid))
            for index, (cell, weight) in enumerate(zip(grid, weights, strict=True)):
                progress.update(task, description=str(cell))
                outcome = command.measure(cell, found, argparse.Namespace(**chosen))
                record.rows += outcome.rows
                record.left_out += outcome.left_out
                record.complete = index + 1 == len(grid)
                if path is not None:
                    record.save(path)
                progress.update(task, advance=weight, done=index + 1)
    except KeyboardInterrupt:
        console.print("Interrupted: what has been measured until here follows.")


def _work(cell: Cell, found: Sequence[peers.Peer]) -> float:
    """A rough share of the whole time, for the estimate of what is left."""
    count = sum(cell.rule in peer.rules for peer in found)
    return count * (1e6 + shapes.parameters(cell.shapes) + 4e3 * len(shapes.shapes(cell.shapes)))


def show(command: Any, record: Record, path: Path | None, console: Console) -> None:
    """The table, what was left out, and where the files are."""
    caption = machines.one_line(record.machine)
    console.print(caption)
    if machines.busy(record.machine):
        load = record.machine["load average"]
        console.print(f"Load average {load:.1f} at the start: something else runs, and times are longer for it")
    if record.rows:
        console.print(command.table(record.rows))
    for item in record.left_out:
        console.print(f"Left out: {item['what']}: {item['why']}", style="dim", highlight=False)
    if path is not None and record.rows:
        command.draw(record.rows, path.with_suffix(".png"), caption)
        console.print(f"Numbers: {path}   picture: {path.with_suffix('.png')}", soft_wrap=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; 130 after an interrupt, as shells have it."""
    args = make_parser().parse_args(arguments)
    console = Console(width=None if sys.stdout.isatty() else 160)
    machine = machines.describe()
    path = args.out and Path(str(args.out).replace("{machine}", machines.slug(machine))).with_suffix(".json")
    chosen = settings(args)
    torch.manual_seed(0)
    record, command = Record(args.command, chosen, machine), COMMANDS[args.command]
    run(command, chosen, record, path, console)
    show(command, record, path, console)
    return 0 if record.complete else 130


if __name__ == "__main__":
    sys.exit(main())
