"""An optimizer's state in nobody's form: every format is read into it and written from it.

Options and states have this package's names, which are torch.optim's. A moment is a float32 tensor or `Coded`, as it
was found: what can be copied code for code is never decoded. Knows the 8-bit code and the rules that registered here;
no library, no file, no optimizer.
"""

from collections.abc import Callable, Hashable, Iterable, Mapping, Set
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from torch_bnb import codec
from torch_bnb.checkpoint.checks import need_step, step_count, tensor
from torch_bnb.optim import options as common
from torch_bnb.optim import state as storage
from torch_bnb.overrides import spec

MIN_8BIT_SIZE = common.DEFAULTS["min_8bit_size"]
"""The default of every library: smaller parameters keep 32-bit state."""

OURS = {*spec.COMMON, *common.CONSTRUCTOR_ONLY, *common.ABOUT_GROUP, "base_lr"}
"""Keys of a group that belong to this package, besides the rule's own options."""


@dataclass(frozen=True)
class Rule:
    """What conversions need to know of a rule."""

    states: Mapping[str, bool]
    """Names, and whether each has a sign."""
    options: Mapping[str, spec.Option]
    optional: Set[str]
    """States that it has in some configurations only, and that may begin at any step."""


RULES: dict[str, Rule] = {}


def register(rule: str, states: Mapping[str, bool], options: Mapping[str, spec.Option], optional: Set[str]) -> None:
    """Makes a rule known, by its name."""
    RULES[rule] = Rule(states, options, optional)


@dataclass(frozen=True)
class Coded:
    """A moment in 8 bits, as a library keeps it."""

    codes: Tensor
    """uint8, the parameter's shape."""
    absmax: Tensor
    """float32, shape (ceil(numel / blocksize),)."""
    signed: bool
    blocksize: int
    map: Tensor | None = None
    """float32, shape (256,), where it is another than this package's."""

    @property
    def shape(self) -> torch.Size:
        """The parameter's."""
        return self.codes.shape

    def is_ours(self, signed: bool) -> bool:
        """Whether codes and absmax can be copied as they are."""
        return self.map is None and self.signed == signed and self.blocksize == codec.BLOCK_SIZE

    def is_whole(self, signed: bool) -> bool:
        """Whether it is what ``block_wise=False`` makes: one absmax for the tensor."""
        return self.map is None and self.signed == signed and self.absmax.numel() == 1

    def decode(self) -> Tensor:
        """float32 of the parameter's shape."""
        if self.map is None:
            return codec.dequantize_blockwise(self.codes, self.absmax, self.signed, self.blocksize)
        scale = self.absmax.repeat_interleave(self.blocksize)[: self.codes.numel()]
        return (self.map[self.codes.flatten().long()] * scale).view(self.codes.shape)


Moment = Tensor | Coded


@dataclass
class Portable:
    """The state of a whole optimizer."""

    rule: str
    groups: list[dict[str, Any]]
    """``params`` as in the file, the rule's options, and whatever schedulers keep there."""
    states: dict[Hashable, dict[str, Any]]
    """By the keys in ``params``: moments by name, and ``step``."""


def values(moment: Moment) -> Tensor:
    """A moment in float32."""
    return moment.decode() if isinstance(moment, Coded) else moment


def in_bits(moment: Moment, signed: bool, bits: int | None, min_8bit_size: int = MIN_8BIT_SIZE) -> Moment:
    """A moment as float32, or in this package's 8-bit code: copied where it is in it, encoded where it is not.

    Args:
        moment: As it was found.
        signed: The map that is wanted.
        bits: 8, 32 or None: as it was found.
        min_8bit_size: Smaller ones that are in float32 stay there.
    """
    if bits == 32 or (not isinstance(moment, Coded) and (bits is None or moment.numel() < min_8bit_size)):
        return values(moment)
    if isinstance(moment, Coded) and moment.is_ours(signed):
        return moment
    return Coded(*storage.encode(values(moment), signed), signed, codec.BLOCK_SIZE)


