"""How a parameter's optimizer state is kept: each named state as float32, or as 8-bit codes with an absmax per block.

A state ``exp_avg`` is either ``exp_avg`` (float32, the parameter's shape) or ``exp_avg_codes`` (uint8, the parameter's
shape) with ``exp_avg_absmax`` (float32, one per block). The keys differ on purpose: a checkpoint of one form never
fills tensors of the other. Of a sharded parameter, all are sharded like it. Knows the codec, and that tensors may be
sharded or in host memory; no rule, no group.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from enum import Enum
from typing import Any

import torch
from torch import Tensor

from torch_bnb import codec
from torch_bnb.optim import host, sharding

SIGNED, UNSIGNED = True, False
"""The code map of a state: first moments need a sign, second moments have none."""

State = dict[str, Any]


class Form(Enum):
    """How one state is kept. Says of 8-bit ones which elements share an absmax, and so the absmax's shape."""

    FLOAT32 = "float32"
    FLAT = "flat"
    """256 elements in a row, whatever the shape: absmax of shape (blocks,)."""
    ROWS = "rows"
    """256 of one row, which is all dimensions but the first: absmax of shape (rows, blocks per row)."""
    WHOLE = "whole"
    """All: absmax of shape (1,)."""


MIN_ROW = 16
"""Shorter rows of a grid of rows stay in float32: an absmax each would take up what codes save."""


def asks_for_8bit(config: Mapping[str, Any], parameter: Tensor) -> bool:
    """Whether a config asks for 8 bits of a parameter, however it is laid out.

    They are for parameters that are large enough as a whole, however little of them a process holds; not for float64,
    whose users want precision.
    """
    large = parameter.numel() >= config["min_8bit_size"]
    return config["optim_bits"] == 8 and large and parameter.dtype != torch.float64


def wanted(config: Mapping[str, Any], parameter: Tensor) -> Form:
    """The form that a config asks for.

    A sharded parameter has the grid of rows, or 32 bits where its shards would cut blocks.
    """
    if not asks_for_8bit(config, parameter):
        return Form.FLOAT32
    if sharding.is_sharded(parameter):
        return Form.ROWS if can_shard(parameter) else Form.FLOAT32
    if not config["block_wise"]:
        return Form.WHOLE
    if config["block_grid"] == "flat":
        return Form.FLAT
    return Form.ROWS if row_of(parameter) >= MIN_ROW else Form.FLOAT32


def wants_8bit(config: Mapping[str, Any], parameter: Tensor) -> bool:
    """Whether a parameter's state belongs in 8 bits."""
    return wanted(config, parameter) is not Form.FLOAT32


def can_shard(parameter: Tensor) -> bool:
    """Whether the shards of a parameter may have 8-bit state."""
    return row_of(parameter) >= MIN_ROW and sharding.part_of(parameter).keeps_blocks_whole(codec.BLOCK_SIZE)


def row_of(tensor: Tensor) -> int:
    """Elements of a row: of all dimensions but the first."""
    return math.prod(tensor.shape[1:])


def absmax_shape(shape: Sequence[int], form: Form) -> tuple[int, ...]:
    """Shape of the absmax of codes of a shape."""
    if form is Form.ROWS:
        return (shape[0], codec.blocks(math.prod(shape[1:])))
    numel = math.prod(shape)
    return (codec.blocks(numel) if form is Form.FLAT else min(1, numel),)


def size(shape: Sequence[int], form: Form) -> int:
    """Bytes of one state."""
    numel = math.prod(shape)
    return 4 * numel if form is Form.FLOAT32 else numel + 4 * math.prod(absmax_shape(shape, form))


def new_history(parameter: Tensor) -> Tensor:
    """The norms of a parameter's last gradients, the latest last; NaN where there was none yet."""
    return torch.full((HISTORY_LENGTH,), torch.nan, dtype=torch.float32, device=parameter.device)


