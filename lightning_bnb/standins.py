"""A twin in an optimizer's place: the same groups for both, one of them that steps, and the way back.

The optimizer may outlive a fit: LightningCLI builds its own before any, a module may in its ``__init__``. Knows nothing
of Lightning.
"""

import weakref
from collections.abc import Callable, Iterable
from typing import Any

from torch.optim.optimizer import Optimizer

from lightning_bnb.twins import ask_for_bits, make_twin

_TWIN = "_eight_bit_twin"
"""Where an optimizer keeps its twin for the next fit; copies and pickles leave it out.

In a table of weak references a hook that leads from the twin to the optimizer would keep both for ever.
"""
_IN_PLACE = "add_param_group"
"""The method that an optimizer has from its twin as long as that stands in its place."""


def twin_of(optimizer: Optimizer, optim_bits: int, schedulers: Iterable[Any] = ()) -> Optimizer | None:
    """The twin that stood in for an optimizer before, with its state; a new one if that has no use any more.

    That is so once the optimizer itself has stepped, or its groups have been loaded or exchanged.

    Args:
        optimizer: Any.
        optim_bits: Bits per element of the twin's state, 8 or 32.
        schedulers: Those that may have moved the optimizer's rates.

    Raises:
        ValueError: It uses an option that its twin does not have.
    """
    twin: Optimizer | None = vars(optimizer).get(_TWIN)
    if twin is None or not _takes_up(twin, optimizer.param_groups):
        return make_twin(optimizer, optim_bits, schedulers)
    ask_for_bits(twin, optim_bits)
    return twin


def stand_in(twin: Optimizer, optimizer: Optimizer) -> Callable[[], None]:
    """Lets a twin train in an optimizer's place.

    The optimizer's groups are then the twin's, whatever is loaded into that or added to either, and its own step is an
    error. What is loaded into the optimizer itself does not reach the twin.

    Returns:
        What gives the optimizer its place back. It keeps the twin.
    """
    this = weakref.ref(optimizer)  # nobody else may hold it, and then it should be freed

    def follow(loaded: Optimizer) -> None:
        if (original := this()) is not None:
            original.param_groups = loaded.param_groups

    guarded = _before_own_step in optimizer._optimizer_step_pre_hooks.values()
    guard = None if guarded else optimizer.register_step_pre_hook(_before_own_step)
    vars(optimizer).update({_TWIN: twin, _IN_PLACE: twin.add_param_group})
    following = twin.register_load_state_dict_post_hook(follow)
    follow(twin)

    def give_back() -> None:
        following.remove()
        if (original := this()) is not None:
            vars(original).pop(_IN_PLACE, None)
            original.param_groups = list(original.param_groups)
            for group in original.param_groups:
                for key, value in original.defaults.items():  # a checkpoint's groups, or the twin's, may lack some
                    group.setdefault(key, value)
        elif guard is not None:
            guard.remove()  # from the twin, which has the same hooks

    return give_back


def _takes_up(twin: Optimizer, groups: list[dict[str, Any]]) -> bool:
    """Whether these groups are still the twin's; it adds what has come behind them."""
    known = len(twin.param_groups)
    if list(map(id, groups[:known])) != list(map(id, twin.param_groups)):
        return False
    for group in groups[known:]:
        twin.add_param_group(group)
    return True


def _before_own_step(optimizer: Optimizer, *_: Any) -> None:
    if _IN_PLACE in vars(optimizer):
        name = type(optimizer).__name__
        raise RuntimeError(
            f"EightBitOptimizer: the {name} that configure_optimizers returned is replaced during the fit; its own "
            "step would train at full precision and without hints. Step the one that self.optimizers() gives"
        )
    vars(optimizer).pop(_TWIN, None)  # it goes on by itself, and what the twin knows grows old
