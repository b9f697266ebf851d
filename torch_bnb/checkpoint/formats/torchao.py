"""The form of torchao's 8-bit Adam and AdamW: moments in a tensor subclass, the learning rate in a tensor.

It is read without torchao: stand-ins under the names of its classes take up what a file holds. Only writing needs the
library itself, because its optimizers look at the class.
"""

import importlib.util
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from torch_bnb import codec
from torch_bnb.checkpoint import checks, portable
from torch_bnb.checkpoint.losses import say_what_stays
from torch_bnb.checkpoint.portable import OURS, RULES, Coded, Moment, Portable

NAME = "torchao"
SUPPORTED = ("adam", "adamw")
READABLE = "OptimState8bit"
OPTIONS = ("lr", "betas", "eps", "weight_decay")


class Inert(Tensor):
    """A tensor subclass of another library that is not there: holds what the file says and computes nothing."""

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise TypeError(f"{cls.__name__} of torchao: convert the checkpoint first, see torch_bnb.checkpoint.convert")

    def __repr__(self, **_: Any) -> str:
        return f"{type(self).__name__}(shape={tuple(self.shape)})"


KINDS = {"OptimState8bit": "8bit", "OptimState4bit": "4bit", "OptimStateFp8": "fp8"}
STAND_INS = [
    (type(kind, (Inert,), {}), f"torchao.{package}.subclass_{file}.{kind}")
    for kind, file in KINDS.items()
    for package in ("optim", "prototype.low_bit_optim")
]
"""As `torch.serialization.safe_globals` takes them: today's names and those before torchao 0.9."""


def recognises(state_dict: Mapping[str, Any]) -> bool:
    """Whether a state_dict is in this form."""
    return any(_kind(value) for entry in state_dict["state"].values() for value in entry.values())


def _kind(value: Any) -> str | None:
    name = type(value).__name__
    return name if isinstance(value, Tensor) and name in KINDS else None


def rules(state_dict: Mapping[str, Any]) -> list[str]:
    """The rules that it may be of: the file does not tell Adam from AdamW."""
    return list(SUPPORTED)


def layout(rule: str) -> Any:
    """Something equal for rules whose files are alike."""
    return NAME


def read(state_dict: Mapping[str, Any], rule: str) -> Portable:
    """Its portable form. The rule may be any with the same states."""
    entries = state_dict["state"].items()
    states = {
        index: portable.under_torchs_names(entry, rule, f"{NAME}, parameter {index}", _moment)
        for index, entry in entries
    }
    groups = [portable.without(group, ["amsgrad"]) for group in state_dict["param_groups"]]
    return portable.checked(Portable(rule, groups, states), NAME)


def _moment(value: Any, signed: bool, what: str) -> Moment:
    kind = _kind(value)
    if kind not in (None, READABLE):
        raise ValueError(f"{what} is {kind}: only the 8-bit states of torchao can be read")
    return _coded(value, signed, what) if kind else checks.tensor(value, what)


def _coded(value: Any, signed: bool, what: str) -> Coded:
    parts = [getattr(value, name, None) for name in ("codes", "scale", "qmap")]
    if getattr(value, "signed", None) is not signed:
        raise ValueError(f"{what}: signed is {getattr(value, 'signed', None)}, expected {signed}")
    scales = parts[1].numel() if isinstance(parts[1], Tensor) else 0
    blocksize = value.numel() // scales if scales else None
    return portable.coded(*parts, signed, blocksize, what)


def write(state: Portable, bits: int | None) -> dict[str, Any]:
    """The state_dict. Needs torchao.

    Raises:
        ModuleNotFoundError: There is none.
    """
    if bits == 32:
        raise ValueError(f"{NAME}'s optimizers keep 8-bit state: optim_bits=32 is for the other targets")
    if not importlib.util.find_spec("torchao"):
        raise ModuleNotFoundError("Writing torchao's form needs its tensor class: pip install torchao")
    from torchao.optim.subclass_8bit import OptimState8bit

    checks.need_options(state.groups, OPTIONS, NAME)
    say_what_stays(state, OPTIONS, NAME)
    result = {}
    for index, entry in state.states.items():
        written: dict[str, Any] = {}
        for name, signed in RULES[state.rule].states.items():
            if name not in entry:
                continue
            numel = entry[name].shape.numel()
            fits = numel >= portable.MIN_8BIT_SIZE and numel % codec.BLOCK_SIZE == 0
            moment = portable.in_bits(entry[name], signed, 8 if fits else 32)
            if isinstance(moment, Coded):
                own = codec.create_dynamic_map(signed).to(moment.codes.device)
                moment = OptimState8bit(moment.codes, moment.absmax, own, signed, dtype=torch.float32)
            written[name] = moment
        if written:
            result[index] = {"step": torch.tensor(float(entry.get("step", 0))), **written}
    groups = []
    for group in state.groups:
        rest = portable.without(group, {*OURS, "params"})
        groups.append({**rest, "amsgrad": False, "lr": torch.tensor(rest["lr"]), "params": list(group["params"])})
    return {"state": result, "param_groups": groups}
