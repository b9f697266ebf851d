"""What every optimizer takes besides its rule's own options, and what of it cannot be honoured."""

import difflib
import inspect
import warnings
from collections.abc import Mapping
from typing import Any

from torch_bnb.overrides import spec


class CommonOptions(spec.PerParameter, total=False):
    """The options of every optimizer."""

    foreach: bool | None
    fused: bool | None
    capturable: bool


DEFAULTS = CommonOptions(
    optim_bits=32,
    min_8bit_size=4096,
    percentile_clipping=100,
    block_wise=True,
    block_grid="flat",
    state_device=None,
    max_unorm=0.0,
    skip_zeros=False,
    maximize=False,
    state_rounding="auto",
    weight_rounding="nearest",
    seed=0,
    foreach=None,
    fused=None,
    capturable=False,
)

DOC = """optim_bits: Bits per element of state, 8 or 32.
        min_8bit_size: Parameters with fewer elements keep 32-bit state.
        percentile_clipping: Scales a gradient down to this percentile of its last 100 norms; 100 is off.
        block_wise: An absmax for every 256 elements of an 8-bit state; False: one for the whole tensor.
        block_grid: Where blocks lie: "flat" (256 elements one after the other, whatever the shape) or "rows" (never
            across the first dimension, as sharded parameters have it: for the same bits sharded and not). No difference
            where a row is whole blocks.
        state_device: Where state is kept: None: beside its parameter; "cpu": in host memory, from where a step of a
            parameter on a GPU fetches it in chunks, beside the arithmetic. Read ``state_dict()``, which waits for what
            is under way, not ``state``.
        max_unorm: Scales an update, before the learning rate, down to this multiple of its parameter's norm; 0 is off.
            A parameter of norm 0 has no limit.
        skip_zeros: Elements with zero gradient stay as they are, their state included; an 8-bit state is coded anew
            with its block's new scale, so it is kept to that precision only.
        maximize: Ascend instead of descend.
        state_rounding: How 8-bit states are rounded: "nearest", "stochastic" (to either code around a number, such
            that the mean is the number), or "auto" (nearest, but stochastic for first moments that keep more than 0.99
            of themselves at a step, which nearest rounding would freeze).
        weight_rounding: How bfloat16 and float16 parameters are rounded: "nearest" or "stochastic".
        seed: Of stochastic rounding; results are the same for the same seed, on any number of threads.
        foreach: True, False or None, for code that is written for torch.optim. Changes nothing: every step takes all
            parameters at once.
        fused: The same; every step is one pass over memory.
        capturable: Count steps on the device, read the rate there (if it is a tensor) and heed a GradScaler there, so
            that a CUDA graph can capture a step. The first step, which makes the state, comes before the capture. Not
            with sharded parameters, sparse gradients or percentile_clipping."""

# foreach and fused name ways to run torch's step. Ours always takes all parameters at once and in one pass, so True is
# what happens and False, which changes no result, may be asked for.
CONSTRUCTOR_ONLY = {"foreach": spec.FLAG_OR_NONE, "fused": spec.FLAG_OR_NONE, "capturable": spec.FLAG}

STORAGE = ("optim_bits", "min_8bit_size", "block_wise", "block_grid", "state_device")
"""How state is kept. This is the program's choice: a checkpoint does not overrule it, its state is converted."""

ABOUT_GROUP = ("explicit_bits", "merged_hints")
"""Notes about how a group was made in this program; a checkpoint does not speak of them."""

OF_THE_PROGRAM = (*STORAGE, *CONSTRUCTOR_ONLY, *ABOUT_GROUP)
"""What of a group a checkpoint does not change."""


def refuse_idle(group: Mapping[str, Any], optimizer: Any, what: str) -> None:
    """Raises ValueError for a group's key that says something, and that the optimizer would not heed.

    That is one that is nearly an option, another rule's or another library's. Keys that nobody knows belong to
    schedulers and frameworks.

    Args:
        group: A parameter group.
        optimizer: Its class.
        what: Names the group in errors.
    """
    known = {**spec.COMMON, **optimizer.options, **CONSTRUCTOR_ONLY}
    others = spec.known_options()
    for key, value in group.items():
        if key in known or key == "decoupled_weight_decay":  # in all of torch's AdamW; Adam itself refuses it
            continue
        if key == "lr_scale":
            warnings.warn(
                f"{optimizer.__name__}: 'lr_scale' in a group is left to the schedule that heeds it, as timm's does; "
                "an override's lr_scale is what scales a parameter's rate",
                stacklevel=2,
            )
            continue
        if key in spec.HINT_ONLY or key in spec.ALIASES:
            raise ValueError(f"{what}: {key!r} is an override's option, not a group's")
        says_something = value or "merged_hints" in group  # torch's groups hold amsgrad=False, hints are meant
        if says_something and (key in others or key in _INSTEAD):
            hint = _INSTEAD.get(key, "")
            raise ValueError(f"{what}: {optimizer.__name__} has no option {key!r}{hint}; got {value!r}")
        if near := difflib.get_close_matches(key, known, n=1, cutoff=0.85):
            raise ValueError(f"{what}: unknown option {key!r}, did you mean {near[0]!r}?")


