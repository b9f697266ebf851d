"""``python -m torch_bnb doctor``: what this installation has, and whether it works here."""

import argparse
import importlib.util
import json
import platform
from importlib import metadata
from typing import Any

import torch

import torch_bnb
from torch_bnb import ops, optim
from torch_bnb.optim import rules

RULES = sorted(rules.__all__, key=str.lower)
PLUGINS = {"lightning": "lightning_bnb", "accelerate": "accelerate_bnb"}
START = torch.linspace(-1, 1, 4096)
MOST_AWAY = 0.1
"""From 32 bits, as a share of the way: several times what rounding does, a fraction of what a wrong kernel would."""
CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def add(commands: Any) -> None:
    """The command's arguments."""
    command = commands.add_parser("doctor", help="what this installation has, and whether it works here")
    command.add_argument("--json", action="store_true", help="the same as JSON")
    command.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Prints a line for each thing.

    Raises:
        ValueError: A kernel gives wrong numbers, or none; everything has been printed before.
    """
    found = examine()
    if options.json:
        print(json.dumps(found, indent=2))
    else:
        width = max(map(len, found))
        print("\n".join(f"{what:<{width}}  {said}" for what, said in found.items()))
    if ill := [what for what, said in found.items() if said.startswith("fails")]:
        raise ValueError(f"{', '.join(ill)}: see above")


def examine() -> dict[str, str]:
    """What there is, by what it is about."""
    found = {
        "torch_bnb": torch_bnb.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "CPU kernels": _instruction_set(),
        "a step on the CPU": _attempt(CPU),
        "CUDA kernels": "built"
        if ops.has_kernel("adamw", CUDA)
        else "not built: there was no nvcc, or TORCH_BNB_CUDA=0",
        "GPU": _gpus(),
    }
    if torch.cuda.is_available() and ops.has_kernel("adamw", CUDA):
        found["a step on the GPU"] = _attempt(CUDA)
    for framework, plugin in PLUGINS.items():
        found[plugin] = f"{framework} {_version(framework)}"
    return found


def _instruction_set() -> str:
    try:
        return f"{ops.instruction_set()}, {torch.get_num_threads()} threads"
    except RuntimeError as error:
        return f"fails: {error}"


def _version(package: str) -> str:
    try:
        return metadata.version(package) if importlib.util.find_spec(package) else "is not installed"
    except metadata.PackageNotFoundError:
        return "of unknown version"


def _gpus() -> str:
    if not torch.cuda.is_available():
        return "none that torch can use"
    properties = map(torch.cuda.get_device_properties, range(torch.cuda.device_count()))
    return ", ".join(f"{p.name} (sm_{p.major}{p.minor}, {p.total_memory / 2**30:.0f} GiB)" for p in properties)


def _attempt(device: torch.device) -> str:
    """Whether every rule in 8 bits goes where it goes in 32 bits."""
    for name in RULES:
        try:
            eight, full = (_trained(name, bits, device) for bits in (8, 32))
        except RuntimeError as error:
            return f"fails: {name}: {error}"
        away = float((eight - full).norm() / (full - START.to(device)).norm())
        if not away < MOST_AWAY:
            return f"fails: {name}: in 8 bits it ends {away:.2g} of its way from where it ends in 32 bits"
    return f"works, with all of {', '.join(RULES)}"


def _trained(name: str, bits: int, device: torch.device) -> torch.Tensor:
    """A parameter after three steps of a rule."""
    rule = getattr(optim, name)
    parameter = START.to(device, copy=True).requires_grad_()
    stateful = {"momentum": 0.9} if "momentum" in rule.options else {}
    optimizer = rule([parameter], lr=1e-2, optim_bits=bits, **stateful)
    for _ in range(3):
        parameter.grad = parameter.detach().flip(0).clone()
        optimizer.step()
    return parameter.detach()
