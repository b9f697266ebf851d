"""The rates of parameters that have one of their own, logged beside those that a LearningRateMonitor logs."""

from collections import Counter

import lightning.pytorch as pl
from torch.optim.optimizer import Optimizer

from lightning_bnb.either import is_a
from torch_bnb.optim import BlockwiseOptimizer, GlobalOptimManager


def log_own_rates(trainer: "pl.Trainer", interval: str) -> None:
    """Logs the rate of every parameter that has its own, as the trainer's LearningRateMonitor logs a group's.

    The key is the monitor's for the optimizer, a slash and the parameter's name: ``lr-AdamW/head.weight``. The step on
    the axis and the times of logging are the monitor's too.

    Args:
        trainer: With or without a monitor.
        interval: "step" or "epoch", which has just begun.
    """
    monitor = next((callback for callback in trainer.callbacks if is_a(callback, "LearningRateMonitor")), None)
    if monitor is None or monitor.logging_interval not in (None, interval):
        return
    if interval == "step" and not trainer._logger_connector.should_update_logs:
        return
    rates = {}
    for name, (optimizer, own_interval) in _named_optimizers(trainer).items():
        if isinstance(optimizer, BlockwiseOptimizer) and (monitor.logging_interval or own_interval) in (interval, None):
            explanation = GlobalOptimManager.get_instance().explain(optimizer)
            with_own = {"lr", "lr_scale"}
            rates |= {f"{name}/{row.name}": row.lr for row in explanation if with_own & row.overrides.keys()}
    if rates:
        for logger in trainer.loggers:
            logger.log_metrics(rates, step=trainer.fit_loop.epoch_loop._batches_that_stepped)


def _named_optimizers(trainer: "pl.Trainer") -> dict[str, tuple[Optimizer, str | None]]:
    """The optimizers by the names that the monitor gives them, each with its scheduler's interval, if it has one."""
    found: dict[str, tuple[Optimizer, str | None]] = {}
    seen: Counter = Counter()
    scheduled = [(c.scheduler.optimizer, c.name, c.interval) for c in trainer.lr_scheduler_configs]
    others = [o for o in trainer.optimizers if not any(o is known for known, _, _ in scheduled)]
    for optimizer, name, interval in [*scheduled, *((o, None, None) for o in others)]:
        if name is None:
            cls = type(optimizer)
            seen[cls] += 1
            name = f"lr-{cls.__name__}" + (f"-{seen[cls] - 1}" if seen[cls] > 1 else "")
        found[name] = (optimizer, interval)
    return found
