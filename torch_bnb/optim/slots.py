"""The places of an optimizer's parameter groups, and which overrides hold in each."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor
from torch.nn.parameter import is_lazy

from torch_bnb.overrides import OverrideError, registry
from torch_bnb.overrides.hints import Hint, Identity, Level, identities, identity, on_parameter
from torch_bnb.overrides.resolve import merge

Group = Mapping[str, Any]
Merged = Callable[[Sequence[Hint], Group, str], dict[str, Any]]
"""What hints add up to in a group, checked: (hints, group, the parameter's name in errors) to options."""


@dataclass
class Slot:
    """One place in the groups. Refers to no parameter, so that one which a framework replaces is freed at once."""

    identity: Identity
    """Of the parameter that was here when the slot was made."""
    hints: list[Hint]
    """Those in force here."""
    overrides: dict[str, Any] = field(default_factory=dict)
    """What the hints add up to; one object for all slots of the optimizer where they add up to the same."""

    def config(self, group: Group) -> Group:
        """The options in force here, with the effective learning rate as ``lr``."""
        if not self.overrides:
            return group
        return {**group, **self.overrides, "lr": effective_lr(group, self.overrides)}


class SlotTable:
    """All slots of an optimizer, by group and position, looked up again only when something has changed.

    A hint given on a Parameter stays with its place when a framework puts another Parameter there.

    Args:
        rows: For a copied or unpickled optimizer: its slots, with the hints that held in the original. Those that came
            through modules hold here as long as no known module has the parameter.
    """

    def __init__(self, rows: list[list[Slot]] | None = None) -> None:
        self.rows: list[list[Slot]] = rows or []
        self._is_copy = rows is not None
        self._flattened: dict[int, dict[Identity, bool]] = {}
        """By group, the parameters that an engine has flattened, it seems: they left the group for fewer or more
        others, of which some are in no known module. From the identity of each to whether a hint was given on it since
        then."""
        self._known: list[tuple] = []
        self._seen_version: int | None = None
        registry.follow(self)

    def update(self, groups: Sequence[Group], merged: Merged) -> list[list[Slot]]:
        """Slots for today's groups, parameters and hints.

        Args:
            groups: The optimizer's parameter groups.
            merged: Adds a slot's hints up and checks the result.
        """
        if self._seen_version != registry.version() or not self._fits(groups):
            version = registry.version()
            self.rows = self._look_up(groups, merged)
            self._known = _what_counts(groups)
            self._seen_version = version
        return self.rows

    def go_back(self, rows: list[list[Slot]]) -> None:
        """Undoes the last `update`, whose rows before were these; the next `update` looks hints up again."""
        self.rows, self._seen_version = rows, None

    def receive(self, parameter: Tensor, hint: Hint) -> None:
        """Keeps a hint for the place of its parameter, which may be replaced before the next `update`."""
        known = identity(parameter)
        for row in self.rows:
            for slot in row:
                if slot.identity == known:
                    slot.hints = [*slot.hints, hint]
        for flattened in self._flattened.values():
            if known in flattened:
                flattened[known] = any(given.config for given in on_parameter(parameter))

    def _fits(self, groups: Sequence[Group]) -> bool:
        return self._known == _what_counts(groups)

    def _look_up(self, groups: Sequence[Group], merged: Merged) -> list[list[Slot]]:
        places = [(g, i) for g, group in enumerate(groups) for i in range(len(group["params"]))]
        params = [groups[g]["params"][i] for g, i in places]
        refuse_repeated(places, params)
        carried = self._carried(groups)
        self._refuse_lost(groups)
        found = registry.hints_for(params, {index: carried.get(place, []) for index, place in enumerate(places)})
        names = registry.parameter_names() if any(found) else {}
        rows: list[list[Slot]] = [[] for _ in groups]
        shared: dict[tuple, dict[str, Any]] = {}
        for (g, i), parameter, hints in zip(places, params, found, strict=True):
            hints = in_force(hints, groups[g])
            overrides: dict[str, Any] = {}
            if hints:
                name = names.get(id(parameter), f"parameter {i} of group {g}")
                shape = "not known yet" if is_lazy(parameter) else tuple(parameter.shape)
                overrides = merged(hints, groups[g], f"{name}, shape {shape}")
            overrides = shared.setdefault(tuple(sorted(overrides.items())), overrides)
            rows[g].append(Slot(identity(parameter), hints, overrides))
        return rows

    def _carried(self, groups: Sequence[Group]) -> dict[tuple[int, int], list[Hint]]:
        """By group and position, the hints of the last `update` that stay with the place.

        They stay for the parameter that was there, and for one that has replaced it: the optimizer has the old one
        nowhere any more and had the new one nowhere before, and known modules do not hold both. Hints through modules
        stay in a copied optimizer only; elsewhere they are looked up.

        Raises:
            OverrideError: An engine has flattened a group's parameters, some of them with overrides.
        """
        now = {identity(p) for group in groups for p in group["params"]}
        before = {slot.identity for row in self.rows for slot in row}
        known = set(map(identity, registry.known_parameters(before | now))) if before - now else set()
        carried = {}
        for g, (row, group) in enumerate(zip(self.rows, groups, strict=False)):
            arrived = {identity(p) for p in group["params"]} - before
            if len(row) == len(group["params"]) and len(self.rows) <= len(groups):
                for i, (slot, p) in enumerate(zip(row, group["params"], strict=True)):
                    replaced = slot.identity not in now and identity(p) not in before
                    replaced &= not {slot.identity, identity(p)} <= known
                    if slot.identity == identity(p) or replaced:
                        carried[g, i] = [h for h in slot.hints if self._is_copy or h.level is Level.PARAMETER]
            elif arrived - known and (gone := [slot for slot in row if slot.identity not in now]):
                self._flattened.setdefault(g, {}).update((slot.identity, False) for slot in gone)
                if any(slot.overrides or merge(in_force(slot.hints, group)) for slot in gone):
                    raise _lost(g, len(group["params"]))
        return carried

    def _refuse_lost(self, groups: Sequence[Group]) -> None:
        """Raises OverrideError for hints on parameters that an engine has flattened earlier.

        Such a hint was given on the object, or reaches it through a module that still has it. Parameters that this or
        another optimizer holds are not lost.
        """
        if not self._flattened:
            return
        held = {identity(p) for group in groups for p in group["params"]}
        held |= {found for table in registry.followers() if table is not self for found in table.holds()}
        for g, flattened in self._flattened.items():
            lost = {found: hinted for found, hinted in flattened.items() if found not in held}
            trained = [p for p in registry.known_parameters(lost.keys()) if p.requires_grad]
            if g < len(groups) and (
                any(lost.values()) or any(merge(in_force(given, groups[g])) for given in registry.hints_for(trained))
            ):
                raise _lost(g, len(groups[g]["params"]))

    def holds(self) -> Iterator[Identity]:
        """The identities of the parameters that were here at the last `update`."""
        return (slot.identity for row in self.rows for slot in row)


def _lost(group: int, count: int) -> OverrideError:
    return OverrideError(
        f"group {group} held other parameters, some with overrides, and now holds {count} in their place: for which of "
        "these the overrides are meant cannot be told. With an engine that flattens parameters say them by group, see "
        "bnb.param_groups; else by name, see override_named"
    )


@dataclass(frozen=True)
class Place:
    """One parameter of an optimizer, and what it gets."""

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


def walk(groups: Sequence[Group], rows: Sequence[Sequence[Slot]]) -> Iterator[tuple[int, int, int, Tensor, Slot]]:
    """Every place of an optimizer: index among all, group, position in it, the parameter there and its slot."""
    index = 0
    for g, (group, slots) in enumerate(zip(groups, rows, strict=True)):
        for i, (parameter, slot) in enumerate(zip(group["params"], slots, strict=True)):
            yield index, g, i, parameter, slot
            index += 1


def _what_counts(groups: Sequence[Group]) -> list[tuple]:
    """What decides, apart from hints, which overrides hold: `update` compares it."""
    return [(group["optim_bits"], *identities(group["params"])) for group in groups]


def refuse_repeated(places: Sequence[tuple[int, int]], params: Sequence[Tensor]) -> None:
    """Raises ValueError for a parameter that is in two of these places, (group, position) each."""
    seen: dict[int, tuple[int, int]] = {}
    for (g, i), parameter in zip(places, params, strict=True):
        if id(parameter) in seen:
            h, j = seen[id(parameter)]
            raise ValueError(
                f"parameter {i} of group {g}, shape {tuple(parameter.shape)}, is parameter {j} of group {h}: it "
                "appears more than once in the optimizer's groups. Give every parameter once; where you have, a "
                "framework that tells parameters by their address took a model on the meta device"
            )
        seen[id(parameter)] = g, i


def in_force(hints: list[Hint], group: Group) -> list[Hint]:
    """The hints that apply in a group. Two kinds do not.

    The 32-bit default for embeddings, where the group's state is 32-bit anyway or the group was given ``optim_bits`` of
    its own; and, in a group that `param_groups` made, hints from before that: the group's options contain them.
    """
    idle = group["optim_bits"] == 32 or group.get("explicit_bits", False)
    merged = group.get("merged_hints")
    return [
        hint
        for hint in hints
        if not (idle and hint.level is Level.EMBEDDING) and (merged is None or hint.rank[-1] > merged)
    ]


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
