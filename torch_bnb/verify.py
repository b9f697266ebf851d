"""The check after a framework's set-up: whether the optimizer that trains is the one that the user built.

Knows frameworks by the names of their classes and attributes, and imports none.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from torch_bnb.optim.base import BlockwiseOptimizer
from torch_bnb.optim.saving import orphans
from torch_bnb.overrides import GlobalOptimManager, hints
from torch_bnb.overrides.declare import declared
from torch_bnb.overrides.explain import Row, wrappers_of
from torch_bnb.overrides.names import names

_REPLACED = {
    "deepspeed": "DeepSpeed's offload puts an optimizer of its own, with other state and maybe another rule, in its "
    "place unless the DeepSpeed config says zero_force_ds_cpu_optimizer: false",
    "megatron": "Megatron-LM builds an optimizer of its own by the class's name, whatever it was given; train with "
    "FSDP2 or ZeRO instead",
    "msamp": "MS-AMP wraps optimizers in its own; use another backend for fp8, or none",
}
"""By package, what its optimizers do in place of ours."""

_FLATTENED = ("bit16_groups", "fp16_groups")
"""Where DeepSpeed's ZeRO keeps the model's parameters by group, once the groups hold flat tensors."""


class VerificationError(ValueError):
    """The optimizer does not train the model as it was told to."""


def verify(
    model: nn.Module,
    optimizer: torch.optim.Optimizer | Sequence[torch.optim.Optimizer],
    before: Sequence[Row] | None = None,
    beside: Sequence[torch.optim.Optimizer] = (),
) -> None:
    """Checks, after whatever a framework did, that an optimizer is ours, whole, and does what hints say.

    Its class is one of torch_bnb; every trainable parameter of the model is in it exactly once, and nothing else; the
    model is registered, if modules of it declare hints; no state belongs to parameters that are gone; every hint that
    held before holds.

    Args:
        model: The model as it is trained, wrapped or not.
        optimizer: Its optimizer, or several that share its parameters; frameworks' wrappers are looked through.
        before: What `GlobalOptimManager.explain` said of the optimizers, one after the other, before the set-up. None:
            what has become of hints is not checked.
        beside: Optimizers of other libraries that hold the rest of the model's parameters.

    Raises:
        VerificationError: Something is wrong; the likely cause is named, and what avoids it.

    Example:
        >>> import torch, torch_bnb as bnb
        >>> model = torch.nn.Linear(64, 64)
        >>> bnb.verify(model, bnb.optim.AdamW8bit(model.parameters()))
        >>> try:
        ...     bnb.verify(model, bnb.optim.AdamW8bit([model.weight]))
        ... except bnb.VerificationError as error:
        ...     print(str(error).partition(";")[0])
        AdamW8bit lacks 1 of 2 trainable parameters: bias
    """
    given = optimizer if isinstance(optimizer, (list, tuple)) else [optimizer]
    chains = [list(wrappers_of(outer)) for outer in given]
    for chain in chains:
        _check_class(chain[-1])
    held, flat = [], False
    for chain in [*chains, *([other] for other in beside)]:
        by_engine = [getattr(link, name) for link in chain for name in _FLATTENED if hasattr(link, name)]
        groups = by_engine[0] if by_engine else [group["params"] for group in chain[-1].param_groups]
        held += [parameter for group in groups for parameter in group]
        flat |= bool(by_engine)
    what = " and ".join(type(chain[-1]).__name__ for chain in chains)
    _check_coverage(model, held, what)
    if flat:
        _refuse_hints(before or (), what)
        return
    _check_declarations(model)
    for chain in chains:
        _check_state(chain[-1])
    if before is not None:
        manager = GlobalOptimManager.get_instance()
        _check_hints(before, [row for chain in chains for row in manager.explain(chain[-1])])


def innermost(optimizer: Any) -> Any:
    """The optimizer inside a framework's wrappers."""
    return list(wrappers_of(optimizer))[-1]


def _check_class(inner: Any) -> None:
    if isinstance(inner, BlockwiseOptimizer):
        return
    cls = type(inner)
    package = cls.__module__.partition(".")[0]
    cause = _REPLACED.get(package, "a framework has replaced it, or it never was one of torch_bnb")
    raise VerificationError(f"the optimizer is a {cls.__module__}.{cls.__name__}, none of torch_bnb: {cause}")


