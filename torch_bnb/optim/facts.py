"""What plans have found out about parameters, so that the next need not look again.

A step may differ from the last one only in which parameters have a gradient (mixtures of experts, layers that are left
out) or in how many steps each has taken. What is known of a parameter then still holds, unless its tensors have been
exchanged; that shows in their headers, which are compared for all of them at once.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from torch_bnb.optim import host, options, sharding
from torch_bnb.optim import state as storage
from torch_bnb.optim.calls import Call, Grid
from torch_bnb.optim.slots import Group, Slot
from torch_bnb.optim.state import Form, State


def about_state(config: Group) -> tuple[Any, ...]:
    """What decides how a parameter's state is kept, and in what kind of call it steps."""
    return *(config[key] for key in options.STORAGE), config["percentile_clipping"], config["max_unorm"] > 0


@dataclass(frozen=True)
class Facts:
    """About one parameter."""

    about: tuple[Any, ...]
    """The options that they depend on."""
    bits: int
    """Of each element of its state, 8 or 32."""
    sharded: bool
    away: bool
    """Whether its state is kept on the host and the parameter is not."""
    grid: Grid | None
    groups: tuple[Any, ...]
    """The process groups that hold the other parts of it."""
    place: tuple[Any, ...]
    """Device, kind of state and process groups: parameters of one call have the same, beside the same terms."""


def facts_of(config: Group, parameter: Tensor) -> Facts:
    """Looks at a parameter."""
    about, form = about_state(config), storage.wanted(config, parameter)
    sharded, groups, away = (
        sharding.is_sharded(parameter),
        sharding.groups_of(parameter),
        host.is_away(config, parameter),
    )
    grid = grid_of(parameter) if sharded or form is Form.ROWS else None
    place = (parameter.device, config["percentile_clipping"], sharded, away, grid is None, *groups)
    return Facts(about, 32 if form is Form.FLOAT32 else 8, sharded, away, grid, groups, place)


def grid_of(parameter: Tensor) -> Grid:
    """Where the blocks of a parameter with rows lie."""
    part = sharding.part_of(parameter)
    return Grid(part.row, part.row_stride, part.origin) if part.affine and part.row else Grid()


class Memory:
    """Facts, by index of the parameter among all of the optimizer's.

    Args:
        rows: The optimizer's slots. What is remembered holds as long as these are the same object: neither parameters
            nor hints have changed.
    """

    def __init__(self, rows: Sequence[Sequence[Slot]]) -> None:
        self.rows = rows
        self._facts: dict[int, tuple[Facts, State]] = {}
        self._layouts = torch.empty(0, device="cpu")

    def recall(self, index: int) -> tuple[Facts, State] | None:
        """What is known of a parameter, and its state. To be believed if `confirms` agrees later."""
        return self._facts.get(index)

    def note(self, call: Call, indices: Sequence[int], facts: Sequence[Facts]) -> None:
        """Keeps what was found out about a call's parameters, if their tensors' headers tell what they are."""
        layouts = call.layout_by_parameter()
        if layouts is None:
            for index in indices:
                self._facts.pop(index, None)
            return
        if not len(self._layouts):
            self._layouts = layouts.new_zeros(sum(map(len, self.rows)), *layouts.shape[1:])
        self._layouts[indices] = layouts
        self._facts.update(zip(indices, zip(facts, call.stepped, strict=True), strict=True))

    def confirms(self, call: Call, indices: Sequence[int]) -> bool:
        """Whether the operator's tensors are still what they were when these parameters' facts were noted."""
        layouts = call.layout_by_parameter()
        return layouts is not None and torch.equal(self._layouts[indices], layouts)