HISTORY = "grad_norms"
"""Where `percentile_clipping` keeps its history."""

HISTORY_LENGTH = 100


_CODES = "_codes"


def codes_key(name: str) -> str:
    """Where the codes of a state are kept."""
    return f"{name}{_CODES}"


def absmax_key(name: str) -> str:
    """Where the absmax of a state are kept."""
    return f"{name}_absmax"


def prepare(
    state: State, states: Mapping[str, bool], parameter: Tensor, config: Mapping[str, Any], initial: float = 0.0
) -> None:
    """Brings every state into the form and to the place that a config wants: made if new, converted if kept otherwise.

    Args:
        state: The parameter's.
        states: The names to prepare, and whether each has a sign.
        parameter: The parameter.
        config: Its options.
        initial: Value of every element of a new state.

    Raises:
        ValueError: A state is on meta and its parameter is not.
    """
    form, home = wanted(config, parameter), host.home_of(config, parameter)
    for name, signed in states.items():
        kept = form_of(state, name)
        if kept is None:
            _make(state, name, signed, parameter, form, home, initial)
        elif kept is form:
            for key in (name,) if form is Form.FLOAT32 else (codes_key(name), absmax_key(name)):
                state[key] = _brought(key, state[key], home, parameter)
        else:
            host.settle({parameter: state})
            _convert(state, name, kept, signed, parameter, form, home)


def _make(
    state: State, name: str, signed: bool, parameter: Tensor, form: Form, home: host.Home, initial: float
) -> None:
    shape = sharding.local(parameter).shape
    if form is Form.FLOAT32:
        state[name] = sharding.wrap(home.full(shape, initial, torch.float32), parameter)
    elif initial == 0:
        codes = home.full(shape, codec.ZERO_CODE[signed], torch.uint8)
        put(state, name, parameter, codes, home.full(absmax_shape(shape, form), 0, torch.float32), form)
    else:
        values = torch.full(shape, initial, dtype=torch.float32, device=parameter.device)
        put(state, name, parameter, *map(home.take, encode(values, signed, form)), form)


def _convert(state: State, name: str, kept: Form, signed: bool, parameter: Tensor, form: Form, home: host.Home) -> None:
    if kept is Form.FLOAT32:
        values = sharding.local(state.pop(name))
    else:
        codes, absmax = (sharding.local(state.pop(key)) for key in (codes_key(name), absmax_key(name)))
        if (same := reshaped(absmax, codes, kept, form)) is not None:
            put(state, name, parameter, home.take(codes), home.take(same), form)
            return
        values = decode(codes, absmax, signed)
    if form is Form.FLOAT32:
        state[name] = sharding.wrap(home.take(values), parameter)
    else:
        put(state, name, parameter, *map(home.take, encode(values, signed, form)), form)


def _brought(key: str, kept: Tensor, home: host.Home, parameter: Tensor) -> Tensor:
    """A tensor of state, where it belongs."""
    if kept.is_meta and not parameter.is_meta:
        raise ValueError(
            f"{key} of the parameter of shape {tuple(parameter.shape)} is on meta, where it has no numbers; "
            f"expected it on {home.device}"
        )
    here = sharding.local(kept)
    brought = home.take(here)
    return kept if brought is here else sharding.wrap(brought, parameter, kept.shape)


def put(state: State, name: str, parameter: Tensor, codes: Tensor, absmax: Tensor, form: Form) -> None:
    """Keeps an 8-bit state of which `codes` and `absmax` are this process's part."""
    state[codes_key(name)] = sharding.wrap(codes, parameter)
    state[absmax_key(name)] = sharding.wrap(absmax, parameter, absmax_shape(parameter.shape, form))


