"""State out of a checkpoint with every tensor's own dtype: torch's loader would cast it to the parameter's."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from torch_bnb.checkpoint import checks, portable
from torch_bnb.optim import sharding
from torch_bnb.optim import state as storage
from torch_bnb.optim.host import Home
from torch_bnb.optim.state import HISTORY, HISTORY_LENGTH, Form, State, absmax_key, codes_key, form_of

FORMS_8BIT = (Form.FLAT, Form.WHOLE, Form.ROWS)


def restore(
    saved: Mapping[str, Any],
    params: Sequence[Tensor],
    homes: Sequence[Home],
    states: Mapping[str, bool],
    required: Sequence[set[str]],
    held: Mapping[Tensor, State],
    who: str,
) -> dict[Tensor, State]:
    """Every parameter's state, where it belongs, shared with nobody.

    Args:
        saved: A ``state_dict()`` that passed `checks.check`.
        params: The loading optimizer's parameters, in the order of its groups.
        homes: Where their state belongs.
        states: The state names that its rule knows, and whether each has a sign.
        required: By parameter, the states that its configuration cannot do without.
        held: What the loading optimizer has. torch's ``set_optimizer_state_dict`` has it make state first, and puts a
            full checkpoint's entries beside that: of a state that comes in both forms, the checkpoint's is the one that
            the optimizer does not hold.
        who: Its class, for errors.

    Raises:
        ValueError: An entry is unknown, lacks its partner, is no tensor or has the wrong type or shape.
    """
    indices = [index for group in saved["param_groups"] for index in group["params"]]
    return {
        parameter: _restore_one(
            _of_the_checkpoint(saved["state"][index], states, held.get(parameter, {}), f"{who}, parameter {index}"),
            states,
            needed,
            parameter,
            home,
            f"{who}, parameter {index}",
        )
        for index, parameter, home, needed in zip(indices, params, homes, required, strict=True)
        if saved["state"].get(index)
    }


def _of_the_checkpoint(saved: Mapping[str, Any], states: Mapping[str, bool], held: State, what: str) -> dict[str, Any]:
    """An entry without states that are the loading optimizer's own."""
    entry = dict(saved)
    for name in states:
        forms = (name,), (codes_key(name), absmax_key(name))
        if all(key in entry for keys in forms for key in keys):
            own = [keys for keys in forms if all(key in held for key in keys)]
            if len(own) != 1:
                raise ValueError(f"{what}: there are {name!r} and {codes_key(name)!r}; expected one of them")
            for key in own[0]:
                del entry[key]
    return entry


def _restore_one(
    saved: Mapping[str, Any],
    states: Mapping[str, bool],
    required: set[str],
    parameter: Tensor,
    home: Home,
    what: str,
) -> State:
    known = keys_of(states)
    if unknown := saved.keys() - known:
        other = f"; it is of another optimizer ({', '.join(rules)})" if (rules := _rules_with(saved)) else ""
        raise ValueError(f"{what}: unknown state {sorted(unknown, key=str)}; expected some of {sorted(known)}{other}")
    result: State = {}
    if "step" in saved:
        result["step"] = checks.step_count(saved["step"], f"{what}: 'step'")
    if HISTORY in saved:
        history = _tensor(saved[HISTORY], torch.float32, [(HISTORY_LENGTH,)], f"{what}: {HISTORY!r}")
        result[HISTORY] = Home(parameter.device).copy(history)
    found = set()
    for name, signed in states.items():
        codes, absmax = codes_key(name), absmax_key(name)
        if (codes in saved) != (absmax in saved):
            raise ValueError(f"{what}: {codes!r} and {absmax!r} belong together, the checkpoint has only one of them")
        kept: State = {}
        shape = tuple(parameter.shape)
        if codes in saved:
            kept[codes] = _tensor(saved[codes], torch.uint8, [shape], f"{what}: {codes!r}")
            forms = dict.fromkeys(storage.absmax_shape(shape or (1,), form) for form in FORMS_8BIT)
            kept[absmax] = _tensor(saved[absmax], torch.float32, list(forms), f"{what}: {absmax!r}")
        elif saved.get(name) is not None:
            kept[name] = _tensor(saved[name], torch.float32, [shape], f"{what}: {name!r}")
        if kept:
            found.add(name)
            result.update(_placed(name, kept, signed, parameter, home, what))
    checks.need_step(result, found & required, what)
    if result and not found >= required:
        missing = sorted(required - found)
        raise ValueError(f"{what}: the checkpoint lacks {', '.join(map(repr, missing))}; it is of another rule")
    return result


def _rules_with(saved: Mapping[str, Any]) -> list[str]:
    """The rules that have all the states in an entry."""
    return [name for name, rule in portable.RULES.items() if saved.keys() <= keys_of(rule.states)]


def keys_of(states: Mapping[str, bool]) -> set[str]:
    """What an entry may hold, in whatever form states are kept."""
    return {"step", HISTORY, *states, *map(codes_key, states), *map(absmax_key, states)}


def _placed(name: str, kept: State, signed: bool, parameter: Tensor, home: Home, what: str) -> State:
    """One state's tensors, laid out as the parameter is."""
    sharded = {key: value for key, value in kept.items() if sharding.is_sharded(value)}
    if not sharding.is_sharded(parameter):
        if sharded:
            raise ValueError(
                f"{what}: {next(iter(sharded))!r} is sharded (a DTensor) and the parameter is not; "
                "ask for full_state_dict=True when it is gathered"
            )
        return {key: home.copy(value) for key, value in kept.items()}
    if codes_key(name) in sharded and form_of(kept, name) is not Form.ROWS:  # a loader has sharded what was whole
        kept = {key: sharding.whole(value) for key, value in kept.items()}
        sharded = {}
    if not sharded:
        parts = storage.part(name, kept, signed, parameter)
        return {key: sharding.wrap(home.copy(sharding.local(v)), parameter, v.shape) for key, v in parts.items()}
    layout = sharding.layout_of(parameter)
    for key, value in kept.items():
        theirs = sharding.layout_of(value) if key in sharded else "not sharded"
        if theirs != layout:
            raise ValueError(f"{what}: {key!r} must be laid out as the parameter is, {layout}, it is {theirs}")
    return {key: sharding.wrap(home.copy(sharding.local(v)), parameter, v.shape) for key, v in kept.items()}


def _tensor(value: Any, dtype: torch.dtype, shapes: Sequence[tuple[int, ...]], what: str) -> Tensor:
    """A tensor of the dtype and one of the shapes. Only what is here of it is looked at: sharded ones pass."""
    if isinstance(value, Tensor) and tuple(value.shape) not in shapes:
        allowed = " or ".join(map(str, shapes))
        raise ValueError(f"{what} must have shape {allowed}, got {tuple(value.shape)}")
    wanted = torch.uint8 if dtype is torch.uint8 else None
    if isinstance(value, Tensor) and sharding.is_sharded(value):
        return sharding.wrap(checks.tensor(sharding.local(value), what, wanted), value)
    return checks.tensor(value, what, wanted)
