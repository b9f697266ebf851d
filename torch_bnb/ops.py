"""Typed wrappers of the compiled operators: lists of tensors in, updated in place. No policy, no state."""

import functools
from collections.abc import Mapping, Sequence
from ctypes import c_float
from typing import NamedTuple, TypedDict

import torch
from torch import Tensor
from typing_extensions import Unpack

try:
    from torch_bnb import _C  # loading it registers torch.ops.torch_bnb and torch.ops.torch_bnb_codec
except ImportError as error:
    raise ImportError(
        f"torch_bnb's kernels are not built here ({error}): pip install --no-build-isolation -e ."
    ) from None

_C.accept(Tensor, torch.nn.Parameter)

BLOCK_SIZE: int = torch.ops.torch_bnb_codec.block_size()
"""Elements that share one absmax in an optimizer state."""


def instruction_set() -> str:
    """Which of the CPU's kernels are in use: "avx512", "avx2" or "baseline".

    Raises:
        RuntimeError: ``TORCH_BNB_ISA`` asks for one that this machine lacks.
    """
    return _C.instruction_set()


@functools.cache
def has_kernel(rule: str, device: torch.device) -> bool:
    """Whether this build has `rule` for the type of `device`."""
    key = {"cpu": "CPU", "cuda": "CUDA", "meta": "Meta"}.get(device.type)
    return key is not None and torch._C._dispatch_has_kernel_for_dispatch_key(f"torch_bnb::{rule}", key)


class Common(TypedDict, total=False):
    """Keyword arguments of a rule's operators, with n parameters."""

    grad_scale: float
    """Gradients are multiplied by it as they are read; -1 maximises."""
    grad_scales: Tensor | None
    """float32, shape (n,): one more factor for each gradient."""
    max_unorm: float
    """Longest update before the learning rate, as a multiple of its parameter's norm; 0 is off."""
    skip_zeros: bool
    """Elements with zero gradient stay as they are, their state included."""
    norms: Tensor | None
    """float32, shape (n, 3): what `norms_of` made of measured sums. Without it, what is in the call is measured."""
    stochastic_weights: bool
    """Round bfloat16 and float16 parameters stochastically."""
    stochastic_states: Sequence[int]
    """Which of the rule's states to round stochastically where they are 8-bit, by index."""
    seed: int
    """Of stochastic rounding, with `keys`."""
    keys: Sequence[int]
    """One number per parameter, other at every step."""
    rows: Sequence[int]
    """Elements of each parameter's rows, which blocks do not cross; 0: it is one row. Empty: all are."""
    row_strides: Sequence[int]
    """The same of the whole tensor, where a parameter is a part of one. For stochastic rounding, with `origins`."""
    origins: Sequence[int]
    """Index in the whole tensor of each parameter's first element."""


def update(
    rule: str,
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    states: Sequence[Tensor],
    absmax: Sequence[Tensor],
    scalars: Mapping[str, float],
    **common: Unpack[Common],
) -> None:
    """One step of `rule` for every parameter, in one parallel region: ``param -= lr * direction``.

    Args:
        rule: Name of the operator, for example ``"adamw"``.
        params: n contiguous tensors in float32, bfloat16, float16 or float64, updated in place.
        grads: n tensors of the same shapes, each in any of those dtypes.
        states: n tensors per state of the rule, state by state. float32 values or uint8 codes of the parameter's shape,
            updated in place; an empty tensor stands for a state that the configuration does without.
        absmax: One float32 tensor per entry of `states` with one number per block of 256 elements or a single one for
            the whole tensor (empty where the state is float32), or an empty list when no state is uint8.
        scalars: The rule's floats by name.
        **common: See `Common`.

    Raises:
        RuntimeError: A tensor has the wrong dtype, layout, size or device. Nothing has been written then.
    """
    getattr(torch.ops.torch_bnb, rule)(params, grads, states, absmax, **scalars, **common)


class Headers(NamedTuple):
    """Where tensors lie and what they are, for `update_by_address`."""

    table: Tensor
    """int64, shape (m, 3), a row for each: its address, how many elements it has, and a number that stands for dtype,
    device, shape and whether it is contiguous."""
    tensors: list[Tensor]
    """What is described, so that it stays alive."""


def headers_of(tensors: list[Tensor]) -> Headers | None:
    """Reads the headers of m tensors.

    Args:
        tensors: None of them stands for its negative (``is_neg``), which no header says.

    Returns:
        None if one is no plain tensor in memory of a CPU or a CUDA device (is of a subclass, sparse, on meta, ...), or
        if a mode of ``__torch_dispatch__`` wants to see them.
    """
    if torch._C._len_torch_dispatch_stack():
        return None
    table = torch.empty(len(tensors), 3, dtype=torch.int64, device="cpu")
    return Headers(table, tensors) if _C.read_headers(tensors, table) else None


