"""A state_dict taken into an optimizer: all of it, or nothing. What entries must look like is checkpoint's affair."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from torch_bnb.checkpoint import checks
from torch_bnb.checkpoint.exchange import as_ours
from torch_bnb.checkpoint.restore import restore
from torch_bnb.optim import options
from torch_bnb.optim import state as storage
from torch_bnb.optim.host import home_of
from torch_bnb.optim.state import State
from torch_bnb.overrides import spec

if TYPE_CHECKING:
    from torch_bnb.optim.base import BlockwiseOptimizer


def load(optimizer: "BlockwiseOptimizer", state_dict: dict[str, Any], torchs: Callable[[dict[str, Any]], None]) -> None:
    """Loads a state_dict by way of torch's own method.

    torch would cast every tensor of the state to its parameter's dtype, so the state goes past it: taken out after the
    user's own pre-hooks have run, put in before their post-hooks do.

    Args:
        optimizer: Whatever goes wrong, it is then as it was.
        state_dict: In this package's form or one that is converted to it.
        torchs: ``Optimizer.load_state_dict``, bound.
    """
    who = type(optimizer).__name__
    loaded: dict[Tensor, State] = {}

    def take(_: torch.optim.Optimizer, incoming: dict[str, Any]) -> dict[str, Any]:
        places = optimizer.configurations()  # a hint that cannot be is an error before anything changes
        checks.check(incoming, who)
        theirs, own = _sizes(incoming["param_groups"]), _sizes(optimizer.param_groups)
        if theirs != own:
            raise ValueError(f"{who}: the checkpoint's groups hold {theirs} parameters, this optimizer's {own}")
        incoming = {**incoming, **as_ours(incoming, optimizer.rule)}
        params = [place.parameter for place in places]
        needed = [set(place.states) - optimizer.optional for place in places]
        homes = [home_of(place.config, place.parameter) for place in places]
        loaded.update(restore(incoming, params, homes, optimizer.states, needed, optimizer.state, who))
        return {**incoming, "state": {}, "param_groups": _merged_groups(optimizer, incoming["param_groups"])}

    def put(_: torch.optim.Optimizer) -> None:
        optimizer.state.update(loaded)
        _restore_precision(optimizer)

    before = optimizer.state, optimizer.param_groups
    handles = [
        optimizer.register_load_state_dict_pre_hook(take),
        optimizer.register_load_state_dict_post_hook(put, prepend=True),
    ]
    try:
        torchs(state_dict)
    except BaseException:
        optimizer.state, optimizer.param_groups = before
        raise
    finally:
        for handle in handles:
            handle.remove()


def _sizes(groups: list[dict[str, Any]]) -> list[int]:
    return [len(group["params"]) for group in groups]


def _merged_groups(optimizer: "BlockwiseOptimizer", saved: list[dict[str, Any]]) -> list[dict[str, Any]]:
    merged = []
    for index, (own, group) in enumerate(zip(optimizer.param_groups, saved, strict=True)):
        what = f"{type(optimizer).__name__}, group {index} of the checkpoint"
        kept = {key: own[key] for key in options.OF_THE_PROGRAM if key in own}
        theirs = {key: value for key, value in group.items() if key not in options.ABOUT_GROUP}
        checked = options.check(theirs, optimizer.options, what)
        try:
            base_lr = spec.RATE.parse("base_lr", checked.get("base_lr", _built_with(checked, own)))
        except ValueError as error:
            raise ValueError(f"{what}: {error}") from None
        merged.append({**checked, "base_lr": float(base_lr), **kept})
    return merged


def _built_with(saved: dict[str, Any], own: dict[str, Any]) -> Any:
    """The rate that another library's group was built with, where a scheduler has noted it; else this optimizer's own.

    OneCycleLR, which leaves ``max_lr`` too, and CyclicLR note rates of their own. Where this optimizer's group has the
    same note, its schedule is the same, and what it was built with counts.
    """
    noted = saved.get("initial_lr", own["base_lr"])
    return own["base_lr"] if "max_lr" in saved or noted == own.get("initial_lr") else noted


def _restore_precision(optimizer: "BlockwiseOptimizer") -> None:
    """Decodes 8-bit state that belongs in 32 bits. The other way loses and waits for the step: hints may follow."""
    for place in optimizer.configurations():
        state = optimizer.state.get(place.parameter, {})
        kept = {name: signed for name, signed in optimizer.states.items() if storage.has(state, name)}
        if kept and place.bits == 32:
            storage.prepare(state, kept, place.parameter, place.config)
