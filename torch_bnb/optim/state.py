"""How a parameter's optimizer state is kept: each named state as float32, or as 8-bit codes with an absmax per block.

A state ``exp_avg`` is either ``exp_avg`` (float32, the parameter's shape) or ``exp_avg_codes`` (uint8, the parameter's
shape) with ``exp_avg_absmax`` (float32, one per block). The keys differ on purpose: a checkpoint of one form never
fills tensors of the other. Knows the codec; no rule, no group.
"""

from collections.abc import Mapping
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
        config["optim_bits"] == 8 and parameter.numel() >= config["min_8bit_size"] and parameter.dtype != torch.float64
    )


def size(numel: int, bits: int) -> int:
    """Bytes of one state of `numel` elements."""
    return 4 * numel if bits == 32 else numel + 4 * codec.blocks(numel)


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


def has(state: State, name: str) -> bool:
    """Whether a state is kept, in either form."""
    return name in state or codes_key(name) in state


def tensors(state: State, name: str) -> tuple[Tensor, Tensor]:
    """(values or codes, absmax or `ABSENT`) of a prepared state; both `ABSENT` if the state is not kept at all."""
    if codes_key(name) in state:
        return state[codes_key(name)], state[absmax_key(name)]
    return state.get(name, ABSENT), ABSENT


def _zeros_8bit(parameter: Tensor, signed: bool) -> tuple[Tensor, Tensor]:
    codes = torch.full_like(parameter, _ZERO_CODE[signed], dtype=torch.uint8, memory_format=torch.contiguous_format)
    return codes, torch.zeros(codec.blocks(parameter.numel()), dtype=torch.float32, device=parameter.device)
