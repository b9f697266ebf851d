"""The command line: one module per command, each with ``add(commands)``, whose parser's ``run`` does the work.

A command that fails says why in one line on stderr and exits with code 2.
"""

import argparse
from collections.abc import Sequence

from torch_bnb.cli import convert, doctor, inspect, plan


def main(arguments: Sequence[str] | None = None) -> None:
    """Parses and runs a command line, by default this process's own."""
    parser = argparse.ArgumentParser(prog="python -m torch_bnb", description="8-bit optimizers for PyTorch.")
    commands = parser.add_subparsers(required=True, dest="command")
    for command in (doctor, plan, inspect, convert):
        command.add(commands)
    commands.metavar = f"{{{','.join(commands.choices)}}}"  # for the error when there is none
    options = parser.parse_args(arguments)
    try:
        options.run(options)
    except (ValueError, TypeError, OSError, ModuleNotFoundError) as error:
        parser.exit(2, f"{parser.prog} {options.command}: {error}\n")
