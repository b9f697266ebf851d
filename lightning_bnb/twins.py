"""Optimizers of torch and of bitsandbytes, made anew as those of torch_bnb. Knows nothing of Lightning."""

import functools
import inspect
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.optim.lr_scheduler import CyclicLR
from torch.optim.optimizer import Optimizer

from torch_bnb import optim
from torch_bnb.optim import GlobalOptimManager

_OF_TORCH: dict[type[Optimizer], type[Optimizer]] = {
    torch.optim.Adam: optim.Adam,
    torch.optim.AdamW: optim.AdamW,
    torch.optim.SGD: optim.SGD,
    torch.optim.RMSprop: optim.RMSprop,
    torch.optim.Adagrad: optim.Adagrad,
}

REPLACED = [cls.__name__ for cls in _OF_TORCH]
"""The optimizers of torch that have a twin."""

_OF_BITSANDBYTES = re.compile(r"(Paged)?(AdamW|Adam|SGD|RMSprop|Adagrad|Lion)(8bit|32bit)?$")
_IN_BETAS = {"SGD": "momentum", "RMSprop": "alpha"}
"""The option that bitsandbytes keeps first in a group's ``betas``; it never uses what stands second."""
_STORAGE = ("min_8bit_size", "percentile_clipping", "block_wise", "max_unorm", "skip_zeros")
_HOOKS = [
    f"_optimizer_{what}_{when}_hooks" for what in ("step", "state_dict", "load_state_dict") for when in ("pre", "post")
]
_RATES = "_rates_built_with"
"""Where an optimizer notes, by the group's index, the rates that its groups were built with."""


@contextmanager
def noting_rates() -> Iterator[None]:
    """While it lasts, optimizers note the rates that their groups are built with; schedulers may overwrite them."""
    add_param_group = Optimizer.add_param_group

    @functools.wraps(add_param_group)
    def noting(self: Optimizer, param_group: dict[str, Any]) -> None:
        add_param_group(self, param_group)
        if (rate := self.param_groups[-1].get("lr")) is not None:
            noted = vars(self).setdefault(_RATES, {})
            noted[len(self.param_groups) - 1] = rate.item() if isinstance(rate, torch.Tensor) else rate

    Optimizer.add_param_group = noting
    try:
        yield
    finally:
        Optimizer.add_param_group = add_param_group


def make_twin(optimizer: Optimizer, optim_bits: int, schedulers: Iterable[Any] = ()) -> Optimizer | None:
    """Our optimizer over the very same group dicts, so that whoever holds them sees one set of rates.

    State, and what was said to bitsandbytes' own override manager about its parameters, go along. Hooks are the same.

    Args:
        optimizer: Any.
        optim_bits: Bits per element of the twin's state, 8 or 32.
        schedulers: Those that may have moved the optimizer's rates.

    Returns:
        The twin; None where there is none for this class.

    Raises:
        ValueError: It uses an option that its twin does not have (``amsgrad=True``).
    """
    saved = optimizer.state_dict() if optimizer.state else None
    if type(optimizer) in _OF_TORCH:
        cls, options = _twin_of_torchs(optimizer), {}
    elif twin := _bitsandbytes_twin(optimizer):
        cls, options = twin
    else:
        return None
    takes = inspect.signature(cls).parameters
    defaults = {**optimizer.defaults, **options}
    for index, group in enumerate(optimizer.param_groups):
        _settle_bits(group)
        for key, value in group.items():
            lacking = key in optimizer.defaults and key not in takes and key != "decoupled_weight_decay"
            if lacking and value:
                raise ValueError(
                    f"{type(optimizer).__name__}({key}={value!r}) has no 8-bit twin in torch_bnb: leave the option "
                    "out, or the optimizer as it is by replace_torch_optimizers=False"
                )
        group.setdefault("base_lr", _base_lr(optimizer, index, schedulers))
    known = {key: value for key, value in defaults.items() if key in takes}
    new = cls(optimizer.param_groups, **{**known, "optim_bits": optim_bits})
    for hooks in _HOOKS:
        setattr(new, hooks, getattr(optimizer, hooks))
    if saved:
        new.load_state_dict(saved)
    return new


