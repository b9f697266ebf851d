"""Every optimizer of torch_bnb is this class with a rule's names and numbers filled in.

Keeps groups and checkpoints. What a rule computes is in csrc/rules.h, its Python half in optim/rules.py; how state is
stored in optim/state.py; overrides in optim/slots.py; which parameters go into which call in optim/plan.py, in
optim/capture.py where a CUDA graph is to repeat the step, in optim/making.py where none does and only state is made.
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from itertools import chain, repeat
from operator import itemgetter
from typing import Any, ClassVar

import torch
from torch.nn.parameter import is_lazy
from torch.optim.optimizer import ParamsT
from typing_extensions import override

from torch_bnb.checkpoint import portable
from torch_bnb.optim import host, options, saving, sharding
from torch_bnb.optim import state as storage
from torch_bnb.optim.adoption import adopt
from torch_bnb.optim.agreement import check_agreement
from torch_bnb.optim.capture import CapturedPlan
from torch_bnb.optim.fitness import refuse_dtypes
from torch_bnb.optim.loading import load
from torch_bnb.optim.making import StatePlan, Target, plan_of
from torch_bnb.optim.naming import renew_names
from torch_bnb.optim.options import CommonOptions
from torch_bnb.optim.plan import Plan
from torch_bnb.optim.slots import Place, Slot, SlotTable, in_force, refuse_repeated, walk
from torch_bnb.overrides import OverrideError, registry, spec
from torch_bnb.overrides.hints import Hint, identity, next_order, taken_over
from torch_bnb.overrides.resolve import winners

AnyPlan = Plan | CapturedPlan | StatePlan

_UNSEEN = object()


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
    optional: ClassVar[frozenset[str]] = frozenset()
    """States that some configurations do without, and that may begin at any step."""
    fixed_bits: ClassVar[int | None] = None
    """What the class's name says of ``optim_bits``, 8 or 32."""
    layerwise: ClassVar[bool] = False
    """Whether it needs norms over the whole tensor."""
    _plan: AnyPlan | None = None
    _agreed = False
    _has_shards = False
    _seen_options: Sequence[tuple[Any, ...]] = ()
    """Of each group, as they were when they were checked last."""
    _checkpoint_format = "native"

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "options" in vars(cls):
            spec.register(cls.options)
        if "rule" in vars(cls):
            portable.register(cls.rule, cls.states, cls.options, cls.optional)
        cls.__doc__ = (cls.__doc__ or "").replace("{common}", options.DOC)
        cls.__signature__ = options.full_signature(cls)

    def __init__(self, params: ParamsT, rule_options: dict[str, Any], common: CommonOptions) -> None:
        if unknown := common.keys() - options.DEFAULTS.keys():
            raise TypeError(options.unexpected(type(self), sorted(unknown)[0]))
        if isinstance(params, torch.nn.Module):
            name = type(params).__name__
            raise TypeError(f"{type(self).__name__}: expected parameters, got a {name}; give it model.parameters()")
        self._slots = SlotTable()
        defaults = {**rule_options, **options.DEFAULTS, **common}
        super().__init__(params, options.check(defaults, self.options, type(self).__name__))
        self._update_slots()

    @classmethod
    def leaves_bits_open(cls) -> bool:
        """Whether ``optim_bits`` is for whoever builds one to say: its name does not, and its constructor takes it."""
        return cls.fixed_bits is None and "optim_bits" in cls.__signature__.parameters

    def scalars(self, config: Mapping[str, Any], step: int, fresh: bool) -> dict[str, float]:
        """The rule's scalars, by the names of its kScalars.

        Args:
            config: The options in force; ``optim_bits`` is what the parameter's state has.
            step: The parameter's, from 1.
            fresh: It has no state yet.
        """
        raise NotImplementedError

    def active_states(self, config: Mapping[str, Any]) -> Mapping[str, bool]:
        """The states that this configuration needs; the others read as zero and are not kept."""
        return self.states

    def decays(self, config: Mapping[str, Any]) -> Mapping[str, float]:
        """By state, the share of it that a step keeps. Near 1, rounding must not lose small changes."""
        return {}

    def initial(self, config: Mapping[str, Any]) -> float:
        """What new states are filled with."""
        return 0.0

    def check(self, config: Mapping[str, Any]) -> None:
        """Raises ValueError for options that are impossible together."""

    @override
    def add_param_group(self, param_group: dict[str, Any]) -> None:
        index = len(self.param_groups)
        ours = "base_lr" in param_group  # it was in one of our optimizers before, and every option in it is filled in
        explicit_bits = "optim_bits" in param_group and not ours
        options.refuse_idle(param_group, type(self), f"{type(self).__name__}, group {index}")
        given = dict(param_group)  # torch fills it in
        super().add_param_group(param_group)
        group = self.param_groups[index]
        what = f"{type(self).__name__}, group {index}"
        try:
            if not ours:
                self._refuse_own_capturable(group, what)
            group.update(options.check(group, self.options, what))
            try:
                self.check(group)
            except ValueError as error:
                raise ValueError(f"{what}: {error}") from None
            refuse_dtypes(group["params"], what)
            group.setdefault("base_lr", float(group["lr"]))
            if explicit_bits:  # stronger than the default that embeddings keep 32 bits
                group.setdefault("explicit_bits", True)
            refuse_repeated([(index, i) for i in range(len(group["params"]))], group["params"])
        except Exception:
            del self.param_groups[index]
            param_group.clear()
            param_group.update(given)
            raise

    def _refuse_own_capturable(self, group: Mapping[str, Any], what: str) -> None:
        if group["capturable"] != self.defaults["capturable"]:
            raise ValueError(f"{what}: capturable={group['capturable']!r}: is the whole optimizer's to say")

    @property
    def _step_supports_amp_scaling(self) -> bool:
        """Read by torch's GradScaler: whether `step` itself heeds ``grad_scale`` and ``found_inf`` on the device."""
        return self.defaults["capturable"]

    @property
    def checkpoint_format(self) -> str:
        """What `state_dict` gives: "native", or "portable": every state in float32 and of its parameter's shape.

        Portable is for what gathers and shards state without knowing of 8 bits, FSDP1 above all. Loading it gives the
        same codes and absmax again.
        """
        return self._checkpoint_format

    @checkpoint_format.setter
    def checkpoint_format(self, name: str) -> None:
        if name not in saving.FORMATS:
            raise ValueError(f"checkpoint_format={name!r}: expected one of {', '.join(saving.FORMATS)}")
        self._checkpoint_format = name

    def _update_slots(self) -> list[list[Slot]]:
        self._refuse_bare_groups()
        before = self._slots.rows
        rows = self._slots.update(self.param_groups, self._merged)
        if rows is not before and self.state:
            try:
                adopt(self.state, before, self.param_groups, self.states)
            except ValueError:
                self._slots.go_back(before)  # or the next step would start from nothing
                raise
        if rows is not before:
            self._has_shards = self._holds_shards()
            renew_names(self.param_groups, before, rows)
            saving.warn_of_orphans(self)
        return rows

    def _holds_shards(self) -> bool:
        return any(sharding.is_sharded(parameter) for group in self.param_groups for parameter in group["params"])

    def _merged(self, hints: Sequence[Hint], group: Mapping[str, Any], parameter: str) -> dict[str, Any]:
        """What hints for one parameter add up to, checked; errors name the parameter and who gave the hint."""
        if not (winning := winners(hints)):
            return {}

        def what(*keys: str) -> str:
            sources = dict.fromkeys(winning[key].source for key in keys)
            return f"override for {parameter}, by {' and '.join(sources)}"

        overrides = {key: hint.config[key] for key, hint in winning.items()}
        checked = spec.validate_for(type(self).__name__, self.options, overrides, what)
        try:
            self.check({**group, **checked})
        except ValueError as error:
            if self._goes_together(group):
                raise OverrideError(f"{what(*checked)}: {error}") from None
        return checked

    def _goes_together(self, group: Mapping[str, Any]) -> bool:
        """Whether a group's options do, which a schedule may have moved since they were checked."""
        try:
            self.check(group)
        except ValueError:
            return False
        return True

    def configurations(self, hints: Mapping[int, list[Hint]] | None = None) -> list[Place]:
        """Everything that holds for each parameter now, group by group.

        Args:
            hints: By ``id(parameter)``, hints to assume in place of those in force.
        """
        names = registry.parameter_names()
        places = []
        for _, g, i, parameter, slot in walk(self.param_groups, self._update_slots()):
            group = self.param_groups[g]
            own = group["param_names"][i] if "param_names" in group else names.get(id(parameter))
            if hints is not None:
                assumed = in_force(hints[id(parameter)], group)
                slot = Slot(slot.identity, assumed, self._merged(assumed, group, own or f"parameter {i} of group {g}"))
            config = slot.config(group)
            if is_lazy(parameter):
                raise ValueError(
                    f"{own or f'parameter {i} of group {g}'} belongs to a lazy module and has no shape yet; run a "
                    "batch through the model first"
                )
            places.append(
                Place(
                    name=own or f"group {g}, parameter {i}",
                    group=g,
                    position=i,
                    parameter=parameter,
                    hints=slot.hints,
                    overrides=slot.overrides,
                    config=config,
                    states=self.active_states(config),
                    bits=8 if storage.wants_8bit(config, parameter) else 32,
                )
            )
        return places

    @override
    @torch._disable_dynamo  # within a function that torch.compile compiles it runs as it is, like add_param_group
    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Updates every parameter that has a gradient.

        Args:
            closure: Computes the loss and the gradients; called once, with gradients enabled, before any is read.

        Returns:
            What the closure returned, else None.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        plan, self._plan = self._plan, None  # not kept if anything goes wrong
        self._check_groups()
        rows = self._update_slots()
        if not self._agreed:
            check_agreement(self)
        if self._has_shards:
            sharding.lay_out_grads(chain.from_iterable(group["params"] for group in self.param_groups))
        if plan is None or not plan.renew(self, rows):
            plan = self._new_plan(rows, plan)
        plan.run(self)
        self._plan = plan
        return loss

    @torch._disable_dynamo
    @torch.no_grad()
    def make_state(self) -> None:
        """Makes the state of every trainable parameter that has none: no parameter moves and no step is counted.

        Without it the first step makes state; this is for code that loads, shards or measures what is there. Parameters
        without elements, such as FSDP1's shards that are elsewhere, keep none.

        Raises:
            ValueError: A parameter cannot be stepped as it is; it is named. Nothing has been made then.
            NotImplementedError: The same, where a later version may.

        Example:
            >>> import torch
            >>> import torch_bnb as bnb
            >>> weight = torch.nn.Parameter(torch.ones(8192))
            >>> optimizer = bnb.optim.AdamW([weight], optim_bits=8)
            >>> optimizer.make_state()
            >>> sorted(optimizer.state[weight]), optimizer.state[weight]["step"]
            (['exp_avg_absmax', 'exp_avg_codes', 'exp_avg_sq_absmax', 'exp_avg_sq_codes', 'step'], 0)
        """
        self._check_groups()
        places = walk(self.param_groups, self._update_slots())
        targets = [
            Target(g, i, p, slot)
            for _, g, i, p, slot in places
            if p.requires_grad and p.numel() and not self.state.get(p)
        ]
        StatePlan(self, targets).run(self)

    def _refuse_bare_groups(self) -> None:
        """Raises ValueError for a group that was put into `param_groups` by hand, so that nothing filled it in."""
        for index, group in enumerate(self.param_groups):
            if not (self.defaults.keys() <= group.keys() and "base_lr" in group):
                missing = next(key for key in (*self.defaults, "base_lr") if key not in group)
                raise ValueError(
                    f"{type(self).__name__}, group {index} lacks {missing!r}: a group that is put into param_groups by "
                    "hand is not filled in; use add_param_group"
                )

    def _check_groups(self) -> None:
        """Checks what anybody has written into groups since the last step; tensors are not asked for their values."""
        self._refuse_bare_groups()
        known = (*spec.COMMON, *self.options, *options.CONSTRUCTOR_ONLY)
        values_of = itemgetter(*known)
        seen, self._seen_options = self._seen_options, []
        for index, group in enumerate(self.param_groups):
            before = seen[index] if index < len(seen) else repeat(_UNSEEN)
            now = values_of(group)
            changed = {key: new for key, new, old in zip(known, now, before, strict=False) if new is not old}
            written = {key: value for key, value in changed.items() if not isinstance(value, torch.Tensor)}
            if written:
                what = f"{type(self).__name__}, group {index}"
                group.update(options.check(written, self.options, what))
                self._refuse_own_capturable(group, what)
                now = values_of(group)
            self._seen_options.append(now)

    def _new_plan(self, rows: list[list[Slot]], before: AnyPlan | None) -> AnyPlan:
        plan: AnyPlan | None = plan_of(self, rows)
        if plan is None and self.defaults["capturable"]:
            plan = CapturedPlan(self, rows)
        elif plan is None:
            plan = Plan(self, rows, before if isinstance(before, Plan) else None)
        if not (self._agreed or plan) and (flat := sharding.flat_gradients()):
            raise ValueError(
                f"{type(self).__name__}: none of its parameters has a gradient, but FSDP's flat parameters have (the "
                f"first of shape {flat[0]}): it holds those from before the model was wrapped. Build the optimizer "
                "after FSDP, or wrap with use_orig_params=True"
            )
        if not self._agreed:
            self._warn_of_cut_blocks()
        self._agreed = True
        return plan

    def _warn_of_cut_blocks(self) -> None:
        if not self._has_shards:
            return
        sharded = (place for place in self.configurations() if sharding.is_sharded(place.parameter))
        cut = [
            f"{place.name}, shape {tuple(place.parameter.shape)}"
            for place in sharded
            if place.bits == 32 and storage.asks_for_8bit(place.config, place.parameter)
        ]
        if cut:
            warnings.warn(
                f"{type(self).__name__}: {len(cut)} parameters keep 32-bit state, because their shards would cut its "
                f"blocks or their rows are short: {'; '.join(cut[:3])}{'; ...' if len(cut) > 3 else ''}",
                stacklevel=4,
            )

    @override
    def state_dict(self) -> dict[str, Any]:
        """Groups and state as plain tensors, numbers, lists and dicts, in the `checkpoint_format`.

        Raises:
            ValueError: There is state of parameters that are in no group any more, or state that is not the
                optimizer's own.
        """
        self._update_slots()
        saving.refuse_orphans(self)
        saving.refuse_foreign(self)
        host.settle(self.state)
        state_dict = saving.plain(super().state_dict())
        return saving.portable(state_dict, self.states) if self.checkpoint_format == "portable" else state_dict

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes over groups and state; every tensor keeps its own dtype, state kept with other bits is converted.

        Args:
            state_dict: From `state_dict`, or that of ``torch.optim``, bitsandbytes or torchao for the same rule. Its
                learning rates and the like hold from now on; how state is kept (``optim_bits``, ``min_8bit_size``)
                stays as this optimizer was told.

        Raises:
            ValueError: The groups do not match, or an entry of the state is unknown, missing, or of the wrong type or
                shape. The optimizer is then as it was.
        """
        load(self, state_dict, super().load_state_dict)

    @override
    def __getstate__(self) -> dict[str, Any]:
        own = {"_checkpoint_format": self._checkpoint_format}
        hints = [[slot.hints for slot in row] for row in self._update_slots()]
        host.settle(self.state)
        return {**super().__getstate__(), **own, "_hints": hints}

    @override
    def __setstate__(self, state: dict[str, Any]) -> None:
        """Called by torch after unpickling, copying and loading."""
        hints = state.pop("_hints", None)
        super().__setstate__(state)
        self.defaults.pop("differentiable", None)  # torch adds it, and cls(params, **opt.defaults) must stay valid
        for group in self.param_groups:
            for key, value in self.defaults.items():
                group.setdefault(key, value)
            group.setdefault("base_lr", float(group.get("initial_lr", group["lr"])))
        if hints is not None:  # unpickled or copied: what was said of the original's parameters holds for these
            next_order(1 + max((group.get("merged_hints", 0) for group in self.param_groups), default=0))
            rows = zip(self.param_groups, hints, strict=True)
            self._slots = SlotTable(
                [list(map(Slot, map(identity, group["params"]), map(taken_over, row))) for group, row in rows]
            )
        self._has_shards = self._holds_shards()