def _check_coverage(model: nn.Module, held: Sequence[Tensor], what: str) -> None:
    first: dict[int, str] = {}
    for name, parameter in names(model):
        if parameter.requires_grad:
            first.setdefault(id(parameter), name)
    times = Counter(map(id, held))
    known = {id(parameter) for parameter in model.parameters()}
    if repeated := [first.get(i, "a parameter of no model") for i, count in times.items() if count > 1]:
        raise VerificationError(
            f"{what} holds {_some(repeated)} more than once: an optimizer that was built for a model on the meta "
            "device, whose parameters FSDP2 cannot tell apart, ends like this; build the model on a real device "
            "(fsdp_cpu_ram_efficient_loading saves the memory)"
        )
    missing = [name for i, name in first.items() if i not in times]
    foreign = [parameter for parameter in held if id(parameter) not in known]
    if foreign:
        raise VerificationError(
            f"{what} holds {len(foreign)} parameters that the model does not have, and lacks {len(missing)} of its "
            f"{len(first)} trainable ones: {_why_replaced(model, foreign)}"
        )
    if missing:
        raise VerificationError(
            f"{what} lacks {len(missing)} of {len(first)} trainable parameters: {_some(missing)}; "
            "add them, or freeze them with requires_grad_(False)"
        )


def _why_replaced(model: nn.Module, foreign: Sequence[Tensor]) -> str:
    ours = list(model.parameters())
    if any(name.rpartition(".")[2].startswith("_flat_param") for name, _ in model.named_parameters()):
        return (
            "FSDP1 has flattened them, and nothing would be trained; set fsdp_use_orig_params: true, or prepare the "
            "model before the optimizer is built"
        )
    if any(map(is_traceable_wrapper_subclass, ours)) and not any(map(is_traceable_wrapper_subclass, foreign)):
        return "they were sharded after the optimizer was built; prepare model and optimizer together"
    if any(parameter.is_meta for parameter in foreign):
        return "the optimizer was built while the model was on the meta device; build it after the model is real"
    return "they were replaced after the optimizer was built, or it was built for another model"


def _check_declarations(model: nn.Module) -> None:
    """What classes declare, and what was said of a module that was pickled, holds once it is known.

    Frameworks' plugins see to that.
    """
    known = {id(module) for module in hints.known_modules()}
    for module in (module for module in model.modules() if id(module) not in known):
        said = hints.notes(module)
        if declared(module) or (said and said.hints):
            has = "declares optim_overrides" if declared(module) else "was pickled with overrides"
            raise VerificationError(
                f"{type(module).__name__} {has}, which hold for registered models only; call "
                "GlobalOptimManager.get_instance().register_parameters(model)"
            )


def _check_state(inner: BlockwiseOptimizer) -> None:
    inner.configurations()  # state goes along with parameters whose shards have taken their places
    if lost := orphans(inner):
        raise VerificationError(
            f"{type(inner).__name__} has state for {len(lost)} parameters that are gone: it had stepped or loaded "
            "before a framework replaced its parameters, and would start from nothing; "
            "prepare first, then load"
        )


def _refuse_hints(before: Sequence[Row], what: str) -> None:
    hinted = [row.name for row in before if row.overrides]
    if hinted:
        raise VerificationError(
            f"{what}: DeepSpeed flattens parameters group by group, so hints about {_some(hinted)} cannot hold; give "
            "them as groups: torch_bnb.param_groups(model, overrides=...)"
        )


def _check_hints(before: Sequence[Row], after: Sequence[Row]) -> None:
    if len(before) != len(after):
        raise VerificationError(f"the optimizer held {len(before)} parameters and now holds {len(after)}")
    lost = [
        f"{old.name} ({', '.join(f'{key}={value!r}' for key, value in old.overrides.items())})"
        for old, new in zip(before, after, strict=True)
        if old.overrides != new.overrides
    ]
    if lost:
        raise VerificationError(
            f"hints no longer hold for {_some(lost)}: the parameters were replaced, and the hints were given on the "
            "objects; register the model (GlobalOptimManager.register_parameters) or hint by name (override_named)"
        )


def _some(found: Sequence[str]) -> str:
    more = f" and {len(found) - 4} more" if len(found) > 4 else ""
    return ", ".join(found[:4]) + more
