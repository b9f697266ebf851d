"""transformers.Trainer: the factory that its ``optimizer_cls_and_kwargs`` takes."""

import warnings
from collections.abc import Callable
from typing import Any

from torch import nn

from accelerate_bnb.plugin import BnbOptimizerPlugin, checked
from torch_bnb.optim import BlockwiseOptimizer

# What transformers.Trainer leaves out of weight decay, beside nn.LayerNorm.
_NO_DECAY = [r"bias", r"layernorm", r"rmsnorm", r"(?:^|\.)norm(?:$|\.)", r"_norm(?:$|\.)"]


def optimizer_factory(plugin: BnbOptimizerPlugin | None = None) -> Callable[[], Callable[..., BlockwiseOptimizer]]:
    """The factory for `Trainer(optimizer_cls_and_kwargs=(optimizer_factory(plugin), {...}))`.

    The optimizer has the two groups that Trainer makes, with and without weight decay; hints declared on modules, the
    plugin's overrides and 32-bit embeddings apply. Trainer does not tell a factory its `learning_rate` and
    `weight_decay`: pass them on, as in the example, or give them to the plugin.

    Args:
        plugin (`BnbOptimizerPlugin`, *optional*):
            By default one from the environment.

    Returns:
        A callable without arguments that returns the builder, which Trainer calls with the model and the dict.

    Example:
        >>> import torch
        >>> from accelerate_bnb import BnbOptimizerPlugin, optimizer_factory
        >>> factory = optimizer_factory(BnbOptimizerPlugin(optimizer="adamw8bit"))
        >>> # Trainer(..., optimizer_cls_and_kwargs=(factory, {"lr": args.learning_rate, "weight_decay": 0.1}))
        >>> optimizer = factory()(torch.nn.Linear(64, 64), lr=1e-4, weight_decay=0.1)
        >>> [group["weight_decay"] for group in optimizer.param_groups]
        [0.1, 0.0]
    """
    checked(plugin)

    def builder(model: nn.Module, **options: Any) -> BlockwiseOptimizer:
        chosen = BnbOptimizerPlugin() if plugin is None else plugin
        if "lr" not in options and chosen.lr is None:
            default = chosen.optimizer_class.__signature__.parameters["lr"].default
            warnings.warn(
                f"optimizer_factory: the learning rate is {default}, {chosen.optimizer_class.__name__}'s own; Trainer "
                'does not pass on its learning_rate: give {"lr": args.learning_rate} beside the factory',
                stacklevel=2,
            )
        return chosen.create_optimizer(model, _decay_groups(model), **options)

    return lambda: builder


def _decay_groups(model: nn.Module) -> list[dict[str, Any]]:
    from transformers.trainer_pt_utils import get_parameter_names

    decayed = set(get_parameter_names(model, [nn.LayerNorm], _NO_DECAY))
    trainable = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    return [
        {"params": [parameter for name, parameter in trainable if name in decayed]},
        {"params": [parameter for name, parameter in trainable if name not in decayed], "weight_decay": 0.0},
    ]
