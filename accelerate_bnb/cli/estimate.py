"""``accelerate-bnb estimate SPEC``: what a model's training takes in memory with the plugin's optimizer."""

import argparse
import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from torch import nn

from accelerate_bnb import settings
from accelerate_bnb.plugin import BnbOptimizerPlugin
from torch_bnb import plan
from torch_bnb.cli.plan import make_model


def add(commands: Any) -> None:
    """The command's arguments: a model, and the plugin's fields."""
    command = commands.add_parser("estimate", help="bytes of parameters, gradients and optimizer state")
    command.add_argument(
        "model", metavar="SPEC", help="package.module:factory, called without arguments; or what transformers' "
        "AutoConfig takes: a folder with a config.json, a model's name"
    )  # fmt: skip
    for known in fields(BnbOptimizerPlugin):
        command.add_argument(f"--{known.name}", metavar="VALUE", help=known.metadata["help"])
    command.add_argument("--json", action="store_true", help="the same as JSON")
    command.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Prints the table."""
    given = {known.name: getattr(options, known.name) for known in fields(BnbOptimizerPlugin)}
    plugin = BnbOptimizerPlugin(
        **{
            name: text if name == "config_file" else settings.parse(name, text, f"--{name}")
            for name, text in given.items()
            if text is not None
        }
    )
    model = make_model(options.model, "meta") if ":" in options.model else _from_config(options.model)
    plugin.register(model)
    memory = plan(model, plugin.optimizer_class, **plugin.optimizer_options())
    print(json.dumps(memory.to_dict(), indent=2) if options.json else memory)


def _from_config(name: str) -> nn.Module:
    """A model of transformers without weights."""
    import transformers

    if not Path(name).is_dir() and (Path(name).exists() or name.startswith((".", "/"))):
        raise ValueError(f"{name}: expected a folder with a config.json, or package.module:factory")
    config = transformers.AutoConfig.from_pretrained(name)
    architecture = getattr(transformers, (config.architectures or [""])[0], None)
    with torch.device("meta"):
        return transformers.AutoModel.from_config(config) if architecture is None else architecture(config)
