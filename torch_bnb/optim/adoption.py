"""State of parameters that a framework has replaced, after they had stepped, by shards of them: it goes along.

Knows places and how state is kept; no rule, no checkpoint.
"""

from collections.abc import Mapping, MutableMapping, Sequence

from torch import Tensor

from torch_bnb.optim import host, sharding
from torch_bnb.optim import state as storage
from torch_bnb.optim.slots import Group, Slot
from torch_bnb.optim.state import State
from torch_bnb.overrides.hints import identity


def adopt(
    state: MutableMapping[Tensor, State],
    before: Sequence[Sequence[Slot]],
    groups: Sequence[Group],
    states: Mapping[str, bool],
) -> None:
    """Gives a shard the state of the whole parameter whose place it has taken.

    Args:
        state: The optimizer's, by parameter.
        before: Its slots as they were, by group and position.
        groups: Its groups as they are.
        states: The rule's states, and whether each has a sign.

    Raises:
        ValueError: The parameter that came is of another shape, or the one that has gone was sharded otherwise.
    """
    now = {identity(parameter) for group in groups for parameter in group["params"]}
    left = {identity(parameter): parameter for parameter in state if identity(parameter) not in now}
    for g, (row, group) in enumerate(zip(before, groups, strict=False)):
        if not left or len(row) != len(group["params"]):
            continue
        for i, (slot, came) in enumerate(zip(row, group["params"], strict=True)):
            gone = left.get(slot.identity)
            if gone is None or not sharding.is_sharded(came):
                continue
            if sharding.is_sharded(gone):
                if sharding.layout_of(gone) != sharding.layout_of(came):
                    raise ValueError(
                        f"parameter {i} of group {g}, shape {tuple(gone.shape)}, has state and was replaced by one "
                        f"that is sharded otherwise, {came.placements} after {gone.placements}; shard a model in every "
                        "way before its optimizer steps"
                    )
                continue
            if came.shape != gone.shape:
                raise ValueError(
                    f"parameter {i} of group {g}, shape {tuple(gone.shape)}, has state and was replaced by one of "
                    f"shape {tuple(came.shape)}"
                )
            host.settle({gone: state[gone]})
            state[came] = _sharded(state.pop(gone), states, came)


def _sharded(kept: State, states: Mapping[str, bool], parameter: Tensor) -> State:
    moments = {key for name in states for key in (name, storage.codes_key(name), storage.absmax_key(name))}
    result = {key: value for key, value in kept.items() if key not in moments}
    for name, signed in states.items():
        if storage.has(kept, name):
            result.update(storage.part(name, kept, signed, parameter))
    return result
