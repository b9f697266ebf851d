"""Percentile clipping: gradients scaled down to a percentile of their own recent norms. Never waits for the device."""

from collections.abc import Sequence

import torch
from torch import Tensor


def percentile_scales(histories: Sequence[Tensor], norms: Tensor, percentile: int) -> Tensor:
    """The factors for n gradients, and their norms into the histories.

    Args:
        histories: n of float32, shape (100,): the last norms of one gradient, the latest last, NaN where there was none
            yet. Updated in place.
        norms: float32, shape (n,): of the gradients now.
        percentile: From 1 to 99.

    Returns:
        float32, shape (n,), at most 1.
    """
    before = torch.stack(list(histories))
    after = torch.cat([before[:, 1:], norms[:, None]], dim=1)
    torch._foreach_copy_(list(histories), list(after.unbind()))
    limits = torch.nanquantile(after, percentile / 100, dim=1)
    return torch.where(norms > limits, limits / norms, 1.0)
