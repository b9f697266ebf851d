"""How a parameter's optimizer state is kept: each named state as float32, or as 8-bit codes with an absmax per block.

A state ``exp_avg`` is either ``exp_avg`` (float32, the parameter's shape) or ``exp_avg_codes`` (uint8, the parameter's
shape) with ``exp_avg_absmax`` (float32, one per block). The keys differ on purpose: a checkpoint of one form never
fills tensors of the other. Knows the codec; no rule, no group.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from torch_bnb import codec

SIGNED, UNSIGNED = True, False
"""The code map of a state: first moments need a sign, second moments have none."""

ABSENT = torch.empty(0)
"""Stands for a state, or an absmax, that there is none of."""

State = dict[str, Any]


def wants_8bit(config: Mapping[str, Any], parameter: Tensor) -> bool:
    """Whether a parameter's state belongs in 8 bits: large enough, and not float64, whose users want precision."""
    return (
        config["optim_bits"] == 8 and parameter.numel() >= config["min_8bit_size"] and parameter.dtype != torch.float64
    )


def size(numel: int, bits: int, block_wise: bool = True) -> int:
    """Bytes of one state of `numel` elements."""
    return 4 * numel if bits == 32 else numel + 4 * (codec.blocks(numel) if block_wise else min(1, numel))


def new_history(parameter: Tensor) -> Tensor:
    """The norms of a parameter's last 100 gradients, the latest last; NaN where there was none yet."""
    return torch.full((100,), torch.nan, dtype=torch.float32, device=parameter.device)


HISTORY = "grad_norms"
"""Where `percentile_clipping` keeps its history."""


def codes_key(name: str) -> str:
    """Where the codes of a state are kept."""
    return f"{name}_codes"


def absmax_key(name: str) -> str:
    """Where the absmax of a state are kept."""
    return f"{name}_absmax"


def prepare(
    state: State, states: Mapping[str, bool], parameter: Tensor, config: Mapping[str, Any], initial: float = 0.0
) -> None:
    """Brings every state into the form that a config wants, in place: made if new, converted if kept otherwise.

    Args:
        state: The parameter's.
        states: The names to prepare, and whether each has a sign.
        parameter: The parameter.
        config: Its options.
        initial: Value of every element of a new state.
    """
    blocksize = 0
    if wants_8bit(config, parameter):
        blocksize = codec.BLOCK_SIZE if config["block_wise"] else max(1, parameter.numel())
    for name, signed in states.items():
        kept = _blocksize(state, name)
        if kept == blocksize:
            continue
        if kept is None and initial == 0 and blocksize:
            state[codes_key(name)] = _full(parameter, codec.ZERO_CODE[signed], torch.uint8)
            count = codec.blocks(parameter.numel(), blocksize)
            state[absmax_key(name)] = torch.zeros(count, dtype=torch.float32, device=parameter.device)
            continue
        if kept is None:
            values = _full(parameter, initial, torch.float32)
        elif kept == 0:
            values = state.pop(name)
        else:
            codes, absmax = state.pop(codes_key(name)), state.pop(absmax_key(name))
            values = codec.dequantize_blockwise(codes, absmax, signed, kept)
        if blocksize:
            state[codes_key(name)], state[absmax_key(name)] = encode(values, signed, blocksize)
        else:
            state[name] = values


def encode(values: Tensor, signed: bool, blocksize: int = codec.BLOCK_SIZE) -> tuple[Tensor, Tensor]:
    """(codes, absmax) of a state, as the kernel rounds: a second moment above zero does not become zero."""
    codes, absmax = codec.quantize_blockwise(values, signed, blocksize)
    if not signed:
        codes[(codes == 0) & (values > 0)] = 1
    return codes, absmax


def _blocksize(state: State, name: str) -> int | None:
    """How a state is kept: elements that share an absmax, 0 for float32, None if it is not there."""
    if name in state:
        return 0
    if codes_key(name) not in state:
        return None
    numel, count = state[codes_key(name)].numel(), state[absmax_key(name)].numel()
    return codec.BLOCK_SIZE if count == codec.blocks(numel) else max(1, numel)


def _full(parameter: Tensor, value: float, dtype: torch.dtype) -> Tensor:
    return torch.full_like(parameter, value, dtype=dtype, memory_format=torch.contiguous_format)


def has(state: State, name: str) -> bool:
    """Whether a state is kept, in either form."""
    return name in state or codes_key(name) in state


def gather(states: Sequence[State], name: str) -> tuple[list[Tensor], list[Tensor]]:
    """The values or codes of one state of many parameters, and their absmax or `ABSENT`. All are prepared."""
    codes, absmax = codes_key(name), absmax_key(name)
    values = [state[codes] if codes in state else state[name] for state in states]
    return values, [state.get(absmax, ABSENT) for state in states]


def absent(count: int) -> tuple[list[Tensor], list[Tensor]]:
    """The same for a state that a configuration does without."""
    return [ABSENT] * count, [ABSENT] * count