_INSTEAD = {
    "amsgrad": ": torch_bnb has no optimizer that keeps the largest second moments; leave it out",
    "decoupled_weight_decay": ": Adam adds the decay to the gradient, AdamW decouples it",
    "differentiable": ": a step changes parameters in place and cannot be differentiated; leave it out",
    "learning_rate": ", did you mean 'lr'?",
    "is_paged": "; the Paged variants are classes of their own, PagedAdamW8bit for one",
}
"""What to say of arguments that other libraries' optimizers take."""


def unexpected(optimizer: type, key: str) -> str:
    """What to say of a constructor argument that there is not."""
    known = list(optimizer.__signature__.parameters)[1:]
    near = difflib.get_close_matches(key, known, n=1)
    hint = f", did you mean {near[0]!r}?" if near else f"; it takes {', '.join(known)}"
    hint = _INSTEAD.get(key, hint)
    return f"{optimizer.__name__} got an unexpected option {key!r}{hint}"


def check(config: Mapping[str, Any], rule_options: Mapping[str, spec.Option], what: str) -> dict[str, Any]:
    """A config with checked and converted values; keys that are no option pass.

    Args:
        config: Constructor arguments, a parameter group, or overrides.
        rule_options: The rule's own.
        what: Names the config in errors.

    Raises:
        ValueError: An impossible value.
    """
    known = {**spec.COMMON, **rule_options, **CONSTRUCTOR_ONLY}
    checked = {}
    for key, value in config.items():
        try:
            checked[key] = known[key].parse(key, value) if key in known else value
        except ValueError as error:
            raise ValueError(f"{what}: {error}") from None
    return checked


SLOW = 0.99
"""A first moment that keeps more of itself than this share at a step is rounded stochastically by ``"auto"``."""


def stochastic_states(
    config: Mapping[str, Any], states: Mapping[str, bool], decays: Mapping[str, float]
) -> tuple[int, ...]:
    """Indices of the states that are rounded stochastically. docs/rounding.md says why these.

    Args:
        config: Its ``state_rounding``.
        states: The rule's, and whether each has a sign: first moments do.
        decays: By state, the share of it that a step keeps.
    """
    rounding = config["state_rounding"]
    return tuple(
        index
        for index, (name, signed) in enumerate(states.items())
        if rounding == "stochastic" or (rounding == "auto" and signed and decays.get(name, 0.0) > SLOW)
    )


def arguments(config: Mapping[str, Any], states: Mapping[str, bool], decays: Mapping[str, float]) -> dict[str, Any]:
    """The operator's keyword arguments that a config asks for; `states` and `decays` as in `stochastic_states`."""
    weights, chosen = config["weight_rounding"] == "stochastic", stochastic_states(config, states, decays)
    return {
        "grad_scale": -1.0 if config["maximize"] else 1.0,
        "max_unorm": config["max_unorm"],
        "skip_zeros": config["skip_zeros"],
        "stochastic_weights": weights,
        "stochastic_states": chosen,
        "seed": config["seed"] if weights or chosen else 0,
    }


def full_signature(optimizer: type) -> inspect.Signature:
    """A constructor's signature as users should see it: without self, and with what it passes on spelled out.

    That is what the class above it takes; of a rule, `CommonOptions`.
    """
    signature = inspect.signature(optimizer.__init__)
    takes = [p for p in signature.parameters.values() if p.name != "self"]
    own = [p for p in takes if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    above = next((vars(base)["__signature__"] for base in optimizer.__mro__[1:] if "__signature__" in vars(base)), None)
    if not any(p.kind is p.VAR_KEYWORD for p in takes):
        passed = []
    elif above is None or "rule" in vars(optimizer):
        types, keyword = CommonOptions.__annotations__, inspect.Parameter.KEYWORD_ONLY
        passed = [inspect.Parameter(key, keyword, default=DEFAULTS[key], annotation=types[key]) for key in DEFAULTS]
    else:
        passed = [p.replace(kind=p.KEYWORD_ONLY) if own else p for p in above.parameters.values()]
    parameters = [*own, *(p for p in passed if p.name not in signature.parameters)]
    return signature.replace(parameters=parameters, return_annotation=inspect.Signature.empty)
