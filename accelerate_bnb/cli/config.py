"""``accelerate-bnb config``: asks a few questions and writes a file for ``accelerate-bnb launch``."""

import argparse
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import yaml

from accelerate_bnb import settings
from accelerate_bnb.plugin import BnbOptimizerPlugin
from torch_bnb.optim import by_name

_FSDP2 = {
    "fsdp_version": 2,
    "fsdp_auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
    "fsdp_reshard_after_forward": True,
    "fsdp_state_dict_type": "SHARDED_STATE_DICT",
}
_ZERO2 = {"zero_stage": 2, "offload_optimizer_device": "none", "offload_param_device": "none"}


def add(commands: Any) -> None:
    """The command's arguments."""
    command = commands.add_parser("config", help="asks a few questions and writes a config file for launch")
    command.add_argument("--config_file", default="accelerate_bnb.yaml", help="where to write; default %(default)s")
    command.add_argument("--force", action="store_true", help="replace the file if it exists")
    command.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Asks, checks the answers as the launch would, and writes."""
    if os.path.exists(options.config_file) and not options.force:
        raise ValueError(f"{options.config_file} exists; --force replaces it")
    content = {**_ask_machine(), settings.SECTION: _ask_optimizer()}
    BnbOptimizerPlugin(**content[settings.SECTION])
    Path(options.config_file).write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    print(f"Written. accelerate-bnb launch --config_file {options.config_file} train.py")


def _ask_machine() -> dict[str, Any]:
    device = _ask("Train on cpu or gpu?", "gpu" if torch.cuda.is_available() else "cpu", _one_of("cpu", "gpu"))
    processes = _ask("How many processes?", "1", _positive)
    content: dict[str, Any] = {"compute_environment": "LOCAL_MACHINE", "distributed_type": "NO"}
    if device == "cpu":
        content["distributed_type"] = "MULTI_CPU" if processes > 1 else "NO"
        content["use_cpu"] = True
    elif processes > 1:
        how = _ask("Shared how? ddp, fsdp2 or zero2", "ddp", _one_of("ddp", "fsdp2", "zero2"))
        content |= {
            "ddp": {"distributed_type": "MULTI_GPU"},
            "fsdp2": {"distributed_type": "FSDP", "fsdp_config": _FSDP2},
            "zero2": {"distributed_type": "DEEPSPEED", "deepspeed_config": _ZERO2},
        }[how]
    precision = _ask("Mixed precision? no, bf16 or fp16", "no", _one_of("no", "bf16", "fp16"))
    return {**content, "mixed_precision": precision, "num_machines": 1, "num_processes": processes}


def _ask_optimizer() -> dict[str, Any]:
    name = _ask("Which optimizer?", "adamw8bit", lambda text: by_name(text).__name__)
    takes = by_name(name).__signature__.parameters
    section: dict[str, Any] = {"optimizer": name}
    for field, question in (("lr", "Learning rate?"), ("weight_decay", "Weight decay?")):
        if field in takes:
            section[field] = _ask(question, str(takes[field].default), _field(field))
    section["embeddings_32bit"] = _ask("Keep embeddings' state at 32 bits?", "yes", _field("embeddings_32bit"))
    hints = _ask("File with hints for single parameters, if any:", "", lambda text: text and _field("overrides")(text))
    return {**section, "overrides": hints} if hints else section


def _ask(question: str, default: str, parse: Callable[[str], Any]) -> Any:
    """Asks until the answer can be; an empty one is the default. Where input has ended, a wrong default is an error."""
    while True:
        print(f"{question} [{default}]: ", end="", flush=True)
        try:
            text, ended = input().strip() or default, False
        except EOFError:
            text, ended = default, True
            print()
        try:
            return parse(text)
        except ValueError as error:
            if ended:
                raise
            print(error)


def _one_of(*words: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in words:
            raise ValueError(f"{text!r}: expected {' or '.join(words)}")
        return text

    return parse


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise ValueError(f"{text!r}: expected a positive integer")
    return int(text)


def _field(name: str) -> Callable[[str], Any]:
    return lambda text: settings.parse(name, text, name)
