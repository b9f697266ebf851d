"""A state_dict as it leaves an optimizer: native, or in a form for code that shards it and knows nothing of 8 bits."""

import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor

from torch_bnb.checkpoint.restore import keys_of
from torch_bnb.optim import sharding
from torch_bnb.optim import state as storage
from torch_bnb.optim.state import State

if TYPE_CHECKING:
    from torch_bnb.optim.base import BlockwiseOptimizer

FORMATS = ("native", "portable")


def orphans(optimizer: "BlockwiseOptimizer") -> list[Tensor]:
    """Parameters that have state and are in no group any more."""
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    return [parameter for parameter in optimizer.state if id(parameter) not in held]


def refuse_orphans(optimizer: "BlockwiseOptimizer") -> None:
    """Raises ValueError for state of parameters that are in no group any more: it would be lost without a word."""
    if lost := orphans(optimizer):
        raise ValueError(
            f"{type(optimizer).__name__} has state of {len(lost)} parameters that are in none of its groups, the "
            f"first of shape {tuple(lost[0].shape)}: they were replaced or removed after they had stepped. Hand the "
            "optimizer to the framework before its first step, or drop what is not needed any more: "
            "del optimizer.state[parameter]"
        )


def warn_of_orphans(optimizer: "BlockwiseOptimizer") -> None:
    """Warns of the same as soon as the groups change: what stands in their places now starts from nothing."""
    if lost := orphans(optimizer):
        warnings.warn(
            f"{type(optimizer).__name__}: {len(lost)} parameters that have state, the first of shape "
            f"{tuple(lost[0].shape)}, have left its groups; what has come in their places starts without state, and "
            "state_dict() will be an error while optimizer.state has theirs",
            stacklevel=4,
        )


def refuse_foreign(optimizer: "BlockwiseOptimizer") -> None:
    """Raises ValueError for state that somebody else keeps beside ours: `load_state_dict` would not take it back."""
    known = keys_of(optimizer.states)
    for parameter, entry in optimizer.state.items():
        if foreign := sorted(map(str, entry.keys() - known)):
            raise ValueError(
                f"{type(optimizer).__name__} has {', '.join(foreign)} in the state of the parameter of shape "
                f"{tuple(parameter.shape)}, which is not its own and would not load; whoever wraps "
                "the optimizer must keep that elsewhere"
            )


def plain(state_dict: dict[str, Any]) -> dict[str, Any]:
    """The same state_dict with Python's numbers in its groups, where schedulers may have put NumPy's.

    A file with those is refused by ``torch.load(weights_only=True)``.
    """
    groups = [{key: _plain(value) for key, value in group.items()} for group in state_dict["param_groups"]]
    return {**state_dict, "param_groups": groups}


def _plain(value: Any) -> Any:
    if isinstance(value, (list, tuple)) and not hasattr(value, "_fields"):
        return type(value)(map(_plain, value))
    foreign = getattr(value, "shape", None) == () and not isinstance(value, Tensor)
    return value.item() if foreign else value


def portable(state_dict: dict[str, Any], states: Mapping[str, bool]) -> dict[str, Any]:
    """The same state_dict with every 8-bit state decoded, such that encoding it again gives the same codes."""
    return {**state_dict, "state": {index: _decoded(entry, states) for index, entry in state_dict["state"].items()}}


def _decoded(entry: State, states: Mapping[str, bool]) -> State:
    result = dict(entry)
    for name, signed in states.items():
        if storage.codes_key(name) in entry:
            codes, absmax = result.pop(storage.codes_key(name)), result.pop(storage.absmax_key(name))
            values = storage.decode_exactly(sharding.local(codes), sharding.local(absmax), signed)
            result[name] = sharding.wrap(values, codes)
    return result