def ask_for_bits(twin: Optimizer, optim_bits: int) -> None:
    """Lets a twin keep its state in 8 or 32 bits from now on, but for groups that say it themselves."""
    twin.defaults["optim_bits"] = optim_bits
    for group in twin.param_groups:
        if not group.get("explicit_bits"):
            group["optim_bits"] = optim_bits


def _settle_bits(group: dict[str, Any]) -> None:
    """Tells what a user has said in a group of an optimizer from what an earlier twin has filled in."""
    if "base_lr" not in group and "optim_bits" in group:
        group["explicit_bits"] = True
    elif not group.get("explicit_bits"):
        group.pop("optim_bits", None)


def _twin_of_torchs(optimizer: Optimizer) -> type[Optimizer]:
    decoupled = {bool(group.get("decoupled_weight_decay")) for group in optimizer.param_groups if group["weight_decay"]}
    if type(optimizer) is not torch.optim.Adam or True not in decoupled:
        return _OF_TORCH[type(optimizer)]
    if decoupled == {True}:
        return optim.AdamW
    raise ValueError("Adam(decoupled_weight_decay=...) that differs among groups has no 8-bit twin in torch_bnb")


def _base_lr(optimizer: Optimizer, index: int, schedulers: Iterable[Any]) -> float:
    """The rate that a group was built with, which a scheduler may have moved since.

    Of an optimizer that was built outside `noting_rates`, what a scheduler has noted as ``initial_lr``. OneCycleLR and
    CyclicLR note a rate of their own there, and the optimizer's default is the best that is left.
    """
    group, noted = optimizer.param_groups[index], vars(optimizer).get(_RATES, {})
    if len(noted) == len(optimizer.param_groups):
        return float(noted[index])
    cyclic = any(
        isinstance(scheduler, CyclicLR)
        and scheduler.optimizer is optimizer
        and group.get("initial_lr") in scheduler.base_lrs
        for scheduler in schedulers
    )
    return float(optimizer.defaults["lr"] if cyclic or "max_lr" in group else group.get("initial_lr", group["lr"]))


def _bitsandbytes_twin(optimizer: Optimizer) -> tuple[type[Optimizer], dict[str, Any]] | None:
    """The twin's class and options, and the groups and hints in our terms."""
    name = _OF_BITSANDBYTES.match(type(optimizer).__name__)
    if not (name and type(optimizer).__module__.startswith("bitsandbytes.optim.")):
        return None
    rule = name[2]
    if rule == "Adam" and any(group["weight_decay"] for group in optimizer.param_groups):
        rule = "AdamW"  # its Adam takes the decay apart from the gradient
    options = {key: getattr(optimizer.args, key) for key in _STORAGE if hasattr(optimizer.args, key)}
    if rule in _IN_BETAS:
        options[_IN_BETAS[rule]] = optimizer.defaults["betas"][0]
    for group in optimizer.param_groups:
        if rule in _IN_BETAS:
            group[_IN_BETAS[rule]] = group.pop("betas")[0]
        unused = ("alpha", "t_alpha", "t_beta3", "betas", "eps")
        for key in [key for key in unused if key not in inspect.signature(getattr(optim, rule)).parameters]:
            group.pop(key, None)
    _carry_hints(optimizer)
    return getattr(optim, f"{name[1] or ''}{rule}"), options


def _carry_hints(optimizer: Optimizer) -> None:
    """What bitsandbytes' manager was told of these parameters, told to ours."""
    theirs, manager = optimizer.mng, GlobalOptimManager.get_instance()
    held = {id(parameter): parameter for group in optimizer.param_groups for parameter in group["params"]}
    for key, parameter in held.items():
        if config := theirs.pid2config.get(key):
            manager.override_config(parameter, key_value_dict=config)
    for module, attribute, config in theirs.module_weight_config_triple:
        if id(getattr(module, attribute)) in held:
            manager.register_module_override(module, attribute, config)
