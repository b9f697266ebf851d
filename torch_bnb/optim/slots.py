"""The places of an optimizer's parameter groups, and which overrides hold in each."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from torch_bnb.overrides import GlobalOptimManager
from torch_bnb.overrides.hints import Hint, Level
from torch_bnb.overrides.resolve import merge

Group = Mapping[str, Any]
Checked = Callable[[dict[str, Any], Group, str], dict[str, Any]]


@dataclass
class Slot:
    """One place. A hint given on a Parameter stays with its place when a framework puts another Parameter there."""

    parameter: Tensor
    hints: list[Hint]
    overrides: dict[str, Any] = field(default_factory=dict)
    """What the hints add up to; one object for all slots of the optimizer where they add up to the same."""

    def config(self, group: Group) -> Group:
        """The options in force here, with the effective learning rate as ``lr``."""
        if not self.overrides:
            return group
        return {**group, **self.overrides, "lr": effective_lr(group, self.overrides)}


class SlotTable:
    """All slots of an optimizer, by group and position, looked up again only when something has changed."""

    def __init__(self, rows: list[list[Slot]] | None = None) -> None:
        self.rows: list[list[Slot]] = rows or []
        self._seen_version: int | None = None

    def update(self, groups: Sequence[Group], checked: Checked) -> list[list[Slot]]:
        """Slots for today's groups, parameters and hints.

        Args:
            groups: The optimizer's parameter groups.
            checked: Checks a slot's overrides (overrides, group, what to call it in errors) and returns them.
        """
        manager = GlobalOptimManager.get_instance()
        if self._seen_version != manager.version or not self._fits(groups):
            version = manager.version
            self.rows = self._look_up(manager, groups, checked)
            self._seen_version = version
        return self.rows

    def invalidate(self) -> None:
        """Makes the next `update` look everything up."""
        self._seen_version = None

    def _fits(self, groups: Sequence[Group]) -> bool:
        return len(self.rows) == len(groups) and all(
            len(row) == len(group["params"])
            and all(slot.parameter is parameter for slot, parameter in zip(row, group["params"], strict=True))
            for row, group in zip(self.rows, groups, strict=True)
        )

    def _look_up(self, manager: GlobalOptimManager, groups: Sequence[Group], checked: Checked) -> list[list[Slot]]:
        places = [(g, i) for g, group in enumerate(groups) for i in range(len(group["params"]))]
        params = [groups[g]["params"][i] for g, i in places]
        carried = {index: self._given_on_parameter(g, i) for index, (g, i) in enumerate(places)}
        rows: list[list[Slot]] = [[] for _ in groups]
        shared: dict[tuple, dict[str, Any]] = {}
        for (g, i), parameter, hints in zip(places, params, manager.hints_for(params, carried), strict=True):
            what = f"override for parameter {i} of group {g}, shape {tuple(parameter.shape)}"
            hints = without_idle_defaults(hints, groups[g])
            overrides = checked(merge(hints), groups[g], what)
            overrides = shared.setdefault(tuple(sorted(overrides.items())), overrides)
            rows[g].append(Slot(parameter, hints, overrides))
        return rows

    def _given_on_parameter(self, g: int, i: int) -> list[Hint]:
        hints = self.rows[g][i].hints if g < len(self.rows) and i < len(self.rows[g]) else []
        return [hint for hint in hints if hint.level is Level.PARAMETER]


@dataclass(frozen=True)
class Place:
    """One parameter of an optimizer with everything that holds for it."""

    name: str
    group: int
    position: int
    parameter: Tensor
    hints: list[Hint]
    overrides: dict[str, Any]
    config: Group
    states: Mapping[str, bool]
    """The states that the configuration needs, and whether each has a sign."""
    bits: int
    """Of each element of state, 8 or 32."""


def without_idle_defaults(hints: list[Hint], group: Group) -> list[Hint]:
    """Without the default for embeddings where the group's state is 32-bit anyway, or its own words are 8."""
    idle = group["optim_bits"] == 32 or group.get("explicit_bits", False)
    return [hint for hint in hints if not (idle and hint.level is Level.EMBEDDING)]


def effective_lr(group: Group, overrides: Mapping[str, Any]) -> float:
    """The rate of a parameter with overrides: its own base rate, moved by the schedule as the group's is.

    ``override_lr * group_lr / base_lr``, where base_lr is the rate that the group was built with; so it is 0 when the
    group's is. ``lr_follows_schedule=False`` keeps the ratio at 1 (a group built with rate 0 has no ratio to follow).
    """
    rate, base = float(group["lr"]), float(group["base_lr"])
    own = overrides.get("lr")
    if own is not None:
        follows = overrides.get("lr_follows_schedule", True) and base != 0
        rate = float(own) * (rate / base if follows else float(rate != 0))
    return rate * overrides.get("lr_scale", 1.0)
