"""The form of bitsandbytes: ``state1`` and ``state2``, in float32 or in 8 bits with their absmax and code maps.

Its own ``state_dict()`` hides the tensors below one more key, for FSDP; older files have them in the open. First states
use the signed map and second ones the unsigned, whatever they hold: RMSprop's and Adagrad's squares are in the signed
map, so they are encoded again. Needs no bitsandbytes.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from torch_bnb import codec
from torch_bnb.checkpoint import checks, portable
from torch_bnb.checkpoint.losses import say_changed, say_lost, say_what_stays
from torch_bnb.checkpoint.portable import OURS, RULES, Coded, Moment, Portable

NAME = "bitsandbytes"
WRAPPER = "__bnb_optimizer_quant_state__"
SCRATCH = {"unorm_vec"}
"""Overwritten by every step."""
DROPPED = {"gnorm_vec": "'gnorm_vec', the history of percentile_clipping"}
THEIRS = ("eps", "betas", "alpha", "t_alpha", "t_beta3")
"""Keys that stand in every group of two states, in use or not."""
UNUSED = {"dampening", "nesterov", "momentum", "centered", "lr_decay", "initial_accumulator_value"}
"""Options that its rules lack, or store and never use; SGD's momentum excepted."""
TENSORWISE = {"max1", "max2", "new_max1", "new_max2"}


@dataclass(frozen=True)
class Layout:
    """Where a rule's states and options are."""

    first: tuple[str, ...]
    """In ``state1``; several are stacked."""
    second: tuple[str, ...] = ()
    """In ``state2``."""
    betas: str | None = "betas"
    """The option that ``betas`` holds, all of it or in its first place."""


ADAM = Layout(("exp_avg",), ("exp_avg_sq",))
LAYOUTS = {
    "adam": ADAM,
    "adamw": ADAM,
    "lamb": ADAM,
    "ademamix": Layout(("exp_avg", "exp_avg_slow"), ("exp_avg_sq",)),
    "sgd": Layout(("momentum_buffer",), betas="momentum"),
    "lion": Layout(("exp_avg",)),
    "rmsprop": Layout(("square_avg",), betas="alpha"),
    "adagrad": Layout(("sum",), betas=None),
}
LARS = (
    "lars: bitsandbytes keeps the momentum of the gradient, torch_bnb that of the gradient times the trust ratio; the "
    "state means nothing to the other. bitsandbytes' LARS is SGD, in 32 bits with max_unorm: take it as sgd"
)


def recognises(state_dict: Mapping[str, Any]) -> bool:
    """Whether a state_dict is in this form."""
    return any("state1" in entry or WRAPPER in entry for entry in state_dict["state"].values())


def rules(state_dict: Mapping[str, Any]) -> list[str]:
    """The rules that it may be of: as far as the number of states and what stands in ``betas`` and ``eps`` tell."""
    groups = state_dict["param_groups"]
    entries = [_unwrapped(entry) for entry in state_dict["state"].values()]
    betas = {_length(group.get("betas")) for group in groups}
    if any("state2" in entry for entry in entries):
        return ["ademamix"] if betas == {3} else ["adam", "adamw", "lamb"]
    if any(_is_set(group.get("eps")) for group in groups):
        return ["rmsprop"] if any(_is_set(_first(group.get("betas"))) for group in groups) else ["adagrad"]
    return ["sgd", "lion", "lars"]


def _length(betas: Any) -> int:
    return len(betas) if isinstance(betas, (tuple, list)) else 0


def _is_set(value: Any) -> bool:
    return isinstance(value, (int, float)) and value != 0


def _first(betas: Any) -> Any:
    return betas[0] if _length(betas) else None


def layout(rule: str) -> Any:
    """Something equal for rules whose files are alike."""
    return LAYOUTS.get(rule)


def _unwrapped(entry: Mapping[str, Any]) -> dict[str, Any]:
    inner = entry.get(WRAPPER, {})
    if not isinstance(inner, Mapping):
        raise ValueError(f"{NAME}: {WRAPPER!r} must hold a dict, got {inner!r:.80}")
    return {**{key: value for key, value in entry.items() if key != WRAPPER}, **inner}


