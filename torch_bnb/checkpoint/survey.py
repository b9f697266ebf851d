"""What a checkpoint holds: the optimizer states in it, wherever they are nested, and what can be told of each."""

import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from torch_bnb.checkpoint import checks, portable
from torch_bnb.checkpoint.exchange import convert, recognise
from torch_bnb.checkpoint.portable import Coded
from torch_bnb.optim import state as storage
from torch_bnb.optim.state import Form
from torch_bnb.tables import readable_bytes, render

BOTTOMLESS = "the checkpoint is nested without end: something in it holds itself"


@dataclass(frozen=True)
class StateRow:
    """One named state, over all parameters."""

    name: str
    bits: tuple[int, ...]
    """8, 32, or both where some parameters differ."""
    parameters: int
    elements: int
    bytes: int
    bytes_8bit: int
    """With 8 bits for parameters of 4096 elements or more."""
    bytes_32bit: int


@dataclass(frozen=True)
class Description:
    """One optimizer's state."""

    where: str
    """In the file, as Python would index it; empty: the file itself."""
    form: str
    """Whose form it is in."""
    rules: tuple[str, ...]
    """The rules that it may be of; its states bear the names that they have in the first."""
    parameters: int
    with_state: int
    """Parameters that have stepped."""
    steps: tuple[int, int] | None
    """The fewest and the most of a parameter; None where none are counted."""
    states: tuple[StateRow, ...]
    groups: tuple[dict[str, Any], ...]
    """The options; ``params`` is how many."""
    problem: str | None = None
    """Why it cannot be read."""

    def to_dict(self) -> dict[str, Any]:
        """Plain lists, dicts, numbers and strings."""
        return asdict(self)

    def __str__(self) -> str:
        return _text(self)


def describe(content: Any) -> list[Description]:
    """Every optimizer state in a checkpoint.

    Args:
        content: What `load` returned: an optimizer's state_dict or any nest of dicts, lists and tuples with some in it.

    Returns:
        One description each, in the order of the file; ``print`` shows it as text.

    Raises:
        ValueError: Something in it holds itself.

    Example:
        >>> import torch, torch_bnb as bnb
        >>> weight = torch.randn(64, 64, requires_grad=True)
        >>> optimizer = bnb.optim.Lion([weight], optim_bits=8)
        >>> weight.square().sum().backward()
        >>> optimizer.step()
        >>> (found,) = bnb.checkpoint.describe({"epoch": 1, "optimizers": [optimizer.state_dict()]})
        >>> found.where, found.form, found.rules, found.steps
        ("['optimizers'][0]", 'torch_bnb', ('lion',), (1, 1))
    """
    try:
        return [_describe(where, state_dict) for where, state_dict in _find(content, "")]
    except RecursionError:
        raise ValueError(BOTTOMLESS) from None


def convert_nested(content: Any, to: str, rule: str | None = None, optim_bits: int | None = None) -> tuple[Any, int]:
    """A checkpoint with every optimizer state in it converted.

    Args:
        content: As `describe` takes it. It is left as it is.
        to: As in `convert`, like `rule` and `optim_bits`.
        rule: Of all of them.
        optim_bits: Of all of them.

    Returns:
        (the same nest with new states, how many there were); what is no optimizer's state is shared with `content`.

    Raises:
        ValueError: One of them cannot be converted; where it is comes first.
    """
    count = 0

    def converted(where: str, state_dict: Mapping[str, Any]) -> dict[str, Any]:
        nonlocal count
        count += 1
        try:
            return convert(state_dict, to, rule, optim_bits)
        except ValueError as error:
            raise ValueError(f"{where}: {error}" if where else str(error)) from None

    try:
        return _replaced(content, "", converted), count
    except RecursionError:
        raise ValueError(BOTTOMLESS) from None


def _is_state_dict(item: Any) -> bool:
    if not (isinstance(item, Mapping) and isinstance(item.get("state"), Mapping)):
        return False
    groups = item.get("param_groups")
    return isinstance(groups, (list, tuple)) and all(isinstance(g, Mapping) and "params" in g for g in groups)


