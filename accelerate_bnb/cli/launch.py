"""``accelerate-bnb launch --config_file x.yaml train.py``: ``accelerate launch`` with a ``bnb_config:`` section."""

import argparse
import os
import tempfile
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import yaml
from accelerate.commands.config.config_args import default_config_file
from accelerate.commands.launch import launch_command, launch_command_parser
from accelerate.utils import patch_environment

from accelerate_bnb import settings
from accelerate_bnb.plugin import BnbOptimizerPlugin


def add(commands: Any) -> None:
    """The command's arguments, which are those of ``accelerate launch``."""
    what = "accelerate launch, with a bnb_config: section in the config file"
    listed = SimpleNamespace(add_parser=partial(commands.add_parser, help=what))  # Accelerate gives no help of its own
    command = launch_command_parser(subparsers=listed)
    command.description = what
    command.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Checks the section, hands it on in ``ACCELERATE_BNB_*`` variables, and the rest to ``accelerate launch``."""
    path = options.config_file or (default_config_file if os.path.isfile(default_config_file) else None)
    content = settings.read(path) if path else None
    content = content if isinstance(content, dict) else {}
    variables: dict[str, str] = {}
    if settings.SECTION in content:
        BnbOptimizerPlugin(config_file=path)  # before any process is started
        variables = _variables(settings.from_file(path))
        del content[settings.SECTION]
    _refuse_unknown(content, options)
    if _wants_cpu_processes(content, options):
        options.cpu, options.multi_gpu = False, True
        variables["ACCELERATE_USE_CPU"] = "true"
    with tempfile.TemporaryDirectory() as folder, patch_environment(**variables):
        if content:
            stripped = Path(folder) / "accelerate.yaml"
            stripped.write_text(yaml.safe_dump(content), encoding="utf-8")
            options.config_file = str(stripped)
        try:
            launch_command(options)
        except ValueError as error:  # what Accelerate finds wrong with the file is in the user's
            raise ValueError(str(error).replace(str(options.config_file), str(path))) from error


def _variables(section: dict[str, Any]) -> dict[str, str]:
    """The section as variables; one that is set already wins, as it does over a file that the plugin reads itself."""
    named = {f"{settings.PREFIX}{field.upper()}": settings.write(field, value) for field, value in section.items()}
    return {variable: text for variable, text in named.items() if not os.environ.get(variable)}


def _refuse_unknown(content: dict[str, Any], options: argparse.Namespace) -> None:
    """Accelerate drops what it does not know inside its sections, and knows none of ours, however it is spelt."""
    for key in content:
        if str(key).startswith("bnb"):
            raise ValueError(settings.unknown(key, [settings.SECTION], "section"))
    for section, prefix in (("fsdp_config", "fsdp_"), ("deepspeed_config", "")):
        for key in content.get(section) or {}:
            name = key if key.startswith(prefix) else prefix + key
            if not hasattr(options, name):
                known = [
                    known for known in vars(options) if known.startswith(prefix or ("zero", "deepspeed", "offload"))
                ]
                raise ValueError(f"{section}: {settings.unknown(name, known, 'key')}")


def _wants_cpu_processes(content: dict[str, Any], options: argparse.Namespace) -> bool:
    """Whether several processes on CPUs are asked for, of which ``accelerate launch`` without mpirun starts one."""
    on_cpus = options.cpu or content.get("distributed_type") == "MULTI_CPU"
    processes = options.num_processes or content.get("num_processes") or 1
    by_mpirun = options.mpirun_hostfile or content.get("mpirun_config")
    return bool(on_cpus and processes > 1 and not by_mpirun)