def read(state_dict: Mapping[str, Any], rule: str) -> Portable:
    """Its portable form."""
    if rule == "lars":
        raise ValueError(LARS)
    if (possible := rules(state_dict)) and rule not in possible:
        raise ValueError(f"{NAME}: this is the state of {' or '.join(possible)}, not of {rule}")
    states, lost = {}, []
    for index, wrapped in state_dict["state"].items():
        entry = _unwrapped(wrapped)
        lost += [said for key, said in DROPPED.items() if key in entry]
        states[index] = _read_one(entry, LAYOUTS[rule], f"{NAME}, parameter {index}")
    groups = [_read_group(group, rule, g) for g, group in enumerate(state_dict["param_groups"])]
    read = portable.checked(Portable(rule, groups, states), NAME)
    say_lost(lost, "torch_bnb")
    if rule == "adam":
        _warn_of_decay(groups)
    return read


def _read_one(entry: dict[str, Any], places: Layout, what: str) -> dict[str, Any]:
    if tensorwise := sorted(TENSORWISE & entry.keys()):
        raise ValueError(f"{what}: {tensorwise} belong to old versions' 8-bit state without blocks; it has no reader")
    rest = {key: value for key, value in entry.items() if key not in SCRATCH and key not in DROPPED}
    found: dict[str, Any] = {}
    if "step" in rest:
        found["step"] = checks.step_count(rest.pop("step"), f"{what}: 'step'")
    for number, names in (("1", places.first), ("2", places.second)):
        keys = [key for key in (f"state{number}", f"absmax{number}", f"qmap{number}") if key in rest]
        if names and keys:
            parts = {key[:-1]: rest.pop(key) for key in keys}
            moments = _moments(parts, len(names), number == "1", f"{what}: 'state{number}'")
            found |= dict(zip(names, moments, strict=True))
    if rest:
        raise ValueError(f"{what}: unknown state {sorted(rest, key=str)}")
    return found


def _moments(parts: dict[str, Any], count: int, signed: bool, what: str) -> list[Moment]:
    """The moments in one state, apart if they are stacked."""
    state = parts.get("state")
    if not isinstance(state, Tensor):
        raise ValueError(f"{what} must be a tensor, got {state!r:.80}")
    if count > 1 and (state.dim() == 0 or len(state) != count):
        raise ValueError(f"{what} must hold {count} moments in its first dimension, got shape {tuple(state.shape)}")
    if state.dtype != torch.uint8:
        values = checks.tensor(state, what)
        return list(values) if count > 1 else [values]
    absmax, qmap = parts.get("absmax"), parts.get("qmap")
    if absmax is None or qmap is None:
        raise ValueError(f"{what} is in 8 bits and lacks its {'absmax' if absmax is None else 'qmap'}")
    if count == 1:
        return [portable.coded(state, absmax, qmap, signed, None, what)]
    if not (isinstance(absmax, Tensor) and absmax.dim() == 2 and len(absmax) == count):
        raise ValueError(f"{what}: expected {count} rows of absmax")
    return [portable.coded(state[i], absmax[i], qmap, signed, None, what) for i in range(count)]


def _read_group(group: Mapping[str, Any], rule: str, index: int) -> dict[str, Any]:
    options, place = RULES[rule].options, LAYOUTS[rule].betas
    rest = portable.without(group, THEIRS)
    read = {key: group[key] for key in THEIRS if key in options and key in group}
    if place not in (None, "betas"):
        betas = group.get("betas")
        if not _length(betas):
            raise ValueError(f"{NAME}, group {index}: betas={betas!r}: expected two numbers, {place} first")
        # What stands second (dampening, RMSprop's momentum) is stored and never used there.
        unused = {"sgd": {"dampening": 0.0, "nesterov": False}, "rmsprop": {"momentum": 0.0, "centered": False}}
        read = {**read, place: betas[0], **unused[rule]}
    if rule == "adagrad":
        read |= {"lr_decay": 0.0, "initial_accumulator_value": 0.0}
    return {**rest, **read}


