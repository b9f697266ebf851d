"""The form of ``torch.optim``: float32 moments under the same names, ``step`` in a tensor, groups with every option."""

from collections.abc import Mapping
from typing import Any

import torch

from torch_bnb.checkpoint import portable
from torch_bnb.checkpoint.losses import say_changed, say_what_stays
from torch_bnb.checkpoint.portable import OURS, RULES, Portable

NAME = "torch.optim"

CLASSES = {
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "sgd": torch.optim.SGD,
    "rmsprop": torch.optim.RMSprop,
    "adagrad": torch.optim.Adagrad,
}
EXECUTION = {"foreach", "fused", "capturable"}
"""How torch's step runs: not the checkpoint's to say, in either direction."""
WITHOUT_STEP = ("sgd",)


def defaults(rule: str) -> dict[str, Any]:
    """Every option of torch's optimizer in the installed version, with its default."""
    return dict(CLASSES[rule]([torch.zeros(1)]).defaults)


def recognises(state_dict: Mapping[str, Any]) -> bool:
    """Whether a state_dict is in this form: a rule of torch's, by its options or its states."""
    return any(rule in CLASSES for rule in rules(state_dict))


def rules(state_dict: Mapping[str, Any]) -> list[str]:
    """The rules that it may be of."""
    names = {key for entry in state_dict["state"].values() for key in entry} - {"step", "max_exp_avg_sq"}
    found = [rule for rule in portable.matching_rules(names, state_dict["param_groups"]) if rule in CLASSES]
    decoupled = [group.get("decoupled_weight_decay") for group in state_dict["param_groups"]]
    for name, is_decoupled in (("adamw", True), ("adam", False)):
        if name in found and decoupled and all(said is is_decoupled for said in decoupled):
            return [name]
    return found


def layout(rule: str) -> Any:
    """Something equal for rules whose files are alike."""
    return rule


def read(state_dict: Mapping[str, Any], rule: str) -> Portable:
    """Its portable form. The rule may be any with the same states."""
    entries = state_dict["state"].items()
    states = {index: portable.under_torchs_names(entry, rule, f"{NAME}, parameter {index}") for index, entry in entries}
    if rule in WITHOUT_STEP:  # a state tells that there was one
        states = {index: {"step": 1, **entry} if entry else entry for index, entry in states.items()}
    theirs = {key for name in CLASSES for key in defaults(name)}
    dropped = (theirs - RULES[rule].options.keys() - {"maximize"}) | EXECUTION
    groups = [portable.without(group, dropped) for group in state_dict["param_groups"]]
    result = portable.checked(Portable(rule, groups, states), NAME)
    decays = [
        theirs.get("decoupled_weight_decay")
        for group, theirs in zip(result.groups, state_dict["param_groups"], strict=True)
        if group.get("weight_decay")
    ]
    for own, decoupled, other in (("adam", True, "AdamW"), ("adamw", False, "Adam")):
        if rule == own and any(said is decoupled for said in decays):
            how = "apart from" if decoupled else "as a part of"
            say_changed(f"the weights decayed {how} the gradient: {other} goes on as it did")
    return result


def write(state: Portable, bits: int | None) -> dict[str, Any]:
    """The state_dict, always in 32 bits."""
    if bits == 8:
        raise ValueError(f"{NAME} keeps 32-bit state: optim_bits=8 is for the other targets")
    own = defaults(state.rule)
    say_what_stays(state, own, NAME)
    result = {}
    for index, entry in state.states.items():
        written = {name: portable.values(entry[name]) for name in RULES[state.rule].states if name in entry}
        if written and state.rule not in WITHOUT_STEP:
            written = {"step": torch.tensor(float(entry.get("step", 0))), **written}
        if written:
            result[index] = written
    groups = []
    for group in state.groups:
        options = {key: default if key in EXECUTION else group.get(key, default) for key, default in own.items()}
        rest = portable.without(group, {*OURS, *own, "params"})
        groups.append({**options, **rest, "params": list(group["params"])})
    return {"state": result, "param_groups": groups}
