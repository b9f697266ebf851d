"""A hint, and where it lives: on the Parameter or the Module that it was given to.

The manager refers to no tensor: a hint dies with its owner, a new tensor at a freed address never meets it, and no weak
reference stands in the way of ``module.to()``, which refuses to swap a tensor that has one. Plain data only, so that
owners pickle.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from torch import Tensor, nn

_ON_PARAMETER = "_torch_bnb_hint"
_ON_MODULE = "_torch_bnb_hints"


class Level(IntEnum):
    """Who speaks, from the weakest to the strongest."""

    MODULE = 0
    PATTERN = 1
    PARAMETER = 2


@dataclass(frozen=True)
class Hint:
    """One wish for one parameter."""

    config: Mapping[str, Any]
    level: Level
    rank: tuple[int, ...]
    """Among hints of one level the greater rank wins: nearness of the module, then the order of writing."""
    source: str
    """Where it comes from, for people."""
    epoch: int
    """`GlobalOptimManager.initialize` starts a new one and forgets the hints of those before."""


@dataclass(frozen=True)
class ModuleHint:
    """One wish for the parameters that `key` names below a module, whichever objects they are by then."""

    key: str
    config: Mapping[str, Any]
    order: int
    source: str
    epoch: int


def on_parameter(parameter: Tensor) -> Hint | None:
    """The hint given on this very tensor."""
    stored = getattr(parameter, _ON_PARAMETER, None)
    return (
        Hint(stored["config"], Level.PARAMETER, stored["rank"], "override_config", stored["epoch"]) if stored else None
    )


def set_on_parameter(parameter: Tensor, config: Mapping[str, Any], order: int, epoch: int) -> None:
    """Adds to what was said of this tensor before; of one key the later value holds."""
    stored = getattr(parameter, _ON_PARAMETER, None)
    earlier = stored["config"] if stored and stored["epoch"] >= epoch else {}
    setattr(parameter, _ON_PARAMETER, {"config": {**earlier, **config}, "rank": (order,), "epoch": epoch})


def on_module(module: nn.Module) -> list[ModuleHint]:
    """The hints given on this very module."""
    return [ModuleHint(**stored) for stored in module.__dict__.get(_ON_MODULE, ())]


def add_on_module(module: nn.Module, hint: ModuleHint) -> None:
    """Appends one."""
    module.__dict__.setdefault(_ON_MODULE, []).append({**vars(hint), "config": dict(hint.config)})