def reshaped(absmax: Tensor, codes: Tensor, kept: Form, form: Form) -> Tensor | None:
    """The absmax in another form where that has the very same blocks, else None."""
    forms = {kept, form}
    same = forms == {Form.FLAT, Form.ROWS} and row_of(codes) % codec.BLOCK_SIZE == 0 and codes.dim() > 0
    same |= forms == {Form.FLAT, Form.WHOLE} and codec.blocks(codes.numel()) == 1
    return absmax.reshape(absmax_shape(codes.shape, form)) if same else None


def encode(values: Tensor, signed: bool, form: Form = Form.FLAT) -> tuple[Tensor, Tensor]:
    """(codes, absmax) of a state, as the kernel rounds: a second moment above zero does not become zero."""
    rows = _whole_blocks(values) if form is Form.ROWS else values
    blocksize = max(1, values.numel()) if form is Form.WHOLE else codec.BLOCK_SIZE
    codes, absmax = codec.quantize_blockwise(rows, signed, blocksize)
    if form is Form.ROWS:
        codes = codes[:, : row_of(values)].contiguous().view(values.shape)
    if not signed:
        codes[(codes == 0) & (values > 0)] = 1
    return codes, absmax.view(absmax_shape(values.shape, form))


def decode(codes: Tensor, absmax: Tensor, signed: bool) -> Tensor:
    """A state in float32. How it was kept shows in the shape of its absmax."""
    if absmax.dim() == 2:
        rows = codec.dequantize_blockwise(_whole_blocks(codes), absmax.flatten(), signed)
        return rows[:, : row_of(codes)].contiguous().view(codes.shape)
    whole = absmax.numel() < codec.blocks(codes.numel())
    return codec.dequantize_blockwise(codes, absmax, signed, max(1, codes.numel()) if whole else codec.BLOCK_SIZE)


def decode_exactly(codes: Tensor, absmax: Tensor, signed: bool) -> Tensor:
    """A state in float32 of which `encode` makes the same codes and absmax again.

    The signed map has no -1, so a block whose largest element is negative would come back smaller: here its code 0
    stands for minus its absmax.
    """
    values = decode(codes, absmax, signed)
    if signed and codes.numel() > 0:
        blocks = _in_blocks(codes, absmax)
        stands_for_one = (blocks == 0) & (blocks != 255).all(dim=1, keepdim=True)
        exact = torch.where(stands_for_one, -absmax.view(-1, 1), _in_blocks(values, absmax))
        values = exact.view(codes.shape[0], -1)[:, : row_of(codes)] if absmax.dim() == 2 else exact.view(-1)
        values = values.contiguous().view(-1)[: codes.numel()].view(codes.shape)
    return values


def _in_blocks(tensor: Tensor, absmax: Tensor) -> Tensor:
    """A matrix with a row for each number of `absmax`: the elements that share it, and zeros where they are fewer."""
    if absmax.dim() == 2:
        return _whole_blocks(tensor).view(-1, codec.BLOCK_SIZE)
    width = tensor.numel() if absmax.numel() == 1 else codec.BLOCK_SIZE
    return torch.nn.functional.pad(tensor.reshape(-1), (0, -tensor.numel() % width)).view(-1, width)


def part(name: str, kept: State, signed: bool, parameter: Tensor) -> State:
    """One state that this process has whole, as its part of the state of a sharded parameter.

    Args:
        name: The state's.
        kept: Its tensors, plain, by their keys.
        signed: Whether it has a sign.
        parameter: Sharded.

    Returns:
        Codes and absmax, if the blocks are those of the parameter's own form; else float32, to be encoded again.
    """
    if name in kept:
        return {name: sharding.take(kept[name], parameter)}
    codes, absmax = kept[codes_key(name)], kept[absmax_key(name)]
    form = form_of(kept, name)
    rows = absmax if form is Form.ROWS else reshaped(absmax, codes, form, Form.ROWS)
    if rows is None or not can_shard(parameter):
        return {name: sharding.take(decode(codes, absmax, signed), parameter)}
    return {codes_key(name): sharding.take(codes, parameter), absmax_key(name): sharding.take(rows, parameter)}


