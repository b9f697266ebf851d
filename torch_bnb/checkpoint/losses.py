"""What a conversion leaves behind or changes: said as warnings, never in silence."""

import warnings
from collections.abc import Iterable, Mapping
from typing import Any

from torch_bnb.checkpoint.portable import Portable
from torch_bnb.optim.state import HISTORY

NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "maximize": (False,),
    "percentile_clipping": (100,),
    "max_unorm": (0.0,),
    "skip_zeros": (False,),
    "state_rounding": ("nearest", "auto"),
    "weight_rounding": ("nearest",),
    "nesterov": (False,),
    "dampening": (0.0,),
    "momentum": (0.0,),
    "centered": (False,),
    "lr_decay": (0.0,),
    "initial_accumulator_value": (0.0,),
}
"""Options that a library may lack, with the values at which nothing is lost."""


def say_lost(what: Iterable[str], target: str) -> None:
    """Warns that a target has no place for something."""
    for item in dict.fromkeys(what):
        warnings.warn(f"{target} has no place for {item}; it stays behind", stacklevel=2)


def say_changed(what: str) -> None:
    """Warns that a training will not go on quite as it did."""
    warnings.warn(what, stacklevel=2)


def say_what_stays(state: Portable, kept: Iterable[str], target: str) -> None:
    """Warns of the options that make a difference in some group and of the history, which only this package keeps.

    Args:
        state: To be written in the target's form.
        kept: The options that have a place there.
        target: What to call it.
    """
    kept = set(kept)
    history = any(HISTORY in entry for entry in state.states.values())
    options = [
        f"{key}={group[key]!r}"
        for group in state.groups
        for key, neutral in NEUTRAL.items()
        if key not in kept and group.get(key, neutral[0]) not in neutral
    ]
    say_lost([*([f"{HISTORY!r}, the history of percentile_clipping"] if history else []), *options], target)
