"""The calls of a step: which parameters go into which, worked out once and kept for the steps that are like it.

Knows groups, overrides and how state is kept; nothing of what a rule computes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from operator import is_
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from torch_bnb import ops
from torch_bnb.optim import host, norms, options, sharding
from torch_bnb.optim import state as storage
from torch_bnb.optim.calls import Call, Grid
from torch_bnb.optim.paging import PagedCall
from torch_bnb.optim.slots import Group, Slot
from torch_bnb.optim.sparse import SparseCall
from torch_bnb.optim.state import Form

if TYPE_CHECKING:
    from torch_bnb.optim.base import BlockwiseOptimizer

FLOATING = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def about_state(config: Group) -> tuple[Any, ...]:
    """What decides how a parameter's state is kept."""
    return *(config[key] for key in options.STORAGE), config["percentile_clipping"]


@dataclass
class Situation:
    """Parameters of one group with the same overrides and the same step: they have the same numbers."""

    group: int
    slot: Slot
    """Of any of them."""
    bits: int
    """Of each element of their state, 8 or 32."""
    about_state: tuple[Any, ...]
    """Options that decide what the parameters' state holds."""
    numbers: tuple[dict[str, float], dict[str, Any], Mapping[str, bool]]
    """The rule's scalars, the operator's other arguments, the states in use."""


def numbers_of(
    optimizer: "BlockwiseOptimizer", config: Group, bits: int, step: int, fresh: bool
) -> tuple[dict[str, float], dict[str, Any], Mapping[str, bool]]:
    """What the operator gets for parameters with this config and bits of state at this step."""
    if bits != config["optim_bits"]:
        config = {**config, "optim_bits": bits}
    arguments = options.arguments(config, optimizer.states, optimizer.decays(config))
    return optimizer.scalars(config, step, fresh), arguments, optimizer.active_states(config)


@dataclass
class Planned:
    """One call, and whence its parameters come."""

    call: Call
    indices: list[int] = field(default_factory=list)
    """Of its parameters among all of the optimizer's."""
    situations: dict[int, tuple[Situation, int]] = field(default_factory=dict)
    """By id, each with the position in the call of one of its parameters."""
    sharded: bool = False
    """Whether processes hold parts of its parameters."""


class Stepping(NamedTuple):
    """A parameter that steps."""

    index: int
    """Among all of the optimizer's."""
    parameter: Tensor
    grad: Tensor
    step: int
    """The one that it will have taken."""
    config: Group
    situation: Situation
    key: tuple
    """The same for parameters with the same numbers."""


