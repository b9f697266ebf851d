"""``python -m torch_bnb plan package.module:factory``: what a model's training takes in memory."""

import argparse
import ast
import importlib
import json
import sys
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from torch_bnb import load_overrides, plan
from torch_bnb.optim import GlobalOptimManager, by_name


def make_model(spec: str, device: str) -> nn.Module:
    """Calls the factory that ``package.module:name`` names.

    Raises:
        ValueError: The spec has another form, names nothing, or the factory makes no module.
    """
    module_name, _, factory_name = spec.partition(":")
    if not (module_name and factory_name):
        raise ValueError(f"{spec!r}: expected package.module:factory")
    sys.path.insert(0, "")
    try:
        factory = getattr(importlib.import_module(module_name), factory_name)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"{spec!r}: {error}") from error
    try:
        with torch.device(device):
            model = factory()
    except Exception as error:
        raise ValueError(f"{spec!r} on device {device!r}: {type(error).__name__}: {error}") from error
    if not isinstance(model, nn.Module):
        raise ValueError(f"{spec!r} made a {type(model).__name__}, expected an nn.Module")
    return model


def parse(pairs: Sequence[str]) -> dict[str, Any]:
    """Options out of ``key=value``, values as Python writes them; a word needs no quotes."""
    parsed = {}
    for pair in pairs:
        key, _, value = pair.partition("=")
        if not (key and value):
            raise ValueError(f"--option {pair}: expected KEY=VALUE")
        try:
            parsed[key] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            parsed[key] = value
    return parsed


def add(commands: Any) -> None:
    """The command's arguments."""
    command = commands.add_parser("plan", help="bytes of parameters, gradients and optimizer state, before training")
    command.add_argument("model", metavar="SPEC", help="package.module:factory, called without arguments")
    command.add_argument("--overrides", metavar="FILE", help="hints from a YAML or JSON file")
    command.add_argument("--optimizer", metavar="NAME", default="AdamW", help="AdamW, lion8bit, ...; default AdamW")
    command.add_argument("--optim-bits", type=int, choices=(8, 32), help="default 8, or what the name says")
    command.add_argument(
        "--option", metavar="KEY=VALUE", action="append", default=[], help="of the optimizer, as momentum=0.9"
    )
    command.add_argument(
        "--device", default="meta", help="where the model is made; default meta, which takes no memory"
    )
    command.add_argument("--no-embeddings-32bit", action="store_true", help="embeddings get --optim-bits like the rest")
    command.add_argument("--json", action="store_true", help="the same as JSON")
    command.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Prints the plan."""
    overrides = load_overrides(options.overrides) if options.overrides else None
    model = make_model(options.model, options.device)
    GlobalOptimManager.get_instance().register_parameters(model, not options.no_embeddings_32bit)
    memory = plan(model, by_name(options.optimizer), options.optim_bits, overrides, **parse(options.option))
    print(json.dumps(memory.to_dict(), indent=2) if options.json else memory)