def coded(codes: Any, absmax: Any, qmap: Any, signed: bool, blocksize: int | None, what: str) -> Coded:
    """A moment from a library's tensors.

    Args:
        codes: uint8.
        absmax: Floating-point, one per block.
        qmap: What codes stand for, shape (256,); None: this package's map.
        signed: The map that is expected.
        blocksize: None: worked out from how many absmax there are.
        what: Names the moment in errors.

    Raises:
        ValueError: One of them is no such tensor.
    """
    codes = tensor(codes, f"{what}: the codes", torch.uint8)
    absmax = tensor(absmax, f"{what}: the absmax").flatten()
    numel, count = codes.numel(), absmax.numel()
    if blocksize is None:
        sizes = [codec.BLOCK_SIZE, *(2**power for power in range(6, 14)), max(1, numel)]
        blocksize = next((size for size in sizes if codec.blocks(numel, size) == count), None)
    if blocksize is None or codec.blocks(numel, blocksize) != count:
        raise ValueError(f"{what}: {count} absmax do not fit {numel} codes")
    if qmap is not None:
        qmap = tensor(qmap, f"{what}: the code map")
        if qmap.shape != (256,):
            raise ValueError(f"{what}: the code map must have shape (256,), got {tuple(qmap.shape)}")
        # Machines differ in the last bit of some of the numbers; the codes mean the same.
        own = codec.create_dynamic_map(signed).to(qmap.device)
        qmap = None if torch.allclose(qmap, own, rtol=1e-6, atol=0) else qmap
    return Coded(codes, absmax, signed, blocksize, qmap)


def under_torchs_names(
    entry: Mapping[str, Any],
    rule: str,
    what: str,
    moment: Callable[[Any, bool, str], Moment] = lambda value, _, what: tensor(value, what),
) -> dict[str, Any]:
    """A parameter's state out of a library that names states as torch.optim does.

    Args:
        entry: As the library has it.
        rule: The rule.
        what: Names the parameter in errors.
        moment: Reads one (value, whether it has a sign, its name for errors).

    Raises:
        ValueError: There is a state that the rule does not know.
    """
    if "max_exp_avg_sq" in entry:
        raise ValueError(f"{what}: it was trained with amsgrad=True, whose 'max_exp_avg_sq' no rule of torch_bnb has")
    if unknown := entry.keys() - {"step", *RULES[rule].states}:
        others = [name for name, other in RULES.items() if entry.keys() <= {"step", *other.states}]
        hint = f"; it is of another optimizer ({', '.join(others)})" if others else ""
        raise ValueError(f"{what}: unknown state {sorted(unknown, key=str)} for {rule}{hint}")
    found = {
        name: moment(entry[name], signed, f"{what}: {name!r}")
        for name, signed in RULES[rule].states.items()
        if entry.get(name) is not None  # torch's SGD writes None before its first buffer
    }
    return {**found, **({"step": step_count(entry["step"], f"{what}: 'step'")} if "step" in entry else {})}


def checked(portable: Portable, who: str) -> Portable:
    """The same, if every parameter has all moments of the rule or none, of one shape, and every option is possible.

    Raises:
        ValueError: Not so.
    """
    rule = RULES[portable.rule]
    for index, entry in portable.states.items():
        moments = {name: entry[name] for name in rule.states if name in entry}
        if moments and (missing := rule.states.keys() - moments.keys() - rule.optional):
            raise ValueError(f"{who}, parameter {index}: {portable.rule} needs {', '.join(sorted(missing))} too")
        need_step(entry, moments.keys() - rule.optional, f"{who}, parameter {index}")
        if len({moment.shape for moment in moments.values()}) > 1:
            shapes = {name: tuple(moment.shape) for name, moment in moments.items()}
            raise ValueError(f"{who}, parameter {index}: its states have several shapes: {shapes}")
    for g, group in enumerate(portable.groups):
        for key, option in {**spec.COMMON, **rule.options}.items():
            if key in group:
                try:
                    group[key] = option.parse(key, group[key])
                except ValueError as error:
                    raise ValueError(f"{who}, group {g}: {error}") from None
    return portable


def matching_rules(names: Iterable[str], groups: Iterable[Mapping[str, Any]]) -> list[str]:
    """The rules that a file in torch's names may be of: by its states, and by its options where that narrows them."""
    names, keys = set(names), set().union(*groups)
    every_option = set().union(*(rule.options for rule in RULES.values()))
    by_state = [name for name, rule in RULES.items() if names <= rule.states.keys()]
    by_option = [name for name in by_state if keys & every_option == RULES[name].options.keys()]
    return by_option or by_state


def without(group: Mapping[str, Any], keys: Iterable[str]) -> dict[str, Any]:
    """A group without some keys; its rate, which torch allows in a tensor, as a number."""
    dropped = set(keys)
    kept = {key: value for key, value in group.items() if key not in dropped}
    if isinstance(kept.get("lr"), Tensor) and kept["lr"].numel() == 1:
        kept["lr"] = kept["lr"].item()
    return kept