class Plan:
    """The calls of one step.

    Args:
        optimizer: Whose parameters, groups and state.
        rows: Its slots, by group and position.
    """

    def __init__(self, optimizer: "BlockwiseOptimizer", rows: Sequence[Sequence[Slot]]) -> None:
        self._rows = rows
        self._without: list[int] = []
        self._keeps = True
        stepping = self._checked(optimizer, rows)
        planned: dict[tuple, Planned] = {}
        for one in stepping:
            self._place(optimizer, one, planned)
        self._planned = list(planned.values())
        self._known = list(optimizer.state.values())
        # No parameter has stepped, and none would now.
        still = all(one.step == 1 and float(one.config["lr"]) == 0 for one in stepping)
        self._rehearses = bool(self._planned) and still and not self._moves()
        for own in self._planned if self._keeps and not self._rehearses else []:
            own.call.look(optimizer.states)

    def _checked(self, optimizer: "BlockwiseOptimizer", rows: Sequence[Sequence[Slot]]) -> list[Stepping]:
        """The parameters that step. What is wrong with any is an error while no state has been made or converted."""
        stepping: list[Stepping] = []
        seen: dict[tuple, tuple[Situation, tuple]] = {}
        index = -1
        for g, (group, slots) in enumerate(zip(optimizer.param_groups, rows, strict=True)):
            configs: dict[int, Group] = {}
            for i, (parameter, slot) in enumerate(zip(group["params"], slots, strict=True)):
                index += 1
                if parameter.grad is None:
                    self._without.append(index)
                    continue
                state = optimizer.state.get(parameter, {})
                step = state.get("step", 0) + 1
                fresh = state.get("step") == 0 or not any(storage.has(state, name) for name in optimizer.states)
                if id(slot.overrides) not in configs:
                    configs[id(slot.overrides)] = slot.config(group)
                config = configs[id(slot.overrides)]
                bits = 8 if storage.wants_8bit(config, parameter) else 32
                if (like := (g, id(slot.overrides), bits, step, fresh)) not in seen:
                    numbers = numbers_of(optimizer, config, bits, step, fresh)
                    situation = Situation(g, slot, bits, about_state(config), numbers)
                    key = tuple((tuple(part), *part.values()) for part in numbers)
                    seen[like] = situation, key
                check_grad(optimizer, parameter, parameter.grad, config, g, i)
                stepping.append(Stepping(index, parameter, parameter.grad, step, config, *seen[like]))
        return stepping

    def _place(self, optimizer: "BlockwiseOptimizer", one: Stepping, planned: dict[tuple, Planned]) -> None:
        """Prepares a parameter's state and puts it into its call."""
        parameter, grad, config, situation = one.parameter, one.grad, one.config, one.situation
        state = optimizer.state[parameter]
        sharded, form = sharding.is_sharded(parameter), storage.wanted(config, parameter)
        here, own_grad = sharding.local(parameter), sharding.local_grad(grad, parameter)
        percentile, sparse = config["percentile_clipping"], grad.layout is torch.sparse_coo
        groups = sharding.groups_of(parameter)
        grid = grid_of(parameter) if sharded or form is Form.ROWS else None
        away = host.is_away(config, parameter)
        place = (parameter.device, one.key, percentile, sparse, sharded, away, grid is None, *groups)
        if place not in planned:
            if away:
                call = PagedCall(*situation.numbers, percentile, whole=measures(optimizer, config))
            else:
                call = (SparseCall if sparse else Call)(*situation.numbers, percentile, groups)
            planned[place] = Planned(call, sharded=sharded)
        own = planned[place]
        own.situations.setdefault(id(situation), (situation, len(own.indices)))
        own.indices.append(one.index)
        storage.prepare(state, own.call.active, parameter, config, optimizer.initial(config))
        if percentile < 100:
            state.setdefault(storage.HISTORY, storage.new_history(parameter))
        own.call.add(here, own_grad, state, one.step, grid)

    def run(self, optimizer: "BlockwiseOptimizer") -> None:
        """Steps every parameter that is in it, and lets go of parameters and gradients."""
        calls = [planned.call for planned in self._planned]
        if any(map(host.captures, {call.params[0].device for call in calls})):
            raise RuntimeError(
                f"{type(optimizer).__name__}: a CUDA graph is being captured, and would repeat this step's numbers at "
                "every replay; build the optimizer with capturable=True"
            )
        if self._rehearses:
            for state in chain.from_iterable(call.stepped for call in calls):
                state["step"] = 0
            self._keeps = False
        else:
            norms.clip(calls)
            norms.measure(calls, optimizer.rule, optimizer.states, optimizer.layerwise)
            for planned in self._planned:
                planned.call.run(optimizer.rule, optimizer.states, planned.indices)
        for call in calls:
            call.release()

    def __bool__(self) -> bool:
        return bool(self._planned)

    def _moves(self) -> bool:
        """Whether any gradient, of any process, has anything in it."""
        for device in {planned.call.params[0].device for planned in self._planned}:
            calls = [planned.call for planned in self._planned if planned.call.params[0].device == device]
            some = [torch.stack([grad.count_nonzero() for grad in call.grads]).sum() for call in calls]
            norms.add_up(some, [call.groups for call in calls])
            if torch.stack(some).any():
                return True
        return False

    def renew(self, optimizer: "BlockwiseOptimizer", rows: Sequence[Sequence[Slot]]) -> bool:
        """Makes it the plan of the next step, if that is like the last one but for gradients and numbers.

        Args:
            optimizer: As before.
            rows: Its slots, which are the same object as long as neither parameters nor hints have changed.
        """
        if not self._keeps or rows is not self._rows:
            return False
        known, state = self._known, optimizer.state
        if len(state) != len(known) or not all(map(is_, state.values(), known)):
            return False
        params = list(chain.from_iterable(group["params"] for group in optimizer.param_groups))
        if any(params[index].grad is not None for index in self._without):
            return False
        return all(self._renew_call(planned, optimizer, params) for planned in self._planned)

    def _renew_call(self, planned: Planned, optimizer: "BlockwiseOptimizer", params: list[Tensor]) -> bool:
        call = planned.call
        if [state.get("step") for state in call.stepped] != call.steps or not call.finds_state():
            return False
        its = [params[index] for index in planned.indices]
        grads = [parameter.grad for parameter in its]
        if any(grad is None for grad in grads):
            return False
        if planned.sharded:
            if not all(map(sharding.is_sharded, grads)):
                return False
            grads = [sharding.local_grad(grad, p) for p, grad in zip(its, grads, strict=True)]
            its = list(map(sharding.local, its))
        scalars: dict[str, float] | None = None
        for situation, position in planned.situations.values():
            config = situation.slot.config(optimizer.param_groups[situation.group])
            fresh = not call.active
            numbers = numbers_of(optimizer, config, situation.bits, call.steps[position] + 1, fresh)
            if scalars not in (None, numbers[0]) or numbers[1:] != (call.arguments, call.active):
                return False
            if about_state(config) != situation.about_state:
                return False
            scalars = numbers[0]
        call.scalars = scalars or call.scalars
        call.steps = [step + 1 for step in call.steps]
        return call.take(its, grads, optimizer.states)


