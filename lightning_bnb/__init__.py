"""8-bit optimizers for Lightning: a callback, a mixin, and hints declared on modules."""

from lightning_bnb.callback import EightBitOptimizer
from lightning_bnb.mixin import EightBitOptimizerMixin
from torch_bnb import OverrideSpec, optim_overrides

__all__ = ["EightBitOptimizer", "EightBitOptimizerMixin", "OverrideSpec", "optim_overrides"]
