"""The command line ``accelerate-bnb``: one module per command, each with ``add(commands)``, whose parser's ``run`` does
the work.

A command that fails says why in one line on stderr and exits with code 2.
"""

import argparse
from collections.abc import Sequence

from accelerate.commands.utils import CustomArgumentParser

from accelerate_bnb.cli import config, estimate, launch


def main(arguments: Sequence[str] | None = None) -> None:
    """Parses and runs a command line, by default this process's own."""
    parser = argparse.ArgumentParser(prog="accelerate-bnb", description="8-bit optimizers for Accelerate.")
    # Accelerate's own kind notes what was given: else launch takes none of the config file's fsdp_config.
    commands = parser.add_subparsers(required=True, dest="command", parser_class=CustomArgumentParser)
    for command in (launch, config, estimate):
        command.add(commands)
    commands.metavar = f"{{{','.join(commands.choices)}}}"  # for the error when there is none
    options = parser.parse_args(arguments)
    try:
        options.run(options)
    except (ValueError, TypeError, OSError, ModuleNotFoundError) as error:
        parser.exit(2, f"{parser.prog} {options.command}: {error}\n")
