"""What every optimizer takes beside its rule's own options, and what of it cannot be honoured."""

import inspect
from collections.abc import Mapping
from typing import Any, TypedDict

from torch_bnb.overrides import spec


class CommonOptions(TypedDict, total=False):
    """The options of every optimizer."""

    optim_bits: int
    min_8bit_size: int
    percentile_clipping: int
    block_wise: bool
    max_unorm: float
    skip_zeros: bool
    maximize: bool
    foreach: bool | None
    fused: bool | None
    capturable: bool


DEFAULTS = CommonOptions(
    optim_bits=32,
    min_8bit_size=4096,
    percentile_clipping=100,
    block_wise=True,
    max_unorm=0.0,
    skip_zeros=False,
    maximize=False,
    foreach=None,
    fused=None,
    capturable=False,
)

DOC = """optim_bits: Bits per element of state, 8 or 32.
        min_8bit_size: Parameters with fewer elements keep 32-bit state.
        percentile_clipping: Not in this version, which only has 100 (off).
        block_wise: Not in this version, which only has True.
        max_unorm: Not in this version, which only has 0 (off).
        skip_zeros: Not in this version, which only has False.
        maximize: Ascend instead of descend.
        foreach: As torch users pass it; every step takes all parameters at once.
        fused: As torch users pass it; every step is one pass over memory.
        capturable: False; True is an error, a CUDA graph cannot capture a step count that lives on the host."""

# foreach and fused name ways to run torch's step. Ours always takes all parameters at once and in one pass, so True is
# what happens and False, which changes no result, may be asked for.
CONSTRUCTOR_ONLY = {"foreach": spec.FLAG_OR_NONE, "fused": spec.FLAG_OR_NONE, "capturable": spec.FLAG}

NOT_YET = ("percentile_clipping", "block_wise", "max_unorm", "skip_zeros")

STORAGE = ("optim_bits", "min_8bit_size", "block_wise")
"""How state is kept. This is the program's choice: a checkpoint does not overrule it, its state is converted."""


def check(config: Mapping[str, Any], rule_options: Mapping[str, spec.Option], what: str) -> dict[str, Any]:
    """A config with checked and converted values; keys that are no option pass.

    Args:
        config: Constructor arguments, a parameter group, or overrides.
        rule_options: The rule's own.
        what: Names the config in errors.

    Raises:
        ValueError: An impossible value.
        NotImplementedError: An option that this version has only one value of.
    """
    known = {**spec.COMMON, **rule_options, **CONSTRUCTOR_ONLY}
    checked = {}
    for key, value in config.items():
        try:
            checked[key] = known[key].parse(key, value) if key in known else value
        except ValueError as error:
            raise ValueError(f"{what}: {error}") from None
        if key in NOT_YET and checked[key] != DEFAULTS[key]:
            raise NotImplementedError(f"{what}: {key}={value!r}: this version only has {DEFAULTS[key]!r}")
    if checked.get("capturable"):
        raise ValueError(f"{what}: capturable=True: a CUDA graph cannot capture a step count that lives on the host")
    return checked


def full_signature(constructor: Any) -> inspect.Signature:
    """A constructor's signature as users should see it: without self, with `CommonOptions` spelled out."""
    signature = inspect.signature(constructor)
    own = [p for p in signature.parameters.values() if p.name != "self" and p.kind is not p.VAR_KEYWORD]
    types = CommonOptions.__annotations__
    common = [
        inspect.Parameter(key, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=types[key])
        for key, default in DEFAULTS.items()
    ]
    return signature.replace(parameters=[*own, *common], return_annotation=inspect.Signature.empty)