def _warn_of_decay(groups: list[dict[str, Any]]) -> None:
    if any(group.get("weight_decay") for group in groups):
        say_changed("bitsandbytes' Adam takes weight decay apart from the gradient: AdamW goes on as it did")


def write(state: Portable, bits: int | None) -> dict[str, Any]:
    """The state_dict, as its own ``state_dict()`` wraps it."""
    if state.rule == "lars":
        raise ValueError(LARS)
    places, known = LAYOUTS[state.rule], RULES[state.rule]
    checks.need_options(state.groups, known.options.keys() - UNUSED, NAME)
    if state.rule == "sgd" and not all(group.get("momentum") for group in state.groups):
        raise ValueError(f"{NAME} has no SGD without momentum")
    for index, entry in state.states.items():
        if homeless := entry.keys() & known.states.keys() - {*places.first, *places.second}:
            raise ValueError(f"{NAME}' {state.rule} has no place for {sorted(homeless)} of parameter {index}")
    kept = known.options.keys() - UNUSED
    say_what_stays(state, kept | ({"momentum"} if state.rule == "sgd" else set()), f"{NAME}' file")
    if state.rule == "adam":
        _warn_of_decay(state.groups)
    smallest = {index: group.get("min_8bit_size") for group in state.groups for index in group["params"]}
    result = {}
    for index, entry in state.states.items():
        inner: dict[str, Any] = {}
        minimum = portable.MIN_8BIT_SIZE if smallest[index] is None else smallest[index]
        wanted = bits
        if bits is None and any(isinstance(moment, Coded) for moment in entry.values()):
            wanted, minimum = 8, 0  # all of them: what the first state is decides for both
        for number, names in (("1", places.first), ("2", places.second)):
            moments = [(entry[name], known.states[name]) for name in names if name in entry]
            if moments:
                stored = _state(moments, number == "1", wanted, minimum)
                inner |= {f"{key}{number}": value for key, value in stored.items()}
        if inner:
            inner["unorm_vec"] = torch.zeros(1)  # wanted by whoever is built with max_unorm, as LAMB is
            result[index] = {"step": entry.get("step", 1), WRAPPER: inner}  # step 1 would fill SGD's buffer anew
    return {"state": result, "param_groups": [_write_group(group, state.rule) for group in state.groups]}


def _state(moments: list[tuple[Moment, bool]], signed: bool, bits: int | None, minimum: int) -> dict[str, Tensor]:
    """``state``, and in 8 bits its ``absmax`` and ``qmap``."""
    stored = []
    for moment, has_sign in moments:
        own = portable.in_bits(moment, signed, bits, minimum)
        if isinstance(own, Coded) and signed and not has_sign:
            # A square in the signed map: as for the unsigned one, a number above zero does not become zero.
            values = portable.values(moment)
            own.codes[(own.codes == codec.ZERO_CODE[True]) & (values > 0)] += 1
        stored.append(own)
    one = len(stored) == 1
    if not isinstance(stored[0], Coded):
        return {"state": stored[0] if one else torch.stack(stored)}
    codes, absmax = [moment.codes for moment in stored], [moment.absmax for moment in stored]
    qmap = codec.create_dynamic_map(signed).to(codes[0].device)
    return {
        "state": codes[0] if one else torch.stack(codes),
        "absmax": absmax[0] if one else torch.stack(absmax),
        "qmap": qmap,
    }


def _write_group(group: dict[str, Any], rule: str) -> dict[str, Any]:
    options, place = RULES[rule].options, LAYOUTS[rule].betas
    rest = portable.without(group, {*OURS, *options, "params"})
    written = {key: group[key] for key in ("lr", "eps", "weight_decay", "betas") if key in options}
    if place not in (None, "betas"):
        written["betas"] = (group[place], 0.0)
    elif place is None:
        written["betas"] = (0.0, 0.0)
    if LAYOUTS[rule].second:
        written |= {"alpha": group.get("alpha", 0.0), "t_alpha": group.get("t_alpha"), "t_beta3": group.get("t_beta3")}
    return {**rest, "eps": 0.0, **written, "params": list(group["params"])}
