"""From one library's optimizer state to another's. Knows which forms there are, and nothing of what is in them."""

from collections.abc import Mapping
from dataclasses import replace
from types import ModuleType
from typing import Any

from torch import Tensor

from torch_bnb.checkpoint import checks, portable
from torch_bnb.checkpoint.formats import SUPPORTED, TARGETS, bitsandbytes, native, torch_optim, torchao
from torch_bnb.checkpoint.portable import Coded, Portable


def recognise(state_dict: Mapping[str, Any]) -> ModuleType | None:
    """The form that a well-formed state_dict is in, None for one that is nobody's."""
    candidates = (native, bitsandbytes, torchao, torch_optim)
    return next((form for form in candidates if form.recognises(state_dict)), None)


def convert(
    state_dict: Mapping[str, Any], to: str, rule: str | None = None, optim_bits: int | None = None
) -> dict[str, Any]:
    """An optimizer's state in the form of another library.

    Codes and absmax are copied bit for bit where both sides have the same 8-bit code (256 elements a block and the same
    256 numbers: torch_bnb, today's bitsandbytes and torchao). Everything else is decoded with what the file says and,
    for a target in 8 bits, encoded again.

    Args:
        state_dict: Of torch_bnb, ``torch.optim``, bitsandbytes or torchao. It is left as it is.
        to: ``"torch_bnb"``, ``"torch"``, ``"bitsandbytes"`` or ``"torchao"``.
        rule: ``"adamw"``, ``"sgd"``, ...: the optimizer that the state is of. None: worked out; an error where it
            matters and the state fits several.
        optim_bits: 8 or 32 bits per element; None: as they are, except that torch has 32 only and torchao 8.

    Returns:
        A new state_dict, sharing no memory, for ``load_state_dict`` of the target's optimizer of that rule.

    Raises:
        ValueError: The state is damaged or nobody's, does not fit the rule, or the target has no such rule or no place
            for one of its moments. What else has no place there (options, the history of percentile_clipping) is a
            warning.
        ModuleNotFoundError: `to` is ``"torchao"`` and it is not installed.

    Example:
        >>> import torch, torch_bnb as bnb
        >>> weight = torch.randn(64, 64, requires_grad=True)
        >>> optimizer = bnb.optim.AdamW([weight], optim_bits=8)
        >>> weight.square().sum().backward()
        >>> optimizer.step()
        >>> theirs = torch.optim.AdamW([weight])
        >>> theirs.load_state_dict(bnb.checkpoint.convert(optimizer.state_dict(), to="torch", rule="adamw"))
        >>> theirs.state[weight]["exp_avg"].dtype
        torch.float32
    """
    if to not in TARGETS:
        raise ValueError(f"to={to!r}: expected one of {', '.join(TARGETS)}")
    if optim_bits not in (None, 8, 32):
        raise ValueError(f"optim_bits={optim_bits!r}: expected 8, 32 or None")
    checks.check(state_dict, "convert")
    source = recognise(state_dict)
    if source is None:
        raise ValueError(f"convert: this is no state of {', '.join(TARGETS)}: {_keys(state_dict)}")
    rule = _chosen(state_dict, source, to, rule)
    return TARGETS[to].write(_copied(source.read(state_dict, rule)), optim_bits)


def as_ours(state_dict: Mapping[str, Any], rule: str) -> Mapping[str, Any]:
    """A well-formed state_dict in this package's form, for an optimizer of `rule` to load.

    What is in this form already, or in no known one, passes. A moment that cannot be copied code for code comes in
    float32: encoding it again is left to the step, when it is known how many bits it gets.

    Raises:
        ValueError: It is another library's, and does not fit the rule.
    """
    source = recognise(state_dict)
    if source in (None, native):
        return state_dict
    state = source.read(state_dict, rule)
    signs = portable.RULES[rule].states
    for entry in state.states.values():
        for name, moment in entry.items():
            if isinstance(moment, Coded) and not moment.is_ours(signs[name]):
                entry[name] = moment.decode()
    return native.write(state, None)


def _chosen(state_dict: Mapping[str, Any], source: ModuleType, to: str, rule: str | None) -> str:
    """The rule to convert by: the user's, the only one it may be, or any where it makes no difference."""
    supported = SUPPORTED[to]
    if rule is not None:
        rule = rule.lower()
        if rule not in portable.RULES:
            raise ValueError(f"rule={rule!r}: expected one of {', '.join(portable.RULES)}")
        if rule not in supported:
            raise ValueError(f"{TARGETS[to].NAME} has no {rule}, only {', '.join(supported)}")
        return rule
    possible = source.rules(state_dict)
    candidates = [rule for rule in possible if rule in supported]
    if not candidates:
        if possible:
            raise ValueError(f"{TARGETS[to].NAME} has no {' or '.join(possible)}, only {', '.join(supported)}")
        raise ValueError(f"{source.NAME}: no rule has these states and options: {_keys(state_dict)}")
    if len({(source.layout(rule), TARGETS[to].layout(rule)) for rule in candidates}) > 1:
        raise ValueError(f"{source.NAME}: the state may be of {' or '.join(candidates)}; say which by rule=")
    return "adamw" if "adamw" in candidates else candidates[0]  # the one that says nothing about weight decay


def _keys(state_dict: Mapping[str, Any]) -> str:
    found = {str(key) for entry in state_dict["state"].values() for key in entry}
    return f"its entries are {', '.join(sorted(found)) or 'empty'}"


def _copied(state: Portable) -> Portable:
    def copied(value: Any) -> Any:
        if isinstance(value, Coded):
            return replace(value, codes=value.codes.clone(), absmax=value.absmax.clone())
        return value.clone() if isinstance(value, Tensor) else value

    states = {index: {key: copied(value) for key, value in entry.items()} for index, entry in state.states.items()}
    return replace(state, states=states)
