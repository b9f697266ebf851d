"""``capturable=True``: a step whose count, learning rate and loss scale live on the device, for CUDA graphs.

Nothing of it reads a tensor on the host: what changes from step to step is computed by torch's operators into tensors
that the kernels read. On a CPU it is the same code. Knows groups and calls as the plan does; nothing of a rule.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from torch_bnb import ops
from torch_bnb.optim import host, options, sharding
from torch_bnb.optim import state as storage
from torch_bnb.optim.calls import Call, is_strided
from torch_bnb.optim.facts import facts_of
from torch_bnb.optim.fitness import check_grad, refuse_freed
from torch_bnb.optim.slots import Group, Slot, walk
from torch_bnb.optim.state import State

if TYPE_CHECKING:
    from torch_bnb.optim.base import BlockwiseOptimizer


@dataclass
class Captured:
    """One call, and what its scalars are made of."""

    call: Call
    config: Group
    """With the learning rate for a group's rate of 1."""
    rate: float | Tensor
    """The group's, or 0 and 1 for a rate that does not follow it."""
    fresh: bool
    count: Tensor
    """The steps that its parameters have taken, float64, shape (), one tensor for all of them."""
    indices: list[int] = field(default_factory=list)
    """Of its parameters among all of the optimizer's."""


class CapturedPlan:
    """The calls of one step. A replayed graph makes no plan, so none is kept.

    Args:
        optimizer: Whose parameters, groups and state.
        rows: Its slots, by group and position.
    """

    def __init__(self, optimizer: "BlockwiseOptimizer", rows: Sequence[Sequence[Slot]]) -> None:
        self._calls: list[Captured] = []
        found: dict[tuple, Captured] = {}
        counts: dict[tuple, Tensor] = {}
        _check_all(optimizer, rows)
        for index, g, _, parameter, slot in walk(optimizer.param_groups, rows):
            if (grad := parameter.grad) is None:
                continue
            group = optimizer.param_groups[g]
            config, state = slot.config({**group, "lr": 1.0}), optimizer.state[parameter]
            fresh = not any(storage.has(state, name) for name in optimizer.states)
            count = count_of(state, parameter.device, counts)
            facts, strided = facts_of(config, parameter), is_strided(parameter, grad)
            place = (g, id(slot.overrides), fresh, id(count), strided, facts.bits, facts.place)
            captured = found.get(place)
            if captured is None or captured.call.is_full():
                own = {**config, "optim_bits": facts.bits}
                arguments = options.arguments(own, optimizer.states, optimizer.decays(own))
                call = Call({}, arguments, optimizer.active_states(own), strided=strided)
                captured = found[place] = Captured(call, own, _rate(group, slot), fresh, count)
                self._calls.append(captured)
            captured.indices.append(index)
            storage.prepare(state, captured.call.active, parameter, config, optimizer.initial(config))
            captured.call.add(parameter, grad, state, 0, facts.grid)
        _leave_behind(optimizer.state.values(), self._calls)

    def run(self, optimizer: "BlockwiseOptimizer") -> None:
        """Steps every parameter, unless a GradScaler's ``found_inf`` says on the device that none may change."""
        scale, found_inf = getattr(optimizer, "grad_scale", None), getattr(optimizer, "found_inf", None)
        for count in {id(captured.count): captured.count for captured in self._calls}.values():
            count += 1 if found_inf is None else 1 - found_inf.to(count)
        for captured in self._calls:
            call, device = captured.call, captured.count.device
            scalars = optimizer.scalars(captured.config, captured.count, captured.fresh)
            scalars["lr"] = scalars["lr"] * captured.rate
            moving = {"scalars": torch.stack([_on(device, scalar) for scalar in scalars.values()])}
            if call.arguments["stochastic_states"] or call.arguments["stochastic_weights"]:
                moving["moving_keys"] = (captured.count.long() << 32) | _as_tensor(captured.indices, device)
            if found_inf is not None:
                moving["found_inf"] = _on(device, found_inf)
            if scale is not None:
                call.grad_scales = _on(device, scale).reciprocal().expand(len(call.params)).contiguous()
            with call.laid_out(writes=True):
                ops.update_on_device(optimizer.rule, *call.tensors(optimizer.states), **moving, **call.keywords())
            torch.autograd.graph.increment_version(call.params)
            for state in call.stepped:
                state["step"] = captured.count
            call.release()

    def __bool__(self) -> bool:
        """Whether any parameter steps."""
        return bool(self._calls)

    def renew(self, optimizer: "BlockwiseOptimizer", rows: Sequence[Sequence[Slot]]) -> bool:
        """Never: see above."""
        return False


