"""The callback that puts a LightningModule's optimizer state into 8 bits."""

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch.optim.optimizer import Optimizer
from typing_extensions import override

from lightning_bnb import build, mixin, rates, resume, strategies, summary
from lightning_bnb.replace import optimizers_in
from lightning_bnb.twins import noting_rates
from torch_bnb import OverrideSpec, check_overrides


class EightBitOptimizer(pl.Callback):
    r"""Trains with 8-bit optimizer state, and applies the hints that modules declare and that are given to it.

    In ``setup``, while the model is still on the CPU, it registers the model's parameters with the
    :class:`~torch_bnb.optim.GlobalOptimManager`, which applies every ``optim_overrides`` that the module or its
    submodules declare. When Lightning configures the optimizers, the callback registers the parameters again, as the
    strategy may have replaced them, and builds the optimizer: from ``optimizer`` if given, else from what the module's
    ``configure_optimizers`` returns, in which torch optimizers are replaced by their 8-bit twins (same groups, same
    schedules). A module that has no ``configure_optimizers`` gets one from
    :class:`~lightning_bnb.EightBitOptimizerMixin`.

    Args:
        optimizer: Makes the optimizer from the trainable parameters, for example
            ``functools.partial(torch_bnb.optim.AdamW8bit, lr=1e-3)``. By default the module's
            ``configure_optimizers`` does; with this argument it is not called, and a warning says that its schedules
            are not used.
        overrides: What single parameters get instead of their group's options: from a name, a glob
            (``"*.embed*.weight"``) or an expression (``"re:..."``) to options; in Python a module type may stand for
            the name. Stronger than what modules declare, weaker than ``GlobalOptimManager.override_config``. They hold
            until the next fit of the module with an ``EightBitOptimizer``.
        optim_bits: Bits per element of state, 8 or 32, for the optimizers that are replaced.
        replace_torch_optimizers: Replace ``torch.optim`` ``Adam``, ``AdamW``, ``SGD``, ``RMSprop`` and ``Adagrad``,
            and those of bitsandbytes. Others are left as they are, with a warning; those of torch_bnb keep the bits
            they were built with.
        embeddings_32bit: Whether ``nn.Embedding`` weights keep 32-bit state where no hint says otherwise. ``None``: as
            the module was registered before, else ``True``.
        strict: A pattern of ``overrides`` that fits no parameter is an error, as are ``overrides`` where no optimizer
            is one of torch_bnb; ``False`` makes it a warning.
        summary: Show at the start of a fit what every parameter gets and why, and how many bytes the state will take;
            after the fit, how many bytes it took.

    Raises:
        MisconfigurationException:
            If a hint names a parameter that does not exist or an option that the optimizer does not have, if an
            optimizer uses an option that its 8-bit twin lacks, or if the strategy cannot honour a hint.

    Example::

        >>> from lightning.pytorch import Trainer
        >>> from lightning_bnb import EightBitOptimizer
        >>> callback = EightBitOptimizer(overrides={"head.*": {"lr": 1e-4}, "*.norm*": {"weight_decay": 0.0}})
        >>> trainer = Trainer(callbacks=[callback], logger=False, enable_checkpointing=False)

    """

    def __init__(
        self,
        optimizer: Callable[[Iterable], Optimizer] | None = None,
        overrides: dict[str, OverrideSpec] | None = None,
        optim_bits: int = 8,
        replace_torch_optimizers: bool = True,
        embeddings_32bit: bool | None = None,
        strict: bool = True,
        summary: bool = True,
    ) -> None:
        if optim_bits not in (8, 32):
            raise MisconfigurationException(f"EightBitOptimizer: optim_bits={optim_bits!r}: expected 8 or 32")
        if optimizer is not None and not callable(optimizer):
            made = isinstance(optimizer, Optimizer)
            got = f"an instance of {type(optimizer).__name__}" if made else repr(optimizer)
            raise MisconfigurationException(
                f"EightBitOptimizer: optimizer={got}: expected a function of the parameters, "
                "such as functools.partial(torch_bnb.optim.AdamW8bit, lr=1e-3)"
            )
        with build.misconfigurations():
            self.overrides = None if overrides is None else check_overrides(overrides)
        self.optimizer = optimizer
        self.optim_bits = optim_bits
        self.replace_torch_optimizers = replace_torch_optimizers
        self.embeddings_32bit = embeddings_32bit
        self.strict = strict
        self.summary = summary
        self._restoring = ExitStack()
        self._optimizers: list[Optimizer] = []
        self._choices: resume.Choices = {}
        self._saved_choices: resume.Choices = {}

    @override
    def setup(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule", stage: str) -> None:
        """Registers the parameters, before any of them leaves the CPU, and takes over ``configure_optimizers``."""
        if stage != "fit":
            return
        self._restore_module()  # a fit that was killed by an exception in another callback may have left its mark
        self._register(trainer, pl_module, final=False)

        def around(original: Callable[[], Any]) -> Any:
            return self._configure(trainer, pl_module, original)

        self._restoring.callback(build.wrap_configure_optimizers(pl_module, around))

    @override
    def teardown(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule", stage: str) -> None:
        """Gives the module its own ``configure_optimizers`` back; torch optimizers that it keeps step themselves."""
        self.state_dict()  # what held in this fit, for a checkpoint that is written after it
        self._restore_module()

    @override
    def on_exception(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule", exception: BaseException) -> None:
        """Does what ``teardown`` does, which Lightning may not reach after an exception.

        Other callbacks may write a checkpoint after it.
        """
        try:
            self.state_dict()
        except ValueError:  # a hint is impossible, which may be the exception that ends the fit
            pass
        finally:
            self._restore_module()

    @override
    def on_fit_start(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule") -> None:
        """Shows the summary."""
        if self.summary and trainer.is_global_zero:
            summary.say(summary.planned(self._optimizers))

    @override
    def on_train_start(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule") -> None:
        """Compares every parameter's options with other processes' and with the loaded checkpoint's."""
        strategies.check_agreement(trainer.strategy, self._optimizers)
        changed = resume.changes(self._saved_choices, resume.choices(self._optimizers))
        self._saved_choices = {}
        if changed:
            more = f"\n  ... and {len(changed) - 20} more" if len(changed) > 20 else ""
            rank_zero_warn(
                "EightBitOptimizer: options of single parameters are others than at the time of the checkpoint; those "
                "of this run hold, and state is converted:\n  " + "\n  ".join(changed[:20]) + more
            )

    @override
    def on_train_epoch_start(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule") -> None:
        """Logs rates of single parameters, where a LearningRateMonitor logs rates."""
        rates.log_own_rates(trainer, "epoch")

    @override
    def on_train_batch_start(
        self, trainer: "pl.Trainer", pl_module: "pl.LightningModule", batch: Any, batch_idx: int
    ) -> None:
        """Logs rates of single parameters, where a LearningRateMonitor logs rates."""
        rates.log_own_rates(trainer, "step")

    @override
    def on_fit_end(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule") -> None:
        """Says what the state took."""
        if self.summary and trainer.is_global_zero:
            summary.say(summary.measured(self._optimizers))

    @override
    def state_dict(self) -> dict[str, Any]:
        """What holds for each parameter, by name: plain data."""
        if self._optimizers:
            self._choices = resume.choices(self._optimizers)
        return {"choices": self._choices} if self._choices else {}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keeps a checkpoint's choices for ``on_train_start``: only then have all strategies loaded hints and state."""
        self._saved_choices = state_dict["choices"]

    def _register(self, trainer: "pl.Trainer", module: "pl.LightningModule", final: bool) -> None:
        embeddings = self.embeddings_32bit
        if embeddings is None and strategies.sees_groups_only(trainer.strategy):
            embeddings = False  # a default about single parameters, which that strategy could not honour
        with build.misconfigurations():
            # Before configure_model has run, a pattern may fit nothing yet.
            build.register(module, self.overrides, embeddings, strict=self.strict and final)

    def _configure(self, trainer: "pl.Trainer", module: "pl.LightningModule", original: Callable[[], Any]) -> Any:
        self._register(trainer, module, final=True)
        with build.misconfigurations():
            if self.optimizer is not None:
                trainable = (parameter for parameter in module.parameters() if parameter.requires_grad)
                configured = self.optimizer(trainable)
                if not mixin.configures(original):
                    build.warn_of_unused_configuration(module)
            elif mixin.configures(original):
                configured = mixin.declared_optimizer(module, self.optim_bits)
            else:
                with noting_rates():
                    configured = original()
            if self.replace_torch_optimizers:
                configured, give_back = build.replaced(configured, self.optim_bits)
                self._restoring.callback(give_back)
            optimizers = optimizers_in(configured)
            for optimizer in optimizers:
                # Looks all hints up, so that what is wrong with them comes now.
                build.warn_of_full_precision(optimizer, self.replace_torch_optimizers, self.optim_bits)
            if self.overrides and self.strict:
                build.refuse_idle_overrides(optimizers)
            build.warn_of_idle_patterns(module, optimizers)
            strategies.prepare(trainer.strategy, optimizers)
        self._optimizers = optimizers
        return configured

    def _restore_module(self) -> None:
        self._restoring.close()
        self._optimizers = []
