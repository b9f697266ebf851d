"""8-bit optimizers for Lightning: callbacks, a mixin, and hints declared on modules."""

from lightning_bnb.callback import EightBitOptimizer
from lightning_bnb.mixin import EightBitOptimizerMixin, eight_bit_optimizer
from lightning_bnb.monitor import OptimizerStateMonitor
from torch_bnb import OverrideSpec, optim_overrides

__all__ = [
    "EightBitOptimizer",
    "EightBitOptimizerMixin",
    "OptimizerStateMonitor",
    "OverrideSpec",
    "eight_bit_optimizer",
    "optim_overrides",
]
