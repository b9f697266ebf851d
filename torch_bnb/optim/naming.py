"""What the parameters of groups are called: ``param_names`` stay true when parameters come, go or are exchanged."""

from collections.abc import Sequence

from torch_bnb.optim.slots import Group, Slot
from torch_bnb.overrides import registry


def renew_names(groups: Sequence[Group], before: Sequence[Sequence[Slot]], now: Sequence[Sequence[Slot]]) -> None:
    """Gives names to parameters that have come into groups whose parameters have names.

    A parameter that takes another's place in a group of as many (as shards take those of whole ones) takes its name
    over, unless a registered model has another name for it.

    Args:
        groups: As they are now.
        before: Their slots when the names were right.
        now: Their slots now.
    """
    known: dict[int, str] | None = None
    for group, old, new in zip(groups, before, now, strict=False):
        given, there = group.get("param_names"), [slot.identity for slot in old]
        if given is None or there == [slot.identity for slot in new]:
            continue
        if len(given) == len(new) != len(old):  # somebody has changed the names as well
            continue
        if known is None:
            known = registry.parameter_names()
        kept = dict(zip(there, given, strict=True)) if len(given) == len(old) else {}
        in_place = given if len(given) == len(new) else [None] * len(new)
        group["param_names"] = [
            kept.get(slot.identity) or _name(known.get(id(parameter)), place, i)
            for i, (slot, parameter, place) in enumerate(zip(new, group["params"], in_place, strict=True))
        ]


def _name(known: str | None, in_place: str | None, position: int) -> str:
    if known is None or (in_place is not None and (known.endswith(in_place) or in_place.endswith(known))):
        return in_place or f"parameter {position}"
    return known