def _find(item: Any, where: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    if _is_state_dict(item):
        yield where, item
    elif isinstance(item, (Mapping, list, tuple)):
        for key, inner in item.items() if isinstance(item, Mapping) else enumerate(item):
            yield from _find(inner, f"{where}[{key!r}]")


def _replaced(item: Any, where: str, change: Callable[[str, Mapping[str, Any]], Any]) -> Any:
    """The same nest with new states; a container in which nothing changes stays the same object."""
    if _is_state_dict(item):
        return change(where, item)
    if isinstance(item, dict):
        new = {key: _replaced(inner, f"{where}[{key!r}]", change) for key, inner in item.items()}
        if all(new[key] is inner for key, inner in item.items()):
            return item
        result = item.copy()
        result.update(new)
        return result
    if type(item) in (list, tuple):
        new = [_replaced(inner, f"{where}[{i}]", change) for i, inner in enumerate(item)]
        return item if all(a is b for a, b in zip(new, item, strict=True)) else type(item)(new)
    return item


def _describe(where: str, state_dict: Mapping[str, Any]) -> Description:
    form, rules, rows, steps, problem = "unknown", [], [], [], None
    try:
        checks.check(state_dict, "inspect")
        if source := recognise(state_dict):
            form, rules = source.NAME, source.rules(state_dict)
            if not rules:
                raise ValueError("no rule has these states and options")
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of what a conversion would lose
                state = source.read(state_dict, rules[0])
            rows = [_row(name, [e[name] for e in state.states.values() if name in e]) for name in _names(state)]
            steps = [entry["step"] for entry in state.states.values() if "step" in entry]
    except ValueError as error:
        problem = str(error)
    groups = state_dict["param_groups"]
    return Description(
        where=where,
        form=form,
        rules=tuple(rules),
        parameters=sum(len(group["params"]) for group in groups if isinstance(group["params"], (list, tuple))),
        with_state=len([entry for entry in state_dict["state"].values() if entry]),
        steps=(min(steps), max(steps)) if steps else None,
        states=tuple(rows),
        groups=tuple({str(key): _plain(key, value) for key, value in group.items()} for group in groups),
        problem=problem,
    )


def _names(state: portable.Portable) -> list[str]:
    return [name for name in portable.RULES[state.rule].states if any(name in e for e in state.states.values())]


def _row(name: str, moments: list[portable.Moment]) -> StateRow:
    sizes = [moment.shape.numel() for moment in moments]
    return StateRow(
        name=name,
        bits=tuple(sorted({8 if isinstance(moment, Coded) else 32 for moment in moments})),
        parameters=len(moments),
        elements=sum(sizes),
        bytes=sum(m.codes.numel() + 4 * m.absmax.numel() if isinstance(m, Coded) else 4 * m.numel() for m in moments),
        bytes_8bit=sum(
            storage.size([size], Form.FLAT if size >= portable.MIN_8BIT_SIZE else Form.FLOAT32) for size in sizes
        ),
        bytes_32bit=sum(storage.size([size], Form.FLOAT32) for size in sizes),
    )


def _plain(key: str, value: Any) -> Any:
    if key == "params":
        return len(value) if isinstance(value, (list, tuple)) else repr(value)
    if isinstance(value, Tensor) and value.numel() == 1 and not value.is_meta:
        value = value.item()
    if isinstance(value, (list, tuple)):
        return [_plain("", item) for item in value]
    return value if value is None or isinstance(value, (bool, int, float, str)) else repr(value)


def _text(found: Description) -> str:
    lines = [f"{found.where or 'optimizer state'}: in the form of {found.form}"]
    if found.problem:
        lines.append(f"  cannot be read: {found.problem}")
    if found.rules:
        several = f" (states named as in {found.rules[0]})" if len(found.rules) > 1 else ""
        lines.append(f"  rule: {' or '.join(found.rules)}{several}")
    steps = ""
    if found.steps:
        first, last = found.steps
        steps = f", {last} steps" if first == last else f", {first} to {last} steps"
    lines.append(f"  parameters: {found.parameters}, {found.with_state} with state{steps}")
    for i, group in enumerate(found.groups):
        options = ", ".join(f"{key}={value!r}" for key, value in group.items() if key not in ("params", "param_names"))
        lines.append(f"  group {i}: {group['params']} parameters, {options}")
    if found.states:
        header = ("state", "bits", "parameters", "elements", "in the file", "in 8 bits", "in 32 bits")
        cells = [
            (row.name, " and ".join(map(str, row.bits)), str(row.parameters), str(row.elements), *_sizes([row]))
            for row in found.states
        ]
        cells.append(("total", "", "", str(sum(row.elements for row in found.states)), *_sizes(found.states)))
        lines.append(render(header, cells, left=("state",)))
    return "\n".join(lines)


def _sizes(rows: Any) -> tuple[str, ...]:
    sums = [sum(getattr(row, key) for row in rows) for key in ("bytes", "bytes_8bit", "bytes_32bit")]
    return tuple(map(readable_bytes, sums))
