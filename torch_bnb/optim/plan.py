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

from torch_bnb.optim import host, norms, options, sharding
from torch_bnb.optim import state as storage
from torch_bnb.optim.calls import Call, is_strided
from torch_bnb.optim.facts import Facts, Memory, about_state, facts_of
from torch_bnb.optim.fitness import check_grad, measures, refuse_freed
from torch_bnb.optim.making import prepared
from torch_bnb.optim.paging import PagedCall
from torch_bnb.optim.slots import Group, Slot, walk
from torch_bnb.optim.sparse import SparseCall
from torch_bnb.optim.state import State

if TYPE_CHECKING:
    from torch_bnb.optim.base import BlockwiseOptimizer


class Terms(NamedTuple):
    """What the operator gets besides tensors."""

    scalars: dict[str, float]
    """The rule's."""
    arguments: dict[str, Any]
    active: Mapping[str, bool]
    """The states in use."""


@dataclass
class Situation:
    """Parameters of one group with the same overrides and the same step: they have the same terms."""

    group: int
    slot: Slot
    """Of any of them."""
    config: Group
    about: tuple[Any, ...]
    """The options about state when this was planned; `config` may be the live group, which users write to."""
    bits: int
    """Of each element of their state, 8 or 32."""
    terms: Terms
    key: int
    """A number that stands for the terms: parameters of one call have the same."""


class Situations:
    """Those of one step, each worked out once.

    Args:
        optimizer: Whose groups, and whose rule's scalars.
    """

    def __init__(self, optimizer: "BlockwiseOptimizer") -> None:
        self._optimizer = optimizer
        self._configs: dict[tuple[int, int], tuple[Group, tuple[Any, ...]]] = {}
        self._found: dict[tuple, Situation] = {}
        self._keys: dict[tuple, int] = {}

    def config(self, group: int, slot: Slot) -> tuple[Group, tuple[Any, ...]]:
        """The options of a slot, and what of them is about state."""
        like = group, id(slot.overrides)
        if like not in self._configs:
            config = slot.config(self._optimizer.param_groups[group])
            self._configs[like] = config, about_state(config)
        return self._configs[like]

    def of(self, group: int, slot: Slot, bits: int, step: int, fresh: bool) -> Situation:
        """That of a parameter."""
        like = group, id(slot.overrides), bits, step, fresh
        if like not in self._found:
            config, about = self.config(group, slot)
            terms = terms_of(self._optimizer, config, bits, step, fresh)
            key = self._keys.setdefault(tuple((tuple(part), *part.values()) for part in terms), len(self._keys))
            self._found[like] = Situation(group, slot, config, about, bits, terms, key)
        return self._found[like]


def terms_of(optimizer: "BlockwiseOptimizer", config: Group, bits: int, step: int, fresh: bool) -> Terms:
    """Those for parameters with this config and bits of state at this step."""
    if bits != config["optim_bits"]:
        config = {**config, "optim_bits": bits}
    arguments = options.arguments(config, optimizer.states, optimizer.decays(config))
    return Terms(optimizer.scalars(config, step, fresh), arguments, optimizer.active_states(config))


@dataclass
class Planned:
    """One call, and where its parameters come from."""

    call: Call
    sharded: bool
    """Whether processes hold parts of its parameters."""
    indices: list[int] = field(default_factory=list)
    """Of its parameters among all of the optimizer's."""
    situations: dict[int, tuple[Situation, int]] = field(default_factory=dict)
    """By id, each with the position in the call of one of its parameters."""


class Stepping(NamedTuple):
    """A parameter that steps."""

    index: int
    """Among all of the optimizer's."""
    parameter: Tensor
    grad: Tensor
    step: int
    """The one that it will have taken."""
    situation: Situation
    facts: Facts