def _check_all(optimizer: "BlockwiseOptimizer", rows: Sequence[Sequence[Slot]]) -> None:
    """Raises an error for the first parameter that cannot be stepped, while no state has been made or converted."""
    places = []
    for _, g, i, parameter, slot in walk(optimizer.param_groups, rows):
        if (grad := parameter.grad) is not None:
            check(optimizer, parameter, grad, slot.config({**optimizer.param_groups[g], "lr": 1.0}), g, i)
            places.append((g, i, parameter))
    refuse_freed(optimizer, places)


def check(
    optimizer: "BlockwiseOptimizer", parameter: Tensor, grad: Tensor, config: Group, group: int, position: int
) -> None:
    """`check_grad`, and what else a step on the device cannot do."""
    check_grad(optimizer, parameter, grad, config, group, position)
    place = f"parameter {position} of group {group}"
    what: str | None = None
    if sharding.is_sharded(parameter):
        what = "capturable=True takes no sharded parameter"
    elif grad.layout is not torch.strided:
        what = f"capturable=True takes no gradient with layout {grad.layout}"
    elif config["percentile_clipping"] < 100:
        what = "percentile_clipping and capturable=True do not go together"
    elif host.is_away(config, parameter):
        what = "state_device='cpu' and capturable=True do not go together"
    if what is not None:
        raise NotImplementedError(f"{type(optimizer).__name__}: {place}: {what}")
    rate = optimizer.param_groups[group]["lr"]
    elsewhere = isinstance(rate, Tensor) and rate.device != parameter.device
    if elsewhere and (rate.device.type != "cpu" or host.captures(parameter.device)):
        raise ValueError(
            f"{type(optimizer).__name__}: {place}: capturable=True: lr is a tensor on {rate.device}, the parameter is "
            f"on {parameter.device}; expected the same"
        )


def count_of(state: State, device: torch.device, made: dict[tuple, Tensor]) -> Tensor:
    """The count of a parameter's steps; parameters that are made or loaded together share one tensor."""
    step = state.get("step", 0)
    if isinstance(step, Tensor) and step.device == device:
        return step
    if host.captures(device):
        raise RuntimeError("capturable=True: a first step makes the state; take one before the graph is captured")
    key = (device, float(step))
    if key not in made:
        made[key] = torch.full((), float(step), dtype=torch.float64, device=device)
    return made[key]


def _leave_behind(states: Iterable[State], calls: Sequence[Captured]) -> None:
    """Gives those that do not step a count of their own, where they have shared one with some that do."""
    moving = {id(captured.count) for captured in calls}
    stepped = {id(state) for captured in calls for state in captured.call.stepped}
    own: dict[int, Tensor] = {}
    for state in states:
        count = state.get("step")
        if id(count) in moving and id(state) not in stepped:
            if host.captures(count.device):
                raise RuntimeError(
                    "capturable=True: not all parameters that have stepped have a gradient; take such a step before "
                    "the graph is captured"
                )
            if id(count) not in own:
                own[id(count)] = count.clone()
            state["step"] = own[id(count)]


def _rate(group: Group, slot: Slot) -> float | Tensor:
    """What to multiply the rate by that a slot has where its group's is 1."""
    rate, overrides = group["lr"], slot.overrides
    follows = overrides.get("lr") is None or (overrides.get("lr_follows_schedule", True) and group["base_lr"] != 0)
    return rate if follows else (rate != 0) * 1.0


def _on(device: torch.device, scalar: float | Tensor) -> Tensor:
    """As a float32 scalar on a device; nothing is copied there from the host, which a graph could not repeat."""
    if isinstance(scalar, Tensor):
        return scalar.to(device, torch.float32).reshape(())
    return torch.full((), scalar, dtype=torch.float32, device=device)


def _as_tensor(indices: Sequence[int], device: torch.device) -> Tensor:
    """Ascending indices as int64, likewise."""
    starts = [0, *(i + 1 for i, (a, b) in enumerate(pairwise(indices)) if b != a + 1), len(indices)]
    runs = [torch.arange(indices[a], indices[b - 1] + 1, device=device) for a, b in pairwise(starts)]
    return torch.cat(runs)
