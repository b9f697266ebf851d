"""Optimizers exchanged for their 8-bit twins in whatever ``configure_optimizers`` returns, schedulers included."""

import functools
import weakref
from collections.abc import Iterator
from typing import Any

from torch.optim.lr_scheduler import LRScheduler
from torch.optim.optimizer import Optimizer

from lightning_bnb.twins import make_twin


def replace_optimizers(configured: Any, optim_bits: int) -> Any:
    """The same nest of lists, tuples and dicts with every optimizer that has a twin replaced by it.

    Schedulers are bound to the twins, however deep they are nested in one another.

    Args:
        configured: What ``configure_optimizers`` returned, in any of its forms.
        optim_bits: Bits per element of the twins' state, 8 or 32.

    Raises:
        ValueError: An optimizer uses an option that its twin does not have (``amsgrad=True``).
    """
    twins: dict[Optimizer, Optimizer] = {}

    def walk(item: Any) -> Any:
        if isinstance(item, Optimizer):
            if item not in twins:
                twins[item] = make_twin(item, optim_bits) or item
            return twins[item]
        if isinstance(item, dict):
            return {key: walk(value) for key, value in item.items()}
        if isinstance(item, (list, tuple)):
            walked = map(walk, item)
            return type(item)(*walked) if hasattr(item, "_fields") else type(item)(walked)
        return item

    replaced = walk(configured)
    for scheduler in _schedulers(replaced, set()):
        twin = twins.get(scheduler.optimizer)
        if twin not in (None, scheduler.optimizer):
            scheduler.optimizer = twin
            _track_steps(twin)
    return replaced


def optimizers_in(configured: Any) -> list[Optimizer]:
    """Every optimizer in what ``configure_optimizers`` returned."""
    if isinstance(configured, Optimizer):
        return [configured]
    if isinstance(configured, dict):
        configured = list(configured.values())
    nested = configured if isinstance(configured, (list, tuple)) else []
    return [found for item in nested for found in optimizers_in(item)]


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
