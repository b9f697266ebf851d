"""State out of a checkpoint with every tensor's own dtype: torch's loader would cast it to the parameter's."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from torch_bnb import codec
from torch_bnb.checkpoint import checks
from torch_bnb.optim.state import HISTORY, State, absmax_key, codes_key


def restore(
    saved: Mapping[str, Any], params: Sequence[Tensor], states: Iterable[str], required: Sequence[set[str]], who: str
) -> dict[Tensor, State]:
    """Every parameter's state, on the parameter's device, shared with nobody.

    Args:
        saved: A ``state_dict()`` that passed `checks.check`.
        params: The loading optimizer's parameters, in the order of its groups.
        states: The state names that its rule knows.
        required: By parameter, the states that its configuration cannot do without.
        who: Its class, for errors.

    Raises:
        ValueError: An entry is unknown, lacks its partner, is no tensor or has the wrong type or shape.
    """
    indices = [index for group in saved["param_groups"] for index in group["params"]]
    return {
        parameter: _restore_one(saved["state"][index], list(states), needed, parameter, f"{who}, parameter {index}")
        for index, parameter, needed in zip(indices, params, required, strict=True)
        if saved["state"].get(index)
    }


def _restore_one(
    saved: Mapping[str, Any], states: list[str], required: set[str], parameter: Tensor, what: str
) -> State:
    known = {"step", HISTORY, *states, *map(codes_key, states), *map(absmax_key, states)}
    if unknown := saved.keys() - known:
        raise ValueError(f"{what}: unknown state {sorted(unknown, key=str)}; expected some of {sorted(known)}")
    result: State = {}
    if "step" in saved:
        result["step"] = checks.step_count(saved["step"], f"{what}: 'step'")
    if HISTORY in saved:
        result[HISTORY] = _tensor(saved[HISTORY], torch.float32, torch.Size([100]), parameter, f"{what}: {HISTORY!r}")
    for name in states:
        codes, absmax = codes_key(name), absmax_key(name)
        if (codes in saved) != (absmax in saved):
            raise ValueError(f"{what}: {codes!r} and {absmax!r} belong together, the checkpoint has only one of them")
        if codes in saved:
            result[codes] = _tensor(saved[codes], torch.uint8, parameter.shape, parameter, f"{what}: {codes!r}")
            whole = isinstance(saved[absmax], Tensor) and saved[absmax].shape == (1,)
            blocks = torch.Size([1 if whole else codec.blocks(parameter.numel())])
            result[absmax] = _tensor(saved[absmax], torch.float32, blocks, parameter, f"{what}: {absmax!r}")
        elif saved.get(name) is not None:
            result[name] = _tensor(saved[name], torch.float32, parameter.shape, parameter, f"{what}: {name!r}")
    checks.need_step(result, set(map(_name, result)) & set(states), what)
    if result and not set(map(_name, result)) >= required:
        missing = sorted(required - set(map(_name, result)))
        raise ValueError(f"{what}: the checkpoint lacks {', '.join(map(repr, missing))}; it is of another rule")
    return result


def _name(key: str) -> str:
    """The state that an entry belongs to."""
    return key.removesuffix("_codes").removesuffix("_absmax")


def _tensor(value: Any, dtype: torch.dtype, shape: torch.Size, parameter: Tensor, what: str) -> Tensor:
    value = checks.tensor(value, what, torch.uint8 if dtype is torch.uint8 else None)
    if value.shape != shape:
        raise ValueError(f"{what} must have shape {tuple(shape)}, got {tuple(value.shape)}")
    return torch.empty(shape, dtype=dtype, device=parameter.device).copy_(value)