def update_by_address(rule: str, headers: Headers, scalars: Mapping[str, float], **common: Unpack[Common]) -> None:
    """`update` of tensors of which only the headers are handed over.

    A list of tensors costs torch's dispatcher a fifth of a microsecond for each, and a parameter with two 8-bit states
    has six: more than the step of a small one takes.

    Args:
        rule: As in `update`.
        headers: Of its four lists one after the other, where `absmax` has an entry per state. They are trusted: nothing
            but the tensors' elements may have changed since they were read.
        scalars: As in `update`.
        **common: As there.

    Raises:
        RuntimeError: As there.
    """
    getattr(torch.ops.torch_bnb, rule).by_address(headers.table, headers.tensors[0], **scalars, **common)


def update_on_device(
    rule: str,
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    states: Sequence[Tensor],
    absmax: Sequence[Tensor],
    scalars: Tensor,
    moving_keys: Tensor | None = None,
    found_inf: Tensor | None = None,
    **common: Unpack[Common],
) -> None:
    """`update`, with what changes from step to step in tensors: read when the device gets there, not when it is called.

    Args:
        rule: As in `update`.
        params: As in `update`.
        grads: As in `update`.
        states: As in `update`.
        absmax: As in `update`.
        scalars: float32: the rule's floats in the order of its kScalars, which is that of the optimizer's `scalars`.
        moving_keys: int64, one number per parameter, in place of ``keys``.
        found_inf: float32, one number: unless it is 0, nothing changes.
        **common: See `Common`.
    """
    step = getattr(torch.ops.torch_bnb, rule).on_device
    step(params, grads, states, absmax, scalars=scalars, moving_keys=moving_keys, found_inf=found_inf, **common)


def measure(
    rule: str,
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    states: Sequence[Tensor],
    absmax: Sequence[Tensor],
    scalars: Mapping[str, float],
    sums: Tensor,
    **common: Unpack[Common],
) -> None:
    """Sums of squares over each parameter of a step that is not made; arguments as those of `update`.

    Who holds only a part of a parameter adds them up with the others', and steps with what `norms_of` makes of them.

    Args:
        rule: As in `update`.
        params: n tensors, not changed.
        grads: As in `update`.
        states: As in `update`, not changed.
        absmax: As in `update`, not changed.
        scalars: The rule's.
        sums: float64, shape (n, 3), filled: of the parameter, of what a layer-wise rule measures, and of the update
            before the learning rate. The last needs the ``norms`` of a layer-wise rule, and is 0 without.
        **common: See `Common`.
    """
    getattr(torch.ops.torch_bnb_measure, rule)(params, grads, states, absmax, sums, **scalars, **common)


def norms_of(sums: Tensor, max_unorm: float) -> Tensor:
    """What a step needs of sums over whole parameters.

    Args:
        sums: float64, shape (n, 3), from `measure`.
        max_unorm: As in `Common`.

    Returns:
        float32, shape (n, 3): norms of the parameter and of what a layer-wise rule measures, and the factor that keeps
        the update within `max_unorm`.
    """
    param, measured, update = sums.sqrt().unbind(1)
    limit = c_float(max_unorm).value * param  # the kernels' own is a float32
    too_long = (limit > 0) & (update > limit)
    return torch.stack([param, measured, torch.where(too_long, limit / update, 1.0)], dim=1).to(torch.float32)


def quantize_blockwise(values: Tensor, codes: Tensor, absmax: Tensor, signed: bool, blocksize: int) -> None:
    """Fills `codes` (uint8) and `absmax` (float32, one per block) from contiguous float32 `values`."""
    torch.ops.torch_bnb_codec.quantize_blockwise(values, codes, absmax, signed, blocksize)


def dequantize_blockwise(values: Tensor, codes: Tensor, absmax: Tensor, signed: bool, blocksize: int) -> None:
    """Fills contiguous float32 `values` from `codes` (uint8) and `absmax` (float32, one per block)."""
    torch.ops.torch_bnb_codec.dequantize_blockwise(values, codes, absmax, signed, blocksize)


def dynamic_map(out: Tensor, signed: bool) -> None:
    """Writes the 256 sorted numbers of a code map into `out` (float32, on the CPU)."""
    torch.ops.torch_bnb_codec.dynamic_map(out, signed)
