"""Percentile clipping: a gradient scaled down to a percentile of its own recent norms. Never waits for the device."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def percentile_scale(history: Tensor, norm: Tensor, config: Mapping[str, Any]) -> Tensor:
    """The factor for a gradient, and its norm into the history.

    Args:
        history: float32, shape (100,): the last norms, the latest last, NaN where there was none yet. Updated in place,
            but not by a zero gradient at rate 0, with which distributed checkpoints make state.
        norm: The gradient's, a float32 scalar.
        config: Its ``percentile_clipping`` (1 to 99) and ``lr``.

    Returns:
        float32 scalar, at most 1.
    """
    longer = torch.cat([history[1:], norm.reshape(1)])
    history.copy_(torch.where(norm == 0, history, longer) if float(config["lr"]) == 0 else longer)
    limit = torch.nanquantile(history, config["percentile_clipping"] / 100)
    return torch.where(norm > limit, limit / norm, torch.ones_like(norm))
