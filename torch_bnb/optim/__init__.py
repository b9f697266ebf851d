"""Optimizers with 8-bit or 32-bit state, and the manager of their overrides."""

from torch_bnb.optim import rules, variants
from torch_bnb.optim.base import BlockwiseOptimizer
from torch_bnb.optim.lookup import by_name
from torch_bnb.optim.rules import *  # noqa: F403
from torch_bnb.optim.variants import *  # noqa: F403
from torch_bnb.overrides import GlobalOptimManager

__all__ = ["BlockwiseOptimizer", "GlobalOptimManager", "by_name", *rules.__all__, *variants.__all__]
