"""The 8-bit code: a map of 256 numbers, and tensors quantised block by block with it.

Block-wise dynamic quantisation (Dettmers et al. 2021, https://arxiv.org/abs/2110.02861). A block of 256 elements is
divided by its largest magnitude, its *absmax*, and every element becomes the nearest of 256 numbers that lie densely
around zero. First moments use the signed map, second moments the unsigned one.
"""

import torch
from torch import Tensor

from torch_bnb import ops

BLOCK_SIZE = ops.BLOCK_SIZE


def create_dynamic_map(signed: bool = True) -> Tensor:
    """The 256 numbers that codes stand for: ``create_dynamic_map()[code]``.

    Args:
        signed: -0.993 to 1 (there is no -1; code 127 is 0), else 0 to 1 (code 0 is 0).

    Returns:
        float32 tensor of shape (256,) on the CPU, sorted, distinct. Bit for bit the numbers of bitsandbytes and
        torchao, so that codes can be exchanged with them.

    Example:
        >>> import torch_bnb as bnb
        >>> float(bnb.codec.create_dynamic_map(signed=True)[127])
        0.0
    """
    values = torch.empty(256, dtype=torch.float32, device="cpu")
    ops.dynamic_map(values, signed)
    return values


ZERO_CODE = {signed: int(create_dynamic_map(signed).abs().argmin()) for signed in (True, False)}
"""By whether the map is signed, the code of 0."""


def blocks(numel: int, blocksize: int = BLOCK_SIZE) -> int:
    """How many blocks `numel` elements make; the last one may be short."""
    return -(-numel // blocksize)


def quantize_blockwise(x: Tensor, signed: bool = True, blocksize: int = BLOCK_SIZE) -> tuple[Tensor, Tensor]:
    """Quantises a tensor to 8 bits an element.

    Args:
        x: Floating-point tensor of any shape; blocks run along its elements in contiguous order.
        signed: Use the signed map. With the unsigned one, negative elements become 0.
        blocksize: Elements that share one absmax, at least 1.

    Returns:
        ``(codes, absmax)``: uint8 of `x`'s shape, and float32 of shape (ceil(numel / blocksize),).

    Raises:
        ValueError: `x` has no floating-point dtype, or `blocksize` is below 1.

    Note:
        Every element gets the nearest code, ties the one nearer to zero; 0 stays 0 and signs are kept. The element of
        largest magnitude is exact, except a negative one, which becomes -0.993 of itself. A NaN or an infinity spreads
        to its block.

    Example:
        >>> import torch, torch_bnb as bnb
        >>> codes, absmax = bnb.codec.quantize_blockwise(torch.tensor([0.0, -0.5, 2.0]))
        >>> codes.dtype, absmax
        (torch.uint8, tensor([2.]))
        >>> bnb.codec.dequantize_blockwise(codes, absmax)
        tensor([ 0.0000, -0.4953,  2.0000])
    """
    if not x.is_floating_point():
        raise ValueError(f"quantize_blockwise: x must be a floating-point tensor, got {x.dtype}")
    blocksize = _checked("quantize_blockwise", blocksize, x.numel())
    values = x.detach().to(torch.float32).contiguous()
    codes = torch.empty_like(values, dtype=torch.uint8)
    absmax = torch.empty(blocks(x.numel(), blocksize), dtype=torch.float32, device=x.device)
    ops.quantize_blockwise(values, codes, absmax, signed, blocksize)
    return codes, absmax


def dequantize_blockwise(
    codes: Tensor,
    absmax: Tensor,
    signed: bool = True,
    blocksize: int = BLOCK_SIZE,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """The tensor that `quantize_blockwise` made codes of, up to the code's precision.

    Args:
        codes: uint8 tensor of any shape.
        absmax: float32 tensor with ceil(codes.numel() / blocksize) elements.
        signed: The map that the codes were made with.
        blocksize: The block size that they were made with.
        dtype: Floating-point dtype of the result.

    Returns:
        Tensor of `codes`' shape in `dtype`.

    Raises:
        ValueError: `codes` are not uint8, `dtype` is no floating-point dtype, `blocksize` is below 1, or there are more
            or fewer absmax than blocks.
    """
    if codes.dtype != torch.uint8:
        raise ValueError(f"dequantize_blockwise: codes must be torch.uint8, got {codes.dtype}")
    if not dtype.is_floating_point:
        raise ValueError(f"dequantize_blockwise: dtype must be a floating-point one, got {dtype}")
    blocksize = _checked("dequantize_blockwise", blocksize, codes.numel())
    if absmax.numel() != blocks(codes.numel(), blocksize):
        raise ValueError(
            f"dequantize_blockwise: {codes.numel()} codes in blocks of {blocksize} need "
            f"{blocks(codes.numel(), blocksize)} absmax, got {absmax.numel()}"
        )
    values = torch.empty(codes.shape, dtype=torch.float32, device=codes.device)
    ops.dequantize_blockwise(values, codes.contiguous(), absmax.contiguous(), signed, blocksize)
    return values.to(dtype)


def _checked(name: str, blocksize: int, numel: int) -> int:
    if blocksize < 1:
        raise ValueError(f"{name}: blocksize must be at least 1, got {blocksize}")
    return min(blocksize, max(1, numel))  # a longer block is the whole tensor
