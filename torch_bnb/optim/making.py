"""State that is made without a step: on request, or by torch.distributed.checkpoint, which steps at rate 0 for it.

Knows groups, overrides and how state is kept; nothing of a rule, nor of the calls of a step.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from torch_bnb.optim import capture, host, norms, sharding
from torch_bnb.optim import state as storage
from torch_bnb.optim.fitness import check_grad, refuse_freed
from torch_bnb.optim.slots import Group, Slot, walk
from torch_bnb.optim.state import State

if TYPE_CHECKING:
    from torch_bnb.optim.base import BlockwiseOptimizer


class Target(NamedTuple):
    """A parameter that gets state."""

    group: int
    position: int
    parameter: Tensor
    slot: Slot


class StatePlan:
    """The plan of a step that makes state and nothing else. What is wrong with any target is an error before that.

    Args:
        optimizer: Whose groups and state.
        targets: Checked with the gradients that they have; without one, with one like the parameter.
    """

    def __init__(self, optimizer: "BlockwiseOptimizer", targets: Sequence[Target]) -> None:
        self._targets = targets
        check = capture.check if optimizer.defaults["capturable"] else check_grad
        for g, i, parameter, slot in targets:
            grad = parameter if parameter.grad is None else parameter.grad
            check(optimizer, parameter, grad, slot.config(optimizer.param_groups[g]), g, i)

    def run(self, optimizer: "BlockwiseOptimizer") -> None:
        """Makes the state of every target, and converts what is kept otherwise than its options say."""
        counts: dict[tuple, Tensor] = {}
        for g, _, parameter, slot in self._targets:
            config = slot.config(optimizer.param_groups[g])
            state = prepared(optimizer, parameter, config, optimizer.active_states(config))
            on_device = optimizer.defaults["capturable"]
            state["step"] = capture.count_of(state, parameter.device, counts) if on_device else 0
        self._targets = []

    def __bool__(self) -> bool:
        return True

    def renew(self, optimizer: "BlockwiseOptimizer", rows: Sequence[Sequence[Slot]]) -> bool:
        """Never: the next step finds state."""
        return False


def plan_of(optimizer: "BlockwiseOptimizer", rows: Sequence[Sequence[Slot]]) -> StatePlan | None:
    """The plan of a step that only makes state: no parameter has stepped, all rates and all gradients are 0.

    Args:
        optimizer: Of sharded parameters every process asks.
        rows: Its slots, by group and position.

    Returns:
        None, if the step does more, or has no gradient at all.
    """
    targets = []
    for _, g, i, parameter, slot in walk(optimizer.param_groups, rows):
        if parameter.grad is None:
            continue
        if _has_stepped(optimizer.state.get(parameter, {})) or host.captures(parameter.device):
            return None
        if float(slot.config(optimizer.param_groups[g])["lr"]) != 0:
            return None
        targets.append(Target(g, i, parameter, slot))
    if not targets:
        return None
    plan = StatePlan(optimizer, targets)
    refuse_freed(optimizer, [target[:3] for target in targets])
    return None if _moves([target.parameter for target in targets]) else plan


def prepared(optimizer: "BlockwiseOptimizer", parameter: Tensor, config: Group, active: Mapping[str, bool]) -> State:
    """The state of a parameter as its options want it, made where there is none.

    Args:
        optimizer: Whose state it is.
        parameter: The parameter.
        config: Its options.
        active: The states that they need, see `BlockwiseOptimizer.active_states`.
    """
    state = optimizer.state[parameter]
    storage.prepare(state, active, parameter, config, optimizer.initial(config))
    if config["percentile_clipping"] < 100:
        state.setdefault(storage.HISTORY, storage.new_history(parameter))
    return state


def _has_stepped(state: State) -> bool:
    """Whether a parameter with this state has; a count on a device is not asked for its value."""
    step = state.get("step", 0)
    return isinstance(step, Tensor) or step > 0


def _moves(params: Sequence[Tensor]) -> bool:
    """Whether any gradient, of any process, has anything in it."""
    counts: dict[tuple, Tensor] = {}
    for parameter in params:
        grad = sharding.local(parameter.grad)
        values = grad if grad.layout is torch.strided else grad._values()
        place = parameter.device, sharding.groups_of(parameter)
        counts[place] = counts.get(place, 0) + values.count_nonzero()
    norms.add_up(list(counts.values()), [groups for _, groups in counts])
    return any(map(bool, counts.values()))
