"""An optimizer for modules that configure none: Lightning checks that before any callback runs."""

from collections.abc import Mapping
from typing import Any, ClassVar

from torch.optim.optimizer import Optimizer

from torch_bnb.optim import AdamW, GlobalOptimManager


class EightBitOptimizerMixin:
    r"""Gives a LightningModule a ``configure_optimizers`` with 8-bit state. Stands before ``LightningModule``.

    The class attributes say what it builds. An :class:`~lightning_bnb.EightBitOptimizer` with an ``optimizer`` of its
    own takes precedence; without the callback, the mixin applies the module's declared hints itself.

    Attributes:
        optimizer_class: The optimizer.
        optimizer_options: Its arguments beside the parameters.

    Example::

        >>> import torch
        >>> from lightning.pytorch import LightningModule
        >>> from lightning_bnb import EightBitOptimizerMixin, optim_overrides
        >>> @optim_overrides({"embed.weight": {"optim_bits": 32}})
        ... class Model(EightBitOptimizerMixin, LightningModule):
        ...     optimizer_options = {"lr": 3e-4, "optim_bits": 8}
        ...
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.embed = torch.nn.Embedding(1000, 64)
        >>> type(Model().configure_optimizers()).__name__
        'AdamW'

    """

    optimizer_class: ClassVar[type[Optimizer]] = AdamW
    optimizer_options: ClassVar[Mapping[str, Any]] = {"optim_bits": 8}

    def configure_optimizers(self) -> Optimizer:
        """The optimizer over the trainable parameters, in one group."""
        GlobalOptimManager.get_instance().register_parameters(self)
        trainable = [parameter for parameter in self.parameters() if parameter.requires_grad]
        return self.optimizer_class(trainable, **self.optimizer_options)
