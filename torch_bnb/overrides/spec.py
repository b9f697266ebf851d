"""What may be set, for a parameter or for all: keys, types, ranges. Every value a user writes is checked here, where it
is written.

Rules add their own options (`register`); a key can mean different ranges to different rules. Knows no optimizer and no
hint.
"""

import difflib
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, TypedDict

import torch


class PerParameter(TypedDict, total=False):
    """The options of every rule that may be said of one parameter."""

    optim_bits: int
    min_8bit_size: int
    percentile_clipping: int
    block_wise: bool
    block_grid: str
    state_device: str | None
    max_unorm: float
    skip_zeros: bool
    maximize: bool
    state_rounding: str
    weight_rounding: str
    seed: int


class OverrideSpec(PerParameter, total=False):
    """The keys of a hint, for editors, type checkers and YAML parsers. Which apply depends on the rule."""

    lr: float
    lr_scale: float
    lr_follows_schedule: bool
    betas: tuple[float, ...]
    eps: float
    weight_decay: float
    momentum: float
    dampening: float
    nesterov: bool
    alpha: float
    centered: bool
    lr_decay: float
    initial_accumulator_value: float
    t_alpha: int | None
    t_beta3: int | None
    trust_coefficient: float
    is_sparse: bool


class OverrideError(ValueError):
    """A hint that cannot be: unknown option, impossible value, or a name that fits no parameter."""


