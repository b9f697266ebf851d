"""This package's own form: ``exp_avg`` in float32, or ``exp_avg_codes`` with ``exp_avg_absmax``."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from torch_bnb.checkpoint import checks, portable
from torch_bnb.checkpoint.portable import RULES, Coded, Moment, Portable
from torch_bnb.optim.state import HISTORY, Form, absmax_key, absmax_shape, codes_key, decode, reshaped

NAME = "torch_bnb"


def recognises(state_dict: Mapping[str, Any]) -> bool:
    """Whether a state_dict is in this form."""
    return any("optim_bits" in group for group in state_dict["param_groups"]) or any(
        str(key).endswith("_codes") for entry in state_dict["state"].values() for key in entry
    )


def rules(state_dict: Mapping[str, Any]) -> list[str]:
    """The rules that it may be of."""
    keys = {key for entry in state_dict["state"].values() for key in entry} - {"step", HISTORY}
    names = {str(key).removesuffix("_codes").removesuffix("_absmax") for key in keys}
    return portable.matching_rules(names, state_dict["param_groups"])


def layout(rule: str) -> Any:
    """Something equal for rules whose files are alike."""
    known = RULES[rule]
    return tuple(known.states), tuple(known.options)


def read(state_dict: Mapping[str, Any], rule: str) -> Portable:
    """Its portable form."""
    entries = state_dict["state"].items()
    states = {index: _read_one(entry, rule, f"{NAME}, parameter {index}") for index, entry in entries}
    groups = [portable.without(group, ()) for group in state_dict["param_groups"]]
    return portable.checked(Portable(rule, groups, states), NAME)


def _read_one(entry: Mapping[str, Any], rule: str, what: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    rest = dict(entry)
    if "step" in rest:
        found["step"] = checks.step_count(rest.pop("step"), f"{what}: 'step'")
    if HISTORY in rest:
        found[HISTORY] = checks.tensor(rest.pop(HISTORY), f"{what}: {HISTORY!r}")
    for name, signed in RULES[rule].states.items():
        codes, absmax = codes_key(name), absmax_key(name)
        if (codes in rest) != (absmax in rest):
            raise ValueError(f"{what}: {codes!r} and {absmax!r} belong together, there is only one of them")
        if codes in rest:
            found[name] = _coded(rest.pop(codes), rest.pop(absmax), signed, f"{what}: {name!r}")
        elif (value := rest.pop(name, None)) is not None:
            found[name] = checks.tensor(value, f"{what}: {name!r}")
    if rest:
        raise ValueError(f"{what}: unknown state {sorted(rest, key=str)} for {rule}")
    return found


def _coded(codes: Any, absmax: Any, signed: bool, what: str) -> Moment:
    """A moment; in float32 where its blocks are those of rows that are not whole blocks, which nobody else has."""
    if isinstance(absmax, Tensor) and absmax.dim() == 2 and isinstance(codes, Tensor) and codes.dim() > 0:
        codes, absmax = (
            checks.tensor(codes, f"{what}: the codes", torch.uint8),
            checks.tensor(absmax, f"{what}: the absmax"),
        )
        if absmax.shape != absmax_shape(codes.shape, Form.ROWS):
            raise ValueError(f"{what}: absmax of shape {tuple(absmax.shape)} do not fit codes of {tuple(codes.shape)}")
        flat = reshaped(absmax, codes, Form.ROWS, Form.FLAT)
        if flat is None:
            return decode(codes, absmax, signed)
        absmax = flat
    return portable.coded(codes, absmax, None, signed, None, what)


def write(state: Portable, bits: int | None) -> dict[str, Any]:
    """The state_dict; `bits` None keeps each moment's."""
    known, result = RULES[state.rule], {}
    every_option = set().union(*(rule.options for rule in RULES.values())) - known.options.keys()
    in_8bits = False
    smallest = {index: group.get("min_8bit_size") for group in state.groups for index in group["params"]}
    for index, entry in state.states.items():
        written = {key: entry[key] for key in ("step", HISTORY) if key in entry}
        for name, signed in known.states.items():
            if name not in entry:
                continue
            moment = entry[name]
            if bits == 32 or not (isinstance(moment, Coded) and moment.is_whole(signed)):
                minimum = portable.MIN_8BIT_SIZE if smallest[index] is None else smallest[index]
                moment = portable.in_bits(moment, signed, bits, minimum)
            if isinstance(moment, Coded):
                written[codes_key(name)], written[absmax_key(name)] = moment.codes, moment.absmax
                in_8bits = True
            else:
                written[name] = moment
        result[index] = written
    groups = [
        {"optim_bits": 8 if in_8bits else 32, **group, **({} if bits is None else {"optim_bits": bits})}
        for group in (portable.without(group, every_option) for group in state.groups)
    ]
    return {"state": result, "param_groups": groups}
