"""Optimizers exchanged for their 8-bit twins in whatever ``configure_optimizers`` returns, schedulers included."""

import functools
import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

from torch.optim.lr_scheduler import LRScheduler
from torch.optim.optimizer import Optimizer

from lightning_bnb.standins import stand_in, twin_of


def replace_optimizers(configured: Any, optim_bits: int) -> tuple[Any, Callable[[], None]]:
    """The same nest of lists, tuples and dicts with every optimizer that has a twin replaced by it.

    Schedulers are bound to the twins, however deep they are nested in one another.

    Args:
        configured: What ``configure_optimizers`` returned, in any of its forms.
        optim_bits: Bits per element of the twins' state, 8 or 32.

    Returns:
        The nest, and what gives optimizers and schedulers that others hold back to each other.

    Raises:
        ValueError: An optimizer uses an option that its twin does not have (``amsgrad=True``).
    """
    schedulers = list(_schedulers(configured, set()))
    twins = {
        optimizer: twin
        for optimizer in dict.fromkeys(optimizers_in(configured))
        if (twin := twin_of(optimizer, optim_bits, schedulers)) is not None
    }
    replaced, undo = _exchanged(configured, twins), ExitStack()
    for scheduler in schedulers:
        if scheduler.optimizer in twins:
            undo.callback(_bind_back, scheduler, weakref.ref(scheduler.optimizer))
            scheduler.optimizer = twins[scheduler.optimizer]
            _track_steps(scheduler.optimizer)
    for optimizer, twin in twins.items():
        undo.callback(stand_in(twin, optimizer))
    return replaced, undo.close


def optimizers_in(configured: Any) -> list[Optimizer]:
    """Every optimizer in what ``configure_optimizers`` returned."""
    if isinstance(configured, Optimizer):
        return [configured]
    if isinstance(configured, dict):
        configured = list(configured.values())
    nested = configured if isinstance(configured, (list, tuple)) else []
    return [found for item in nested for found in optimizers_in(item)]


def _exchanged(item: Any, twins: dict[Optimizer, Optimizer]) -> Any:
    if isinstance(item, Optimizer):
        return twins.get(item, item)
    if isinstance(item, dict):
        return {key: _exchanged(value, twins) for key, value in item.items()}
    if isinstance(item, (list, tuple)):
        exchanged = [_exchanged(value, twins) for value in item]
        return type(item)(*exchanged) if hasattr(item, "_fields") else type(item)(exchanged)
    return item


def _schedulers(item: Any, seen: set[int]) -> Iterator[Any]:
    """Every scheduler in a nest: torch's, and any other object that holds an optimizer as ``optimizer``."""
    if id(item) in seen:
        return
    seen.add(id(item))
    if isinstance(item, (list, tuple)):
        inner = list(item)
    elif isinstance(item, dict):
        inner = list(item.values())
    elif not isinstance(item, Optimizer) and isinstance(getattr(item, "optimizer", None), Optimizer):
        yield item
        # Where a scheduler keeps others is its own affair: `_schedulers`, `after_scheduler`, ...
        inner = [held for held in vars(item).values() if isinstance(held, (LRScheduler, list, tuple, dict))]
    else:
        return
    for held in inner:
        yield from _schedulers(held, seen)


def _bind_back(scheduler: Any, optimizer: "weakref.ref[Optimizer]") -> None:
    if (kept := optimizer()) is not None:  # else the twin is the only one that a step of the schedule can reach
        scheduler.optimizer = kept


def _track_steps(optimizer: Optimizer) -> None:
    """Lets schedulers see that the optimizer has stepped, as their constructor arranges it for theirs."""
    if hasattr(optimizer.step, "_wrapped_by_lr_sched"):
        return
    this, step = weakref.ref(optimizer), type(optimizer).step

    @functools.wraps(step)
    def tracked(*args: Any, **kwargs: Any) -> Any:
        this()._opt_called = True
        return step(this(), *args, **kwargs)

    tracked._wrapped_by_lr_sched = True
    optimizer.step = tracked
