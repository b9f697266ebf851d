"""A placeholder for an optimizer that is made in `prepare`, when it is known how the model will be trained."""

from collections.abc import Iterable
from typing import Any, NoReturn

from torch import nn
from torch.optim.optimizer import Optimizer

_PLACEHOLDER = (
    "BnbDummyOptim is a placeholder: accelerate_bnb.prepare(accelerator, ...) or BnbAccelerator.prepare(...) returns "
    "the real optimizer; other methods of an Accelerator cannot make it"
)


class BnbDummyOptim(Optimizer):
    """Stands for the optimizer until `prepare` makes it, as Accelerate's `DummyOptim` does for DeepSpeed's.

    Its scheduler is a `DummyScheduler` of `accelerate.utils.deepspeed` with `lr_scheduler_callable`, which `prepare`
    calls with the real optimizer. Any Accelerator takes a placeholder for an optimizer, as its class is a subclass.
    Using it as one raises RuntimeError (methods) or AttributeError (attributes), which name this package's `prepare`.

    Args:
        params (`nn.Module` or `Iterable`, *optional*):
            A model, to train all its trainable parameters; or parameters, or parameter groups. Needed if `prepare`
            gets several models.
        **options:
            Options of the optimizer, in place of the plugin's: `lr=1e-3`.

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

    def __repr__(self) -> str:
        return f"BnbDummyOptim({', '.join(f'{name}={value!r}' for name, value in self.options.items())})"

    def __getstate__(self) -> dict[str, Any]:
        return vars(self)

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)

    def _refuse(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise RuntimeError(_PLACEHOLDER)

    def _lack(self) -> NoReturn:
        raise AttributeError(_PLACEHOLDER)

    step = zero_grad = state_dict = load_state_dict = add_param_group = _refuse
    param_groups = state = defaults = property(_lack)
