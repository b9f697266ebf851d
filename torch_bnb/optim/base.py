"""The one step loop: every optimizer of torch_bnb is this class with a rule's names and numbers filled in.

Here are configuration (group options, overrides), state, checkpoints and the grouping of parameters into calls. What a rule
computes is in csrc/rules.h, how its Python half looks in optim/rules.py.
"""

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, TypedDict

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT
from typing_extensions import override

from torch_bnb import ops
from torch_bnb.optim import state as storage
from torch_bnb.optim.state import State
from torch_bnb.overrides import GlobalOptimManager, spec
from torch_bnb.overrides.hints import Hint, Level
from torch_bnb.overrides.resolve import merge

FLOATING = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


class CommonOptions(TypedDict, total=False):
    """What every optimizer takes beside its rule's own options."""

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


COMMON_DEFAULTS = CommonOptions(
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

COMMON_DOC = """optim_bits: Bits per element of state, 8 or 32.
        min_8bit_size: Parameters with fewer elements keep 32-bit state.
        percentile_clipping: Not in this version, which only has 100 (off).
        block_wise: Not in this version, which only has True.
        max_unorm: Not in this version, which only has 0 (off).
        skip_zeros: Not in this version, which only has False.
        maximize: Ascend instead of descend.
        foreach: As torch users pass it; every step takes all parameters at once.
        fused: As torch users pass it; every step is one pass over memory.
        capturable: False; True is an error, a CUDA graph cannot capture a step count that lives on the host."""

# foreach and fused name ways to run torch's step. Ours always takes all parameters of a call at once and in one pass, so True is
# what happens and False, which changes no result, may be asked for.
CONSTRUCTOR_ONLY = {"foreach": spec.FLAG_OR_NONE, "fused": spec.FLAG_OR_NONE, "capturable": spec.FLAG}

NOT_YET = ("percentile_clipping", "block_wise", "max_unorm", "skip_zeros")

# How state is kept is this program's choice; a checkpoint does not overrule it, its state is converted.
STORAGE_OPTIONS = ("optim_bits", "min_8bit_size", "block_wise")


@dataclass
class Slot:
    """A place in a parameter group, and what holds there. Survives a framework that puts another Parameter into it."""

    parameter: Tensor
    hints: list[Hint]
    overrides: dict[str, Any]
    """What the hints add up to."""

    def config(self, group: Mapping[str, Any]) -> Mapping[str, Any]:
        """The options in force here, with the effective learning rate as ``lr``."""
        if not self.overrides:
            return group
        return {**group, **self.overrides, "lr": effective_lr(group, self.overrides)}


class Call:
    """Parameters that share their scalars: one call of the operator."""

    def __init__(self) -> None:
        self.params: list[Tensor] = []
        self.grads: list[Tensor] = []
        self.states: list[State] = []
        self.copies: list[tuple[Tensor, Tensor]] = []


def effective_lr(group: Mapping[str, Any], overrides: Mapping[str, Any]) -> float:
    """The rate of a parameter with overrides: its own base rate, moved by the schedule as the group's is, 0 when that is 0."""
    rate, base = float(group["lr"]), float(group["base_lr"])
    own = overrides.get("lr")
    if own is not None:
        follows = overrides.get("lr_follows_schedule", True) and base != 0
        rate = float(own) * (rate / base if follows else float(rate != 0))
    return rate * overrides.get("lr_scale", 1.0)


def _with_common(signature: inspect.Signature) -> inspect.Signature:
    """The signature of a constructor as users should see it: without self, `CommonOptions` spelled out."""
    own = [p for p in signature.parameters.values() if p.name != "self" and p.kind is not p.VAR_KEYWORD]
    named = {p.name for p in own}
    common = [
        inspect.Parameter(key, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=CommonOptions.__annotations__[key])
        for key, default in COMMON_DEFAULTS.items()
        if key not in named
    ]
    return signature.replace(parameters=[*own, *common], return_annotation=inspect.Signature.empty)


class BlockwiseOptimizer(torch.optim.Optimizer):
    """Base of all rules: float32 or block-wise 8-bit state, overrides per parameter.

    A subclass states its rule's name, states and options, and turns a config into the rule's scalars.
    """

    rule: ClassVar[str]
    """Name of the operator, ``torch.ops.torch_bnb.<rule>``."""
    states: ClassVar[Mapping[str, bool]]
    """State names, torch.optim's, in the order of the rule's states, and whether each has a sign."""
    options: ClassVar[Mapping[str, spec.Option]]
    """The rule's own options; names and defaults are torch.optim's."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        spec.register(cls.__name__, cls.options)
        cls.__doc__ = (cls.__doc__ or "").replace("{common}", COMMON_DOC)
        cls.__signature__ = _with_common(inspect.signature(cls.__init__))

    def __init__(self, params: ParamsT, rule_options: dict[str, Any], common: CommonOptions) -> None:
        unknown = common.keys() - COMMON_DEFAULTS.keys()
        if unknown:
            raise TypeError(f"{type(self).__name__} got unexpected options: {', '.join(sorted(unknown))}")
        self._slots: list[list[Slot]] = []
        self._seen_version = -1
        super().__init__(params, self._checked({**rule_options, **COMMON_DEFAULTS, **common}, type(self).__name__))
        self._apply_overrides()

    def scalars(self, config: Mapping[str, Any], step: int) -> dict[str, float]:
        """The rule's scalars, by the names of its kScalars, for a parameter's `step` (from 1)."""
        raise NotImplementedError

    def active_states(self, config: Mapping[str, Any]) -> Mapping[str, bool]:
        """The states that this configuration needs; the others read as zero and are not kept."""
        return self.states

    def check(self, config: Mapping[str, Any]) -> None:
        """Raises ValueError for options that are impossible together."""

    def _checked(self, config: Mapping[str, Any], what: str) -> dict[str, Any]:
        known = {**spec.COMMON, **self.options, **CONSTRUCTOR_ONLY}
        checked = {}
        for key, value in config.items():
            try:
                checked[key] = known[key].parse(key, value) if key in known else value
            except ValueError as error:
                raise ValueError(f"{what}: {error}") from None
        if checked.get("capturable"):
            raise ValueError(f"{what}: capturable=True: the step count lives on the host, so a CUDA graph cannot capture it")
        for key in NOT_YET:
            if key in checked and checked[key] != COMMON_DEFAULTS[key]:
                raise NotImplementedError(f"{what}: {key}={checked[key]!r}: this version only has {COMMON_DEFAULTS[key]!r}")
        return checked

    @override
    def add_param_group(self, param_group: dict[str, Any]) -> None:
        index = len(self.param_groups)
        super().add_param_group(param_group)
        group = self.param_groups[index]
        try:
            group.update(self._checked(group, f"{type(self).__name__}, group {index}"))
            self.check(group)
            for position, parameter in enumerate(group["params"]):
                if parameter.dtype not in FLOATING:
                    raise ValueError(
                        f"{type(self).__name__}, group {index}: parameter {position} of shape {tuple(parameter.shape)} is "
                        f"{parameter.dtype}; expected one of {', '.join(map(str, FLOATING))}"
                    )
        except Exception:
            del self.param_groups[index]
            raise
        group.setdefault("base_lr", float(group["lr"]))

    # --- overrides -----------------------------------------------------------------------------------------------------------

    def _apply_overrides(self) -> None:
        """Looks up every parameter's hints, and remembers for which parameters and which state of the manager."""
        manager = GlobalOptimManager.get_instance()
        version = manager.version
        places = [
            (g, i, parameter)
            for g, group in enumerate(self.param_groups)
            for i, parameter in enumerate(group["params"])
        ]
        carried = {}
        for index, (g, i, _) in enumerate(places):
            if g < len(self._slots) and i < len(self._slots[g]):
                for hint in self._slots[g][i].hints:
                    if hint.level is Level.PARAMETER:
                        carried[index] = hint
        found = manager.hints_for([parameter for _, _, parameter in places], carried)

        slots: list[list[Slot]] = [[] for _ in self.param_groups]
        shared: dict[tuple, dict[str, Any]] = {}
        for (g, i, parameter), hints in zip(places, found, strict=True):
            what = f"override for parameter {i} of group {g}, shape {tuple(parameter.shape)}"
            overrides = spec.validate_for(type(self).__name__, merge(hints), what)
            if overrides:
                self._checked(overrides, what)
                self.check({**self.param_groups[g], **overrides})
            # Equal overrides are one object, so that a step computes their scalars once.
            overrides = shared.setdefault(tuple(sorted(overrides.items())), overrides)
            slots[g].append(Slot(parameter, hints, overrides))
        self._slots, self._seen_version = slots, version

    def _current_slots(self) -> list[list[Slot]]:
        """Slots for today's groups, hints and parameters."""
        current = self._seen_version == GlobalOptimManager.get_instance().version and len(self._slots) == len(
            self.param_groups
        )
        for slots, group in zip(self._slots, self.param_groups, strict=False):
            params = group["params"]
            current = current and len(slots) == len(params)
            current = current and all(slot.parameter is p for slot, p in zip(slots, params, strict=True))
        if not current:
            self._apply_overrides()
        return self._slots

    # --- the step ------------------------------------------------------------------------------------------------------------

    @override
    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Updates every parameter that has a gradient.

        Args:
            closure: Computes the loss and the gradients; called once, with gradients enabled, before any of them is read.

        Returns:
            What the closure returned, else None.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        calls, steps = self._calls()
        for (device, scalars, grad_scale), call in calls.items():
            self._run(call, device, dict(scalars), grad_scale)
        for state, step in steps:
            state["step"] = step
        return loss

    def _calls(self) -> tuple[dict[tuple, Call], list[tuple[State, int]]]:
        """Groups parameters by their scalars. Checks and prepares everything, changes no weight."""
        calls: dict[tuple, Call] = {}
        steps: list[tuple[State, int]] = []
        memo: dict[tuple[int, int, int], tuple] = {}
        for g, (group, slots) in enumerate(zip(self.param_groups, self._current_slots(), strict=True)):
            for i, slot in enumerate(slots):
                parameter, grad = slot.parameter, slot.parameter.grad
                if grad is None:
                    continue
                self._check_grad(parameter, grad, g, i)
                state = self.state[parameter]
                step = state.get("step", 0) + 1
                key = (g, id(slot.overrides), step)
                if key not in memo:
                    config = slot.config(group)
                    scalars = tuple(self.scalars(config, step).items())
                    memo[key] = config, scalars, -1.0 if config["maximize"] else 1.0
                config, scalars, grad_scale = memo[key]
                storage.prepare(state, self.active_states(config), parameter, storage.wants_8bit(config, parameter))
                call = calls.setdefault((parameter.device, scalars, grad_scale), Call())
                call.states.append(state)
                call.grads.append(grad.contiguous())
                call.params.append(parameter if parameter.is_contiguous() else parameter.contiguous())
                if call.params[-1] is not parameter:
                    call.copies.append((parameter, call.params[-1]))
                steps.append((state, step))
        return calls, steps

    def _check_grad(self, parameter: Tensor, grad: Tensor, group: int, position: int) -> None:
        if grad.layout is torch.strided and grad.dtype in FLOATING and grad.device == parameter.device:
            return
        what = f"{type(self).__name__}: the gradient of parameter {position} of group {group}, shape {tuple(grad.shape)},"
        if grad.layout is not torch.strided:
            raise NotImplementedError(f"{what} is {grad.layout}; this version only takes dense gradients")
        raise ValueError(f"{what} is {grad.dtype} on {grad.device} for a parameter in {parameter.dtype} on {parameter.device}")

    def _run(self, call: Call, device: torch.device, scalars: dict[str, float], grad_scale: float) -> None:
        if not ops.has_kernel(self.rule, device):
            raise NotImplementedError(f"{type(self).__name__}: torch_bnb was built without kernels for {device.type} tensors")
        pairs = [storage.tensors(state, name) for name in self.states for state in call.states]
        values, absmax = zip(*pairs, strict=True)
        ops.update(self.rule, call.params, call.grads, values, absmax, scalars, grad_scale)
        torch.autograd.graph.increment_version(call.params)
        for parameter, contiguous in call.copies:
            parameter.copy_(contiguous)

    # --- checkpoints ---------------------------------------------------------------------------------------------------------

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes over groups and state; every tensor keeps its own dtype, state kept with other bits is converted.

        Args:
            state_dict: From `state_dict`. Its learning rates and the like hold from now on; how state is kept
                (``optim_bits``, ``min_8bit_size``) stays as this optimizer was told.

        Raises:
            ValueError: The groups do not match, or an entry of the state is unknown, missing or of the wrong size. The optimizer is
                then as it was.
        """
        loaded: dict[Tensor, State] = {}

        def take(_: torch.optim.Optimizer, incoming: dict[str, Any]) -> dict[str, Any]:
            loaded.update(self._restored(incoming))
            return {**incoming, "state": {}, "param_groups": self._merged_groups(incoming["param_groups"])}

        def put(_: torch.optim.Optimizer) -> None:
            self.state.update(loaded)
            self._prepare_all()

        # torch would cast every tensor of the state to its parameter's dtype, so the state goes past it: taken out after the
        # user's own pre-hooks have run, put in before their post-hooks do.
        handles = [
            self.register_load_state_dict_pre_hook(take),
            self.register_load_state_dict_post_hook(put, prepend=True),
        ]
        try:
            super().load_state_dict(state_dict)
        finally:
            for handle in handles:
                handle.remove()

    def _restored(self, incoming: Mapping[str, Any]) -> dict[Tensor, State]:
        indices = [index for group in incoming["param_groups"] for index in group["params"]]
        params = [parameter for group in self.param_groups for parameter in group["params"]]
        if len(indices) != len(params):
            raise ValueError(f"{type(self).__name__}: the checkpoint has {len(indices)} parameters, this optimizer {len(params)}")
        saved = incoming["state"]
        if strangers := saved.keys() - set(indices):
            raise ValueError(f"{type(self).__name__}: the checkpoint's state has keys that no group names: {sorted(strangers)}")
        return {
            parameter: storage.restore(saved[index], self.states, parameter, f"{type(self).__name__}, parameter {index}")
            for index, parameter in zip(indices, params, strict=True)
            if saved.get(index)
        }

    def _merged_groups(self, saved: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
        merged = []
        for index, group in enumerate(saved):
            own = self.param_groups[index] if index < len(self.param_groups) else {}
            kept = {key: own[key] for key in STORAGE_OPTIONS if key in own}
            merged.append({**({"base_lr": own["base_lr"]} if own else {}), **group, **kept})
        return merged

    def _prepare_all(self) -> None:
        for group, slots in zip(self.param_groups, self._current_slots(), strict=True):
            for slot in slots:
                if state := self.state.get(slot.parameter):
                    config = slot.config(group)
                    kept = {name: sign for name, sign in self.states.items() if name in state or storage.codes_key(name) in state}
                    storage.prepare(state, kept, slot.parameter, storage.wants_8bit(config, slot.parameter))

    @override
    def __getstate__(self) -> dict[str, Any]:
        hints = [[slot.hints for slot in slots] for slots in self._slots]
        return {**super().__getstate__(), "_hints": hints}

    @override
    def __setstate__(self, state: dict[str, Any]) -> None:
        hints = state.pop("_hints", None)
        super().__setstate__(state)
        self.defaults.pop("differentiable", None)  # torch adds it, and cls(params, **opt.defaults) must stay valid
        for group in self.param_groups:
            for key, value in self.defaults.items():
                group.setdefault(key, value)
            group.setdefault("base_lr", float(group.get("initial_lr", group["lr"])))
        if hints is not None:  # unpickled or copied: what was said of the original's parameters holds for these
            self._slots = [
                [Slot(parameter, found, {}) for parameter, found in zip(group["params"], row, strict=True)]
                for group, row in zip(self.param_groups, hints, strict=True)
            ]
        self._seen_version = -1