@dataclass(frozen=True)
class Option:
    """One key: which values it takes."""

    allowed: str
    """In words, for the error."""
    accepts: Callable[[Any], bool]
    convert: Callable[[Any], Any] = lambda value: value
    """To the form that the optimizer keeps."""

    def parse(self, key: str, value: Any) -> Any:
        """The value as the optimizer keeps it, or a ValueError that names key, value and what is allowed."""
        if not self.accepts(value):
            raise ValueError(f"{key}={value!r}: expected {self.allowed}")
        return self.convert(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def _is_rate(value: Any) -> bool:
    if isinstance(value, torch.Tensor):  # torch.optim allows a learning rate in a tensor of one element
        return value.numel() == 1 and bool(value.isfinite() and value >= 0)
    return _is_number(value) and value >= 0


def _plain(number: Any) -> Any:
    """An int or float of Python's, which every checkpoint can hold."""
    return int(number) if isinstance(number, Integral) else float(number)


def _betas(count: int, word: str) -> Option:
    def accepts(value: Any) -> bool:
        listed = isinstance(value, (tuple, list)) and len(value) == count
        return listed and all(_is_number(beta) and 0 <= beta < 1 for beta in value)

    return Option(f"{word} numbers in [0, 1)", accepts, lambda value: tuple(map(_plain, value)))


def _one_of(*words: str) -> Option:
    return Option(" or ".join(map(repr, words)), lambda value: value in words)


RATE = Option(
    "a finite number >= 0", _is_rate, lambda value: value if isinstance(value, torch.Tensor) else _plain(value)
)
NON_NEGATIVE = Option("a finite number >= 0", lambda value: _is_number(value) and value >= 0, _plain)
NUMBER = Option("a finite number", _is_number, _plain)
BETAS = _betas(2, "two")
THREE_BETAS = _betas(3, "three")
SHARE = Option("a number in [0, 1)", lambda value: _is_number(value) and 0 <= value < 1, _plain)
FLAG = Option("True or False", lambda value: isinstance(value, bool))
FLAG_OR_NONE = Option("True, False or None", lambda value: value is None or isinstance(value, bool))


def _integer(allowed: str, accepts: Callable[[Any], bool]) -> Option:
    return Option(allowed, lambda v: isinstance(v, Integral) and not isinstance(v, bool) and accepts(v), int)


STEPS_OR_NONE = Option(
    "a positive integer or None",
    lambda v: v is None or (isinstance(v, Integral) and not isinstance(v, bool) and v > 0),
    lambda v: v if v is None else int(v),
)

HOST_OR_NONE = Option(
    "'cpu' or None",
    lambda value: value is None or (isinstance(value, (str, torch.device)) and str(value) == "cpu"),
    lambda value: value and "cpu",
)

COMMON: Mapping[str, Option] = {
    "optim_bits": _integer("8 or 32", lambda value: value in (8, 32)),
    "min_8bit_size": _integer("an integer >= 0", lambda value: value >= 0),
    "percentile_clipping": _integer("an integer from 1 to 100", lambda value: 1 <= value <= 100),
    "block_wise": FLAG,
    "block_grid": _one_of("flat", "rows"),
    "state_device": HOST_OR_NONE,
    "max_unorm": NON_NEGATIVE,
    "skip_zeros": FLAG,
    "maximize": FLAG,
    "state_rounding": _one_of("auto", "nearest", "stochastic"),
    "weight_rounding": _one_of("nearest", "stochastic"),
    "seed": _integer("an integer", lambda value: True),
}
"""Options of every rule, for all parameters or for one."""

HINT_ONLY: Mapping[str, Option] = {"lr_scale": NON_NEGATIVE, "lr_follows_schedule": FLAG}
"""Keys that make sense beside a group's own rate: for one parameter."""

ALIASES: Mapping[str, str] = {"is_sparse": "skip_zeros"}

_of_rules: list[Mapping[str, Option]] = []


def register(options: Mapping[str, Option]) -> None:
    """Makes a rule's own options known, so that hints can name them."""
    _of_rules.append(options)


def known_options() -> dict[str, list[Option]]:
    """Every key that some rule takes, and how each takes it."""
    known: dict[str, list[Option]] = {}
    for options in (COMMON, HINT_ONLY, *_of_rules):
        for key, option in options.items():
            known.setdefault(key, []).append(option)
    return known


def known_names(keys: Iterable[str]) -> tuple[str, ...]:
    """Keys with aliases replaced.

    Raises:
        OverrideError: One is unknown (the nearest spelling is named).
    """
    known = known_options()
    for key in keys:
        if ALIASES.get(key, key) not in known:
            raise OverrideError(f"unknown {_unknown(key, [*known, *ALIASES])}")
    return tuple(ALIASES.get(key, key) for key in keys)


def validate(config: Mapping[str, Any]) -> dict[str, Any]:
    """A hint's config, checked against every known rule: the rule that will run is not known where a hint is written.

    Returns:
        A copy with aliases replaced and values converted.

    Raises:
        OverrideError: A key is unknown (the nearest spelling is named) or a value is one that no rule takes.
    """
    if not isinstance(config, Mapping):
        raise OverrideError(f"an override is a dict of options, got {config!r}")
    known = known_options()
    result: dict[str, Any] = {}
    for (key, value), name in zip(config.items(), known_names(config), strict=True):
        if name in result:
            same = [other for other in config if ALIASES.get(other, other) == name]
            raise OverrideError(f"{' and '.join(map(repr, same))} are the same option, say one of them")
        result[name] = _parse_any(key, value, known[name])
    return result


def validate_for(
    rule: str, options: Mapping[str, Option], config: Mapping[str, Any], what: Callable[[str], str]
) -> dict[str, Any]:
    """What several hints add up to, checked for the rule that will run.

    Args:
        rule: Its name, for errors.
        options: Its own.
        config: Options that `validate` has passed.
        what: From an option to what errors call the hint that it comes from.

    Returns:
        A copy with values converted.

    Raises:
        OverrideError: The rule has no such option, or not with this value.
    """
    known = {**COMMON, **HINT_ONLY, **options}
    checked: dict[str, Any] = {}
    for key, value in config.items():
        if key not in known:
            raise OverrideError(f"{what(key)}: {rule} has no {_unknown(key, known)}")
        try:
            checked[key] = known[key].parse(key, value)
        except ValueError as error:
            raise OverrideError(f"{what(key)}: {error}") from None
    if not checked.get("lr_follows_schedule", True) and "lr" not in checked:
        raise OverrideError(
            f"{what('lr_follows_schedule')}: lr_follows_schedule=False is about an lr of the parameter's own, and "
            "there is none"
        )
    return checked


def _parse_any(key: str, value: Any, options: list[Option]) -> Any:
    for option in options:
        if option.accepts(value):
            converted = option.convert(value)
            return float(converted) if isinstance(converted, torch.Tensor) else converted  # a copy of the user's
    allowed = " or ".join(dict.fromkeys(option.allowed for option in options))
    raise OverrideError(f"{key}={value!r}: expected {allowed}")


def _unknown(key: Any, known: Iterable[str]) -> str:
    known = sorted(known)
    near = difflib.get_close_matches(str(key), known, n=1)
    hint = f", did you mean {near[0]!r}?" if near else "."
    return f"option {key!r}{hint} Known options: {', '.join(known)}"
