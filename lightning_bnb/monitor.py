"""The callback that logs how good the 8-bit states are."""

from functools import partial
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch.utils.hooks import RemovableHandle
from typing_extensions import override

from torch_bnb.monitor import METRICS, Measurement, as_metrics, watch
from torch_bnb.optim import BlockwiseOptimizer


class OptimizerStateMonitor(pl.Callback):
    r"""Logs, every few optimizer steps, what 8 bits do to the optimizer's states.

    For every parameter group and for the worst parameter it logs ``quantization_error``, the norm of what encoding
    changes in the states over the norm of the states; ``unmoved_codes``, the share of codes that the step leaves as
    they were; and ``update_to_weight``, the norm of the step over the norm of the weights. For every group and in total
    it logs ``state_bytes``. A measured step is computed three times, twice on copies; the others take as long as
    without the monitor.

    Args:
        every_n_steps: Optimizer steps from one measurement to the next; the first step is measured.
        prefix: Begins the logged keys: ``optimizer_state/group0/quantization_error``,
            ``optimizer_state/worst/unmoved_codes``. A second optimizer logs under ``optimizer_state-1``.
        per_parameter: Also log every parameter's own values, under its name.

    Attributes:
        measurements: By prefix, the latest measurement; ``measurements[prefix].worst("unmoved_codes")`` names the
            parameter.

    Raises:
        MisconfigurationException:
            If ``every_n_steps`` is below 1, or the ``Trainer`` has no logger.

    Example::

        >>> from lightning.pytorch import Trainer
        >>> from lightning.pytorch.loggers import CSVLogger
        >>> from lightning_bnb import EightBitOptimizer, OptimizerStateMonitor
        >>> callbacks = [EightBitOptimizer(), OptimizerStateMonitor(every_n_steps=100)]
        >>> trainer = Trainer(callbacks=callbacks, logger=CSVLogger("logs"), enable_checkpointing=False)

    """

    def __init__(self, every_n_steps: int = 50, prefix: str = "optimizer_state", per_parameter: bool = False) -> None:
        if every_n_steps < 1:
            raise MisconfigurationException(f"OptimizerStateMonitor: every_n_steps={every_n_steps}: expected 1 or more")
        self.every_n_steps = every_n_steps
        self.prefix = prefix
        self.per_parameter = per_parameter
        self.measurements: dict[str, Measurement] = {}
        self._handles: list[RemovableHandle] = []

    @override
    def on_train_start(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule") -> None:
        """Starts to watch the optimizers."""
        if not trainer.loggers:
            raise MisconfigurationException("OptimizerStateMonitor: the Trainer has no logger to log to")
        self._stop()
        for index, optimizer in enumerate(trainer.optimizers):
            if not isinstance(optimizer, BlockwiseOptimizer):
                rank_zero_warn(
                    f"OptimizerStateMonitor: {type(optimizer).__name__} is none of torch_bnb, nothing to log"
                )
                continue
            prefix = f"{self.prefix}-{index}" if index else self.prefix
            counted = _Every(self.every_n_steps)
            self._handles.append(watch(optimizer, when=counted, then=partial(self._log, trainer, prefix)))

    @override
    def on_train_end(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule") -> None:
        """Stops measuring."""
        self._stop()

    @override
    def on_exception(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule", exception: BaseException) -> None:
        """Stops measuring."""
        self._stop()

    def _log(self, trainer: "pl.Trainer", prefix: str, measurement: Measurement) -> None:
        self.measurements[prefix] = measurement
        metrics: dict[str, Any] = as_metrics(measurement, prefix)
        if self.per_parameter:
            for name, quality in measurement.parameters.items():
                metrics |= {f"{prefix}/{name}/{metric}": getattr(quality, metric) for metric in METRICS}
        for logger in trainer.loggers:
            logger.log_metrics(metrics, step=trainer.fit_loop.epoch_loop._batches_that_stepped)

    def _stop(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []


class _Every:
    """True at the first call and at every n-th after it."""

    def __init__(self, n: int) -> None:
        self.n, self.calls = n, 0

    def __call__(self) -> bool:
        self.calls += 1
        return self.calls % self.n == 1 % self.n
