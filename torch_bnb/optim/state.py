"""How a parameter's optimizer state is kept: each named state as float32, or as 8-bit codes with an absmax per block.

A state ``exp_avg`` is either ``exp_avg`` (float32, the parameter's shape) or ``exp_avg_codes`` (uint8, the parameter's shape) with
``exp_avg_absmax`` (float32, one per block). The keys differ on purpose: a checkpoint of one form never fills tensors of the other.
Knows the codec; no rule, no group.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from torch_bnb import codec

SIGNED, UNSIGNED = True, False
"""The code map of a state: first moments need a sign, second moments have none."""

_ZERO_CODE = {signed: int(codec.create_dynamic_map(signed).abs().argmin()) for signed in (SIGNED, UNSIGNED)}

ABSENT = torch.empty(0)
"""Stands for a state, or an absmax, that there is none of."""

State = dict[str, Any]


def wants_8bit(config: Mapping[str, Any], parameter: Tensor) -> bool:
    """Whether a parameter's state belongs in 8 bits: large enough, and not float64, whose users want precision."""
    return (
        config["optim_bits"] == 8
        and parameter.numel() >= config["min_8bit_size"]
        and parameter.dtype != torch.float64
    )


def codes_key(name: str) -> str:
    """Where the codes of a state are kept."""
    return f"{name}_codes"


def absmax_key(name: str) -> str:
    """Where the absmax of a state are kept."""
    return f"{name}_absmax"


def prepare(state: State, states: Mapping[str, bool], parameter: Tensor, eight_bit: bool) -> None:
    """Brings every state into the wanted form, in place: made as zeros if new, converted if kept with other bits."""
    for name, signed in states.items():
        is_8bit = codes_key(name) in state
        if is_8bit == eight_bit and (is_8bit or name in state):
            continue
        if eight_bit:
            values = state.pop(name, None)
            if values is None:
                state[codes_key(name)], state[absmax_key(name)] = _zeros_8bit(parameter, signed)
            else:
                state[codes_key(name)], state[absmax_key(name)] = codec.quantize_blockwise(values, signed)
        elif is_8bit:
            codes, absmax = state.pop(codes_key(name)), state.pop(absmax_key(name))
            state[name] = codec.dequantize_blockwise(codes, absmax, signed)
        else:
            state[name] = torch.zeros_like(parameter, dtype=torch.float32, memory_format=torch.contiguous_format)


def tensors(state: State, name: str) -> tuple[Tensor, Tensor]:
    """(values or codes, absmax or `ABSENT`) of a prepared state; both `ABSENT` if the state is not kept at all."""
    if codes_key(name) in state:
        return state[codes_key(name)], state[absmax_key(name)]
    return state.get(name, ABSENT), ABSENT


def restore(saved: Mapping[str, Any], states: Iterable[str], parameter: Tensor, what: str) -> State:
    """A parameter's state out of a checkpoint, with each tensor's own dtype, on the parameter's device, shared with nobody.

    Args:
        saved: The checkpoint's entries for this parameter.
        states: The names that the rule knows.
        parameter: The parameter they are for.
        what: Names the parameter in errors.

    Raises:
        ValueError: An entry is unknown, missing its partner, no tensor, or of the wrong size.
    """
    result: State = {}
    known = {"step", *states, *map(codes_key, states), *map(absmax_key, states)}
    for key, value in saved.items():
        if key not in known:
            raise ValueError(f"{what}: unknown state {key!r}; expected {', '.join(sorted(known))}")
    if "step" in saved:
        result["step"] = int(saved["step"])
    for name in states:
        codes, absmax = codes_key(name), absmax_key(name)
        if (codes in saved) != (absmax in saved):
            raise ValueError(f"{what}: {codes!r} and {absmax!r} belong together, the checkpoint has only one of them")
        if codes in saved:
            result[codes] = _restored(saved[codes], torch.uint8, parameter.shape, parameter, f"{what}: {codes!r}")
            shape = torch.Size([codec.blocks(parameter.numel())])
            result[absmax] = _restored(saved[absmax], torch.float32, shape, parameter, f"{what}: {absmax!r}")
        if saved.get(name) is not None:
            result[name] = _restored(saved[name], torch.float32, parameter.shape, parameter, f"{what}: {name!r}")
    return result


def _zeros_8bit(parameter: Tensor, signed: bool) -> tuple[Tensor, Tensor]:
    codes = torch.full_like(parameter, _ZERO_CODE[signed], dtype=torch.uint8, memory_format=torch.contiguous_format)
    return codes, torch.zeros(codec.blocks(parameter.numel()), dtype=torch.float32, device=parameter.device)


def _restored(value: Any, dtype: torch.dtype, shape: torch.Size, parameter: Tensor, what: str) -> Tensor:
    if not isinstance(value, Tensor):
        raise ValueError(f"{what} must be a tensor, got {value!r}")
    if value.shape != shape:
        raise ValueError(f"{what} must have shape {tuple(shape)}, got {tuple(value.shape)}")
    return torch.empty(shape, dtype=dtype, device=parameter.device).copy_(value)
