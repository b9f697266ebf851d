"""``python -m torch_bnb convert IN OUT --to ...``: a checkpoint with its optimizer states in another library's form."""

import argparse
import os
import sys
import warnings
from typing import Any

from torch_bnb import checkpoint
from torch_bnb.checkpoint.formats import TARGETS


def add(commands: Any) -> None:
    """The command's arguments."""
    command = commands.add_parser("convert", help="optimizer states of a checkpoint file in another library's form")
    command.add_argument("source", metavar="IN", help="a file of torch.save; nothing in it is run")
    command.add_argument("target", metavar="OUT", help="everything but the optimizer states is as in IN")
    command.add_argument("--to", required=True, choices=TARGETS, help="whose optimizer is to load it")
    command.add_argument("--rule", help="adamw, sgd, ...: needed where the file does not tell")
    command.add_argument("--optim-bits", type=int, choices=(8, 32), help="default: as in IN, or what OUT's library has")
    command.add_argument("--force", action="store_true", help="replace OUT if it exists")
    command.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Converts, writes, and says what it did."""
    if os.path.isdir(options.target):
        raise ValueError(f"{options.target} is a folder; OUT is a file")
    if os.path.exists(options.target) and not options.force:
        raise ValueError(f"{options.target} exists; --force replaces it")
    content = checkpoint.load(options.source)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            converted, count = checkpoint.convert_nested(content, options.to, options.rule, options.optim_bits)
        except ValueError as error:
            raise ValueError(f"{options.source}: {str(error).replace('by rule=', 'by --rule')}") from None
    if not count:
        raise ValueError(f"{options.source}: there is no optimizer state in it")
    checkpoint.save(converted, options.target)
    for warning in dict.fromkeys(str(warning.message) for warning in said):
        print(f"warning: {warning}", file=sys.stderr)
    states = "1 optimizer state" if count == 1 else f"{count} optimizer states"
    print(f"{options.target}: {states} for {TARGETS[options.to].NAME}")
