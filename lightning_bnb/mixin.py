"""An optimizer for modules that configure none: Lightning checks that before any callback runs."""

from collections.abc import Mapping
from typing import Any, ClassVar

from torch.optim.optimizer import Optimizer

from lightning_bnb.replace import replace_optimizers
from torch_bnb import optim
from torch_bnb.optim import AdamW, GlobalOptimManager

_CHOOSE_BITS = tuple(getattr(optim, name) for name in optim.rules.__all__)  # the others' names say their bits


class EightBitOptimizerMixin:
    r"""Gives a LightningModule a ``configure_optimizers`` with 8-bit state. Stands before ``LightningModule``.

    The class attributes say what it builds. An :class:`~lightning_bnb.EightBitOptimizer` with an ``optimizer`` of its
    own takes precedence; without the callback, the mixin applies the module's declared hints itself.

    Attributes:
        optimizer_class: The optimizer; a torch one is replaced by its 8-bit twin.
        optimizer_options: Its arguments beside the parameters; ``optim_bits`` is 8 unless it says otherwise.

    Example::

        >>> import torch
        >>> from lightning.pytorch import LightningModule
        >>> from lightning_bnb import EightBitOptimizerMixin, optim_overrides
        >>> @optim_overrides({"embed.weight": {"optim_bits": 32}})
        ... class Model(EightBitOptimizerMixin, LightningModule):
        ...     optimizer_options = {"lr": 3e-4}
        ...
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.embed = torch.nn.Embedding(1000, 64)
        >>> type(Model().configure_optimizers()).__name__
        'AdamW'

    """

    optimizer_class: ClassVar[type[Optimizer]] = AdamW
    optimizer_options: ClassVar[Mapping[str, Any]] = {}

    def configure_optimizers(self) -> Optimizer:
        """The optimizer over the trainable parameters, in one group."""
        GlobalOptimManager.get_instance().register_parameters(self)
        trainable = [parameter for parameter in self.parameters() if parameter.requires_grad]
        if self.optimizer_class in _CHOOSE_BITS:
            return self.optimizer_class(trainable, **{"optim_bits": 8, **self.optimizer_options})
        return replace_optimizers(self.optimizer_class(trainable, **self.optimizer_options), optim_bits=8)
