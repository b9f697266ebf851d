"""torch optimizers exchanged for 8-bit twins in whatever ``configure_optimizers`` returns, schedulers included."""

import functools
import inspect
import weakref
from typing import Any

import torch
from torch.optim.lr_scheduler import LRScheduler
from torch.optim.optimizer import Optimizer

from torch_bnb import optim

TWINS: dict[type[Optimizer], type[Optimizer]] = {
    torch.optim.Adam: optim.Adam,
    torch.optim.AdamW: optim.AdamW,
    torch.optim.SGD: optim.SGD,
    torch.optim.RMSprop: optim.RMSprop,
    torch.optim.Adagrad: optim.Adagrad,
}


def replace_optimizers(configured: Any, optim_bits: int) -> Any:
    """The same nest of lists, tuples and dicts with every torch optimizer replaced and every scheduler bound to the
    twin.

    Args:
        configured: What ``configure_optimizers`` returned, in any of its forms.
        optim_bits: Bits per element of the twins' state, 8 or 32.

    Raises:
        ValueError: An optimizer uses an option that its twin does not have (``amsgrad=True``).
    """
    twins: dict[Optimizer, Optimizer] = {}

    def walk(item: Any) -> Any:
        if isinstance(item, Optimizer):
            if type(item) in TWINS and item not in twins:
                twins[item] = make_twin(item, optim_bits)
            return twins.get(item, item)
        if isinstance(item, dict):
            return {key: walk(value) for key, value in item.items()}
        if isinstance(item, (list, tuple)):
            return type(item)(map(walk, item))
        return item

    replaced = walk(configured)
    for scheduler in _schedulers(replaced):
        if scheduler.optimizer in twins:
            scheduler.optimizer = twins[scheduler.optimizer]
            _track_steps(scheduler.optimizer)
    return replaced


def optimizers_in(configured: Any) -> list[Optimizer]:
    """Every optimizer in what ``configure_optimizers`` returned."""
    if isinstance(configured, Optimizer):
        return [configured]
    if isinstance(configured, dict):
        configured = list(configured.values())
    nested = configured if isinstance(configured, (list, tuple)) else []
    return [found for item in nested for found in optimizers_in(item)]


def make_twin(optimizer: Optimizer, optim_bits: int) -> Optimizer:
    """Our optimizer over the very same group dicts, so that whoever holds them sees one set of rates."""
    twin = TWINS[type(optimizer)]
    takes = inspect.signature(twin).parameters
    for group in optimizer.param_groups:
        for key, value in group.items():
            lacking = key in optimizer.defaults and key not in takes and key != "decoupled_weight_decay"
            if lacking and value:
                raise ValueError(f"{type(optimizer).__name__}({key}={value!r}) has no 8-bit twin in torch_bnb")
        group.setdefault("base_lr", _base_lr(group, optimizer))
    defaults = {key: value for key, value in optimizer.defaults.items() if key in takes}
    new = twin(optimizer.param_groups, **{**defaults, "optim_bits": optim_bits})
    if optimizer.state:
        new.load_state_dict(optimizer.state_dict())
    return new


def _base_lr(group: dict[str, Any], optimizer: Optimizer) -> float:
    """The rate that a group was built with, which a scheduler may have moved since."""
    one_cycle = "max_lr" in group  # its initial_lr is a fraction of max_lr
    return float(optimizer.defaults["lr"] if one_cycle else group.get("initial_lr", group["lr"]))


def _schedulers(item: Any) -> list[Any]:
    if isinstance(item, LRScheduler):
        return [item, *_schedulers(getattr(item, "_schedulers", []))]
    if isinstance(item, dict):
        item = list(item.values())
    return [found for inner in item for found in _schedulers(inner)] if isinstance(item, (list, tuple)) else []


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