class Plan:
    """The calls of one step.

    Args:
        optimizer: Whose parameters, groups and state.
        rows: Its slots, by group and position.
        before: The plan of its last step, if that went well.
    """

    def __init__(
        self, optimizer: "BlockwiseOptimizer", rows: Sequence[Sequence[Slot]], before: "Plan | None" = None
    ) -> None:
        remembers = before is not None and before._memory.rows is rows and before._knows_state(optimizer)
        self._memory = before._memory if before is not None and remembers else Memory(rows)
        if not (remembers and self._recall(optimizer)):
            self._look(optimizer)
        stepping = {index for planned in self._planned for index in planned.indices}
        self._without = [index for index in range(sum(map(len, rows))) if index not in stepping]
        self._known = list(optimizer.state.values())

    def _recall(self, optimizer: "BlockwiseOptimizer") -> bool:
        """Makes the calls out of what is remembered; False if that is not enough or not true any more."""
        situations, stepping, states = Situations(optimizer), [], []
        for index, g, _, parameter, slot in walk(optimizer.param_groups, self._memory.rows):
            if (grad := parameter.grad) is None:
                continue
            remembered = self._memory.recall(index)
            if remembered is None or grad.layout is not torch.strided:
                return False
            facts, state = remembered
            if "step" not in state:  # somebody has taken it away
                return False
            if facts.about != situations.config(g, slot)[1]:
                return False
            if facts.sharded and not sharding.is_sharded(grad):
                return False
            step, fresh = _step_of(state, optimizer.states)
            situation = situations.of(g, slot, facts.bits, step, fresh)
            stepping.append(Stepping(index, parameter, grad, step, situation, facts))
            states.append(state)
        self._gather(optimizer, stepping, states)
        for planned in self._planned:
            planned.call.look(optimizer.states)
        return all(
            planned.call.finds_state() and self._memory.confirms(planned.call, planned.indices)
            for planned in self._planned
        )

    def _look(self, optimizer: "BlockwiseOptimizer") -> None:
        """Makes the calls. What is wrong with any parameter is an error while no state has been made or converted."""
        situations, stepping, places = Situations(optimizer), [], []
        for index, g, i, parameter, slot in walk(optimizer.param_groups, self._memory.rows):
            if (grad := parameter.grad) is None:
                continue
            config, _ = situations.config(g, slot)
            check_grad(optimizer, parameter, grad, config, g, i)
            places.append((g, i, parameter))
            facts = facts_of(config, parameter)
            step, fresh = _step_of(optimizer.state.get(parameter, {}), optimizer.states)
            situation = situations.of(g, slot, facts.bits, step, fresh)
            stepping.append(Stepping(index, parameter, grad, step, situation, facts))
        refuse_freed(optimizer, places)
        self._gather(optimizer, stepping, [_state_of(optimizer, one) for one in stepping])
        facts_by_index = {one.index: one.facts for one in stepping}
        for planned in self._planned:
            planned.call.look(optimizer.states)
            self._memory.note(planned.call, planned.indices, [facts_by_index[index] for index in planned.indices])

    def _gather(self, optimizer: "BlockwiseOptimizer", stepping: Sequence[Stepping], states: Sequence[State]) -> None:
        """Puts parameters that may step together into one call."""
        self._planned: list[Planned] = []
        found: dict[tuple, Planned] = {}
        for one, state in zip(stepping, states, strict=True):
            situation, facts, here, grad = one.situation, one.facts, one.parameter, one.grad
            if facts.sharded:
                here, grad = sharding.local(here), sharding.local(grad)
            strided = is_strided(here, grad)
            # Sums over processes go call by call, so what only this one's part is like must not make another call.
            place = situation.key, grad.layout, strided and not facts.sharded, facts.place
            own = found.get(place)
            if own is None or (own.call.is_full() and not facts.sharded):
                own = found[place] = Planned(_new_call(optimizer, one), facts.sharded)
                self._planned.append(own)
            own.call.strided |= strided
            own.situations.setdefault(id(situation), (situation, len(own.indices)))
            own.indices.append(one.index)
            own.call.add(here, grad, state, one.step, facts.grid)

    def run(self, optimizer: "BlockwiseOptimizer") -> None:
        """Steps every parameter that is in it, and lets go of parameters and gradients."""
        calls = [planned.call for planned in self._planned]
        if any(map(host.captures, {call.params[0].device for call in calls})):
            raise RuntimeError(
                f"{type(optimizer).__name__}: a CUDA graph is being captured, and would repeat this step's numbers at "
                "every replay; build the optimizer with capturable=True"
            )
        norms.clip(calls)
        norms.measure(calls, optimizer.rule, optimizer.states, optimizer.layerwise)
        for planned in self._planned:
            planned.call.run(optimizer.rule, optimizer.states, planned.indices)
        for call in calls:
            call.release()

    def __bool__(self) -> bool:
        return bool(self._planned)

    def _knows_state(self, optimizer: "BlockwiseOptimizer") -> bool:
        """Whether parameters still have the state dicts that they had; what is in those is another question."""
        return len(optimizer.state) == len(self._known) and all(map(is_, optimizer.state.values(), self._known))

    def renew(self, optimizer: "BlockwiseOptimizer", rows: Sequence[Sequence[Slot]]) -> bool:
        """Makes it the plan of the next step, if that is like the last one but for gradients and scalars.

        Args:
            optimizer: As before.
            rows: Its slots, which are the same object as long as neither parameters nor hints have changed.
        """
        if rows is not self._memory.rows or not self._knows_state(optimizer):
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
            its, grads = list(map(sharding.local, its)), list(map(sharding.local, grads))
        scalars: dict[str, float] | None = None
        for situation, position in planned.situations.values():
            config = situation.slot.config(optimizer.param_groups[situation.group])
            fresh = not call.active
            terms = terms_of(optimizer, config, situation.bits, call.steps[position] + 1, fresh)
            if scalars not in (None, terms.scalars):
                return False
            if (terms.arguments, terms.active) != (call.arguments, call.active):
                return False
            if about_state(config) != situation.about:
                return False
            scalars = terms.scalars
        call.scalars = scalars or call.scalars
        call.steps = [step + 1 for step in call.steps]
        return call.take(its, grads, optimizer.states)


def _step_of(state: State, names: Mapping[str, bool]) -> tuple[int, bool]:
    """The step that a parameter with this state takes now, and whether it has none of the rule's states yet."""
    fresh = state.get("step") == 0 or not any(storage.has(state, name) for name in names)
    return state.get("step", 0) + 1, fresh


def _state_of(optimizer: "BlockwiseOptimizer", one: Stepping) -> State:
    """The state of a parameter that steps, as its options want it."""
    return prepared(optimizer, one.parameter, one.situation.config, one.situation.terms.active)


def _new_call(optimizer: "BlockwiseOptimizer", one: Stepping) -> Call:
    """An empty call for parameters like this one."""
    config, facts = one.situation.config, one.facts
    common = *one.situation.terms, config["percentile_clipping"], facts.groups
    if facts.away:
        return PagedCall(*common, whole=measures(optimizer, config))
    return (SparseCall if one.grad.layout is torch.sparse_coo else Call)(*common)
