"""8-bit optimizers for Accelerate: a plugin, a `prepare` that checks what it got, launch configs, Trainer's factory."""

from accelerate_bnb.placeholder import BnbDummyOptim
from accelerate_bnb.plugin import BnbOptimizerPlugin
from accelerate_bnb.preparation import BnbAccelerator, prepare
from accelerate_bnb.trainer import optimizer_factory

__all__ = ["BnbAccelerator", "BnbDummyOptim", "BnbOptimizerPlugin", "optimizer_factory", "prepare"]
