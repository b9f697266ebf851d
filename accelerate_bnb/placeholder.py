"""A placeholder for an optimizer that is made in `prepare`, when it is known how the model will be trained."""

from collections.abc import Iterable
from typing import Any

from torch import nn


class BnbDummyOptim:
    """Stands for the optimizer until `prepare` makes it, as Accelerate's `DummyOptim` does for DeepSpeed's.

    A scheduler that needs it is a `DummyScheduler` of `accelerate.utils.deepspeed` with `lr_scheduler_callable`, which
    is called with the real optimizer.

    Args:
        params (`nn.Module` or `Iterable`, *optional*):
            A model, whose trainable parameters are meant; or parameters, or parameter groups. Needed if `prepare`
            gets several models.
        **options:
            Of the optimizer, instead of the plugin's: `lr=1e-3`.

    Example:
        >>> import torch
        >>> from accelerate import Accelerator
        >>> from accelerate_bnb import BnbDummyOptim, BnbOptimizerPlugin, prepare
        >>> model, plugin = torch.nn.Linear(64, 64), BnbOptimizerPlugin(optimizer="adamw8bit")
        >>> model, optimizer = prepare(Accelerator(cpu=True), model, BnbDummyOptim(lr=1e-3), plugin=plugin)
        >>> type(optimizer.optimizer).__name__
        'AdamW8bit'
    """

    def __init__(self, params: nn.Module | Iterable[Any] | None = None, **options: Any) -> None:
        is_model = isinstance(params, nn.Module)
        self.model = params if is_model else None
        self.params = None if is_model or params is None else list(params)
        self.options = options

    def step(self, closure: Any = None) -> None:
        """Raises RuntimeError: it was not prepared."""
        raise RuntimeError("BnbDummyOptim is a placeholder: accelerate_bnb.prepare(...) returns the real optimizer")

    zero_grad = step