def measures(optimizer: "BlockwiseOptimizer", config: Group) -> bool:
    """Whether a kernel looks at all of a parameter before it steps it."""
    return optimizer.layerwise or config["max_unorm"] > 0


def grid_of(parameter: Tensor) -> Grid:
    """Where the blocks of a parameter with rows lie."""
    part = sharding.part_of(parameter)
    return Grid(part.row, part.row_stride, part.origin) if part.affine and part.row else Grid()


def check_grad(
    optimizer: "BlockwiseOptimizer", parameter: Tensor, grad: Tensor, config: Group, group: int, position: int
) -> None:
    """Raises an error that names the parameter, if it cannot be stepped with this gradient."""
    what = error = None
    name = type(optimizer).__name__
    sharded = sharding.is_sharded(parameter)
    whole = _needs_whole(optimizer, config)
    if sharded and not sharding.is_sharded(grad):
        what, error = "it is sharded (a DTensor) and its gradient is a plain tensor", ValueError
    elif sharded and not config["block_wise"]:
        what, error = "block_wise=False needs the whole tensor, it is sharded", NotImplementedError
    elif sharded and grad.layout is not torch.strided:
        what, error = f"it is sharded and its gradient is {grad.layout}; expected a dense one", NotImplementedError
    elif whole and getattr(parameter, "_fsdp_flattened", False):
        what, error = f"{whole} needs the whole tensor, FSDP1 gives a shard; use fully_shard", NotImplementedError
    elif is_traceable_wrapper_subclass(parameter) and not sharded:
        what, error = f"this version takes no {type(parameter.data).__name__}", NotImplementedError
    elif not ops.has_kernel(optimizer.rule, parameter.device):
        what, error = f"torch_bnb was built without kernels for {parameter.device.type}", NotImplementedError
    elif sharded and host.on_host(config) and parameter.device.type != "cpu":
        what = "state_device='cpu' takes no sharded parameter; FSDP2's CPUOffloadPolicy keeps it and its state there"
        error = NotImplementedError
    elif grad.layout not in (torch.strided, torch.sparse_coo):
        what, error = f"its gradient is {grad.layout}; expected a dense or COO tensor", NotImplementedError
    elif grad.layout is torch.sparse_coo and (grad.sparse_dim() != 1 or not parameter.is_contiguous()):
        what, error = "a sparse gradient must be one of rows, for a contiguous parameter", NotImplementedError
    elif grad.layout is torch.sparse_coo and host.is_away(config, parameter):
        what, error = "state_device='cpu' takes no sparse gradient", NotImplementedError
    elif grad.layout is torch.sparse_coo and whole and whole != "percentile_clipping":
        what, error = f"{whole} needs the whole tensor, its gradient is sparse", NotImplementedError
    elif grad.dtype not in FLOATING or grad.device != parameter.device:
        theirs = f"{grad.dtype} on {grad.device}"
        what, error = f"its gradient is {theirs}, the parameter {parameter.dtype} on {parameter.device}", ValueError
    elif unfit := storage.misfit(optimizer.state.get(parameter, {}), optimizer.states, parameter):
        what, error = unfit, ValueError
    if error is not None:
        place = f"parameter {position} of group {group}, shape {tuple(parameter.shape)}"
        raise error(f"{name}: {place}: {what}")


def _needs_whole(optimizer: "BlockwiseOptimizer", config: Group) -> str | None:
    """What of an optimizer's options needs to know the whole of a parameter, if anything."""
    if optimizer.layerwise:
        return type(optimizer).__name__
    if config["max_unorm"]:
        return "max_unorm"
    if not config["block_wise"]:
        return "block_wise=False"
    return "percentile_clipping" if config["percentile_clipping"] < 100 else None
