"""``python -m torch_bnb inspect FILE``: which optimizer states a checkpoint holds."""

import argparse
import json
from typing import Any

from torch_bnb import checkpoint


def add(commands: Any) -> None:
    """The command's arguments."""
    command = commands.add_parser("inspect", help="what optimizer states a checkpoint file holds")
    command.add_argument("file", metavar="FILE", help="of torch.save; nothing in it is run")
    command.add_argument("--json", action="store_true", help="the same as JSON")
    command.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Prints a description of every state.

    Raises:
        ValueError: There is none, or one of them cannot be read; everything has been printed before.
    """
    found = checkpoint.describe(checkpoint.load(options.file))
    if not found:
        raise ValueError(f"{options.file}: there is no optimizer state in it")
    if options.json:
        print(json.dumps([description.to_dict() for description in found], indent=2))
    else:
        print("\n\n".join(map(str, found)))
    if damaged := [description.where or "the file itself" for description in found if description.problem]:
        raise ValueError(f"{options.file}: {len(damaged)} of {len(found)} states cannot be read: {', '.join(damaged)}")
