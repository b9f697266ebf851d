"""The callback that puts a LightningModule's optimizer state into 8 bits."""

from collections.abc import Callable, Iterable
from functools import update_wrapper
from types import MethodType
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn
from torch.optim.optimizer import Optimizer
from typing_extensions import override

from lightning_bnb.replace import optimizers_in, replace_optimizers
from torch_bnb import OverrideError, report
from torch_bnb.optim import BlockwiseOptimizer, GlobalOptimManager


class EightBitOptimizer(pl.Callback):
    r"""Trains with 8-bit optimizer state, and applies the hints that modules declare.

    In ``setup``, while the model is still on the CPU, it registers the model's parameters with the
    :class:`~torch_bnb.optim.GlobalOptimManager`, which applies every ``optim_overrides`` that the module or its
    submodules declare. When Lightning configures the optimizers, it does so again for the parameters that the strategy
    has made of them, and builds the optimizer: from ``optimizer`` if given, else from what the module's
    ``configure_optimizers`` returns, in which torch optimizers are replaced by their 8-bit twins (same groups, same
    schedules).

    Args:
        optimizer: Makes the optimizer from the trainable parameters, for example
            ``functools.partial(torch_bnb.optim.AdamW8bit, lr=1e-3)``. ``None`` asks the module.
        optim_bits: Bits per element of state, 8 or 32, for the optimizers that are replaced.
        replace_torch_optimizers: Replace ``torch.optim`` ``Adam``, ``AdamW``, ``SGD``, ``RMSprop`` and ``Adagrad``.
            Others are left as they are, with a warning; those of torch_bnb keep the bits they were built with.
        embeddings_32bit: ``nn.Embedding`` weights keep 32-bit state unless a hint says otherwise. ``None``: they do,
            unless the module was registered with another word.

    Raises:
        MisconfigurationException:
            If a declared hint names a parameter that does not exist or an option that the optimizer does not have, or
            if an optimizer uses an option that its 8-bit twin lacks.

    Example::

        >>> from lightning.pytorch import Trainer
        >>> from lightning_bnb import EightBitOptimizer
        >>> trainer = Trainer(callbacks=[EightBitOptimizer()], logger=False, enable_checkpointing=False)

    """

    def __init__(
        self,
        optimizer: Callable[[Iterable], Optimizer] | None = None,
        optim_bits: int = 8,
        replace_torch_optimizers: bool = True,
        embeddings_32bit: bool | None = None,
    ) -> None:
        if optim_bits not in (8, 32):
            raise MisconfigurationException(f"EightBitOptimizer: optim_bits={optim_bits!r}: expected 8 or 32")
        self.optimizer = optimizer
        self.optim_bits = optim_bits
        self.replace_torch_optimizers = replace_torch_optimizers
        self.embeddings_32bit = embeddings_32bit
        self._restore: Callable[[], None] | None = None

    @override
    def setup(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule", stage: str) -> None:
        if stage != "fit":
            return
        self._restore_module()  # a fit that was killed by an exception in another callback may have left its mark
        self._register(pl_module)
        self._wrap_configure_optimizers(pl_module)

    @override
    def teardown(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule", stage: str) -> None:
        self._restore_module()

    @override
    def on_exception(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule", exception: BaseException) -> None:
        self._restore_module()

    def _register(self, pl_module: "pl.LightningModule") -> None:
        try:
            GlobalOptimManager.get_instance().register_parameters(pl_module, self.embeddings_32bit)
        except OverrideError as error:
            raise MisconfigurationException(f"EightBitOptimizer: {error}") from error

    def _wrap_configure_optimizers(self, pl_module: "pl.LightningModule") -> None:
        original = pl_module.configure_optimizers
        own_attribute = "configure_optimizers" in vars(pl_module)

        # The name matters: a module that is pickled (ddp_spawn) or copied finds its own method by it.
        def configure_optimizers(module: "pl.LightningModule") -> Any:
            self._register(module)
            try:
                trainable = (parameter for parameter in module.parameters() if parameter.requires_grad)
                configured = original() if self.optimizer is None else self.optimizer(trainable)
                configured = self._in_8_bits(configured)
                for optimizer in optimizers_in(configured):
                    _tell(optimizer)
                return configured
            except OverrideError as error:
                raise MisconfigurationException(f"EightBitOptimizer: {error}") from error

        pl_module.configure_optimizers = MethodType(
            update_wrapper(configure_optimizers, getattr(original, "__func__", original)), pl_module
        )

        def restore() -> None:
            if own_attribute:
                pl_module.configure_optimizers = original
            else:
                vars(pl_module).pop("configure_optimizers", None)

        self._restore = restore

    def _in_8_bits(self, configured: Any) -> Any:
        if not self.replace_torch_optimizers:
            return configured
        try:
            return replace_optimizers(configured, self.optim_bits)
        except OverrideError:
            raise
        except ValueError as error:
            raise MisconfigurationException(f"EightBitOptimizer: {error}") from error

    def _restore_module(self) -> None:
        if self._restore is not None:
            self._restore()
            self._restore = None


def _tell(optimizer: Optimizer) -> None:
    """One line on what the optimizer's state will take, and a warning where none of it is in 8 bits."""
    name = type(optimizer).__name__
    if not isinstance(optimizer, BlockwiseOptimizer):
        rank_zero_warn(f"EightBitOptimizer: {name} has no 8-bit twin and stays as it is, its state at full precision")
        return
    memory = report(optimizer)
    planned, full = memory.total.planned / 2**20, memory.total.state_32bit / 2**20
    if not any(row.bits == 8 for row in memory.rows):
        rank_zero_warn(f"EightBitOptimizer: all state of {name} stays in 32 bits, {planned:.2f} MiB; set optim_bits=8")
        return
    embeddings = memory.embedding_bytes / 2**20
    note = f"; {embeddings:.2f} MiB of it because embeddings keep 32 bits" if embeddings else ""
    rank_zero_info(f"EightBitOptimizer: state of {name} takes {planned:.2f} MiB instead of {full:.2f} MiB{note}")
