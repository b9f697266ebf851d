"""Typed wrappers of the compiled operators: lists of tensors in, updated in place. No policy, no state."""

import functools
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

try:
    from torch_bnb import _C  # noqa: F401  (loading it registers torch.ops.torch_bnb and torch.ops.torch_bnb_codec)
except ImportError as error:
    raise ImportError(
        f"torch_bnb's kernels are not built here ({error}): pip install --no-build-isolation -e ."
    ) from None

BLOCK_SIZE: int = torch.ops.torch_bnb_codec.block_size()
"""Elements that share one absmax in an optimizer state."""


@functools.cache
def has_kernel(rule: str, device: torch.device) -> bool:
    """Whether this build has `rule` for the type of `device`."""
    key = {"cpu": "CPU", "cuda": "CUDA", "meta": "Meta"}.get(device.type)
    return key is not None and torch._C._dispatch_has_kernel_for_dispatch_key(f"torch_bnb::{rule}", key)


def update(
    rule: str,
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    states: Sequence[Tensor],
    absmax: Sequence[Tensor],
    scalars: Mapping[str, float],
    *,
    grad_scale: float = 1.0,
    grad_scales: Tensor | None = None,
    max_unorm: float = 0.0,
    skip_zeros: bool = False,
    stochastic_weights: bool = False,
    stochastic_states: Sequence[int] = (),
    seed: int = 0,
    keys: Sequence[int] = (),
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
        grad_scale: Gradients are multiplied by it as they are read; -1 maximises.
        grad_scales: float32 tensor with one more factor for each gradient.
        max_unorm: Longest update before the learning rate, as a multiple of its parameter's norm; 0 is off.
        skip_zeros: Elements with zero gradient stay as they are, their state included.
        stochastic_weights: Round bfloat16 and float16 parameters stochastically.
        stochastic_states: Which of the rule's states to round stochastically where they are 8-bit, by index.
        seed: Of stochastic rounding, with `keys`.
        keys: One number per parameter, other at every step.

    Raises:
        RuntimeError: A tensor has the wrong dtype, layout, size or device. Nothing has been written then.
    """
    options = {
        "grad_scale": grad_scale,
        "grad_scales": grad_scales,
        "max_unorm": max_unorm,
        "skip_zeros": skip_zeros,
        "stochastic_weights": stochastic_weights,
        "stochastic_states": stochastic_states,
        "seed": seed,
        "keys": keys,
    }
    getattr(torch.ops.torch_bnb, rule)(params, grads, states, absmax, **scalars, **options)


def quantize_blockwise(values: Tensor, codes: Tensor, absmax: Tensor, signed: bool, blocksize: int) -> None:
    """Fills `codes` (uint8) and `absmax` (float32, one per block) from contiguous float32 `values`."""
    torch.ops.torch_bnb_codec.quantize_blockwise(values, codes, absmax, signed, blocksize)


def dequantize_blockwise(values: Tensor, codes: Tensor, absmax: Tensor, signed: bool, blocksize: int) -> None:
    """Fills contiguous float32 `values` from `codes` (uint8) and `absmax` (float32, one per block)."""
    torch.ops.torch_bnb_codec.dequantize_blockwise(values, codes, absmax, signed, blocksize)


def dynamic_map(out: Tensor, signed: bool) -> None:
    """Writes the 256 sorted numbers of a code map into `out` (float32, on the CPU)."""
    torch.ops.torch_bnb_codec.dynamic_map(out, signed)
