"""What the entries of a state_dict must look like, whoever wrote it. Knows no rule and no library."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn


def check(state_dict: Any, who: str) -> None:
    """Whether something has the form of an optimizer's state_dict: ``state`` and ``param_groups`` that fit together.

    Args:
        state_dict: Anything.
        who: Whoever is to read it, for errors.

    Raises:
        ValueError: It has not; the entry is named.
    """
    if not isinstance(state_dict, Mapping):
        raise ValueError(f"{who}: a state_dict is a dict, got {type(state_dict).__name__}")
    for key, kind in (("state", Mapping), ("param_groups", (list, tuple))):
        if not isinstance(state_dict.get(key), kind):
            raise ValueError(f"{who}: the checkpoint's {key!r} is {state_dict.get(key)!r:.80}; it is no state_dict")
    indices = []
    for g, group in enumerate(state_dict["param_groups"]):
        params = group.get("params") if isinstance(group, Mapping) else None
        if not isinstance(params, (list, tuple)):
            raise ValueError(f"{who}, group {g} of the checkpoint: expected a dict with a list 'params'")
        if not all(isinstance(index, (int, str)) for index in params):
            raise ValueError(f"{who}, group {g} of the checkpoint: 'params' must hold numbers or names")
        if "param_names" in group and not _fits(group["param_names"], params):
            raise ValueError(f"{who}, group {g} of the checkpoint: 'param_names' must hold {len(params)} names")
        indices += params
    if len(set(indices)) < len(indices):
        raise ValueError(f"{who}: the checkpoint's groups name a parameter twice: {indices!r:.200}")
    if strangers := state_dict["state"].keys() - set(indices):
        raise ValueError(f"{who}: the checkpoint's state has keys that no group names: {sorted(strangers, key=str)}")
    for index, entry in state_dict["state"].items():
        if not isinstance(entry, Mapping):
            raise ValueError(f"{who}, parameter {index}: its state must be a dict, got {entry!r:.80}")


def _fits(names: Any, params: Any) -> bool:
    return isinstance(names, (list, tuple)) and len(names) == len(params)


def tensor(value: Any, what: str, dtype: torch.dtype | None = None) -> Tensor:
    """A plain tensor of a dtype; without one, any floating-point tensor, as float32.

    Raises:
        ValueError: It is something else.
    """
    if not isinstance(value, Tensor):
        raise ValueError(f"{what} must be a tensor, got {value!r:.80}")
    if type(value) not in (Tensor, nn.Parameter):
        raise ValueError(f"{what} must be a plain tensor, got {type(value).__name__}")
    if value.layout is not torch.strided or value.is_meta:
        raise ValueError(f"{what} must be a dense tensor with data, got {value.layout} on {value.device}")
    if value.dtype != dtype if dtype else not value.is_floating_point():
        raise ValueError(f"{what} must be {dtype or 'floating-point'}, got {value.dtype}")
    return value.detach() if dtype else value.detach().to(torch.float32)


def step_count(value: Any, what: str) -> int:
    """A number of steps, which may be in a tensor.

    Raises:
        ValueError: It is no whole number, or negative.
    """
    number = value.item() if isinstance(value, Tensor) and value.numel() == 1 and not value.is_meta else value
    whole = isinstance(number, (int, float)) and not isinstance(number, bool)
    if not (whole and math.isfinite(number) and number >= 0 and number == int(number)):
        raise ValueError(f"{what} must be a number of steps, got {value!r:.80}")
    return int(number)


def need_step(entry: Mapping[str, Any], names: Iterable[str], what: str) -> None:
    """Raises ValueError if there are moments by these names and no count of steps."""
    if "step" not in entry and (moments := sorted(names)):
        raise ValueError(f"{what}: there is {', '.join(moments)} and no 'step'")


def need_options(groups: Iterable[Mapping[str, Any]], options: Iterable[str], target: str) -> None:
    """Raises ValueError for a group that lacks an option which a target's form must have."""
    for g, group in enumerate(groups):
        if missing := [key for key in options if key not in group]:
            raise ValueError(f"{target} needs {', '.join(missing)} in group {g}, which the checkpoint does not say")