def _whole_blocks(tensor: Tensor) -> Tensor:
    """Rows as a matrix, each filled up with zeros to whole blocks."""
    rows = tensor.reshape(tensor.shape[0], row_of(tensor))
    return torch.nn.functional.pad(rows, (0, -rows.shape[1] % codec.BLOCK_SIZE))


def form_of(state: State, name: str) -> Form | None:
    """How a state is kept; None if it is not there."""
    if name in state:
        return Form.FLOAT32
    if codes_key(name) not in state:
        return None
    codes, absmax = state[codes_key(name)], state[absmax_key(name)]
    if absmax.dim() == 2:
        return Form.ROWS
    return Form.FLAT if absmax.numel() == codec.blocks(codes.numel()) else Form.WHOLE


def has(state: State, name: str) -> bool:
    """Whether a state is kept, in either form."""
    return name in state or codes_key(name) in state


def misfit(state: State, names: Mapping[str, bool], required: Collection[str], parameter: Tensor) -> str | None:
    """What is wrong with a parameter's state, as after somebody has exchanged or deleted some of it; None if nothing.

    Args:
        state: Empty before the first step.
        names: The rule's states, and whether each has a sign.
        required: Those of them that a parameter cannot be without once it has stepped.
        parameter: Whose state it is.
    """
    shape = sharding.local(parameter).shape
    for name in names:
        if unfit := _misfit_of_one(state, name, shape):
            return unfit
    required = [name for name in names if name in required]
    step, there = state.get("step", 0), [name for name in required if has(state, name)]
    if there and "step" not in state:
        return f"there is {there[0]} and no step count"
    has_stepped = isinstance(step, Tensor) or step > 0
    if (there or has_stepped) and (missing := [name for name in required if name not in there]):
        return f"it has stepped and there is no {' nor '.join(missing)}"
    return None


def _misfit_of_one(state: State, name: str, shape: torch.Size) -> str | None:
    value, codes, absmax = state.get(name), state.get(codes_key(name)), state.get(absmax_key(name))
    for key, kept, dtype in ((name, value, torch.float32), (codes_key(name), codes, torch.uint8)):
        if kept is not None and (kept.dtype is not dtype or sharding.local(kept).shape != shape):
            return f"its {key} is {_described(kept)}; expected {dtype} of shape {tuple(shape)}"
    if codes is None and absmax is None:
        return None
    if codes is None or absmax is None:
        keys = absmax_key(name), codes_key(name)
        return "there is {} and no {}".format(*(keys if codes is None else reversed(keys)))
    count, forms = sharding.local(absmax).numel(), (Form.FLAT, Form.ROWS, Form.WHOLE)
    counts = (math.prod(absmax_shape(shape or (1,), form)) for form in forms)
    if absmax.dtype is not torch.float32 or count not in counts:
        allowed = " or ".join(str(math.prod(absmax_shape(shape or (1,), form))) for form in forms)
        return f"its {absmax_key(name)} is {_described(absmax)}; expected torch.float32 with {allowed} elements"
    return None


def _described(tensor: Tensor) -> str:
    return f"{tensor.dtype} of shape {tuple(tensor.shape)}"


def gather(states: Sequence[State], name: str) -> tuple[list[Tensor], list[Tensor]]:
    """The values or codes of one state of many parameters, and their absmax, or nothings. All are prepared."""
    codes, absmax, none = codes_key(name), absmax_key(name), _nothing()
    values = [state[codes] if codes in state else state[name] for state in states]
    return values, [state.get(absmax, none) for state in states]


def absent(count: int) -> tuple[list[Tensor], list[Tensor]]:
    """The same for a state that a configuration does without."""
    return [_nothing()] * count, [_nothing()] * count


def _nothing() -> Tensor:
    """Stands for a state, or an absmax, that there is none of. Made anew, as a mode of fake tensors takes no others."""
    return torch.empty(0, device="cpu")
