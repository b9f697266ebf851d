"""Parameter groups in which overrides are explicit: for engines that see groups and not parameters."""

from collections.abc import Mapping
from typing import Any

from torch import nn

from torch_bnb.overrides import GlobalOptimManager, OverrideError, OverrideSpec, registry
from torch_bnb.overrides.hints import next_order
from torch_bnb.overrides.names import Key
from torch_bnb.overrides.resolve import merge


def param_groups(
    model: nn.Module,
    overrides: Mapping[Key, OverrideSpec] | None = None,
    weight_decay: float | None = None,
    lr: float | None = None,
    embeddings_32bit: bool | None = None,
) -> list[dict[str, Any]]:
    """The trainable parameters of a model, in one group per set of options, with their names.

    An optimizer applies overrides by parameter and leaves groups alone; use this where a framework flattens parameters
    group by group (DeepSpeed), or where groups are wanted.

    Args:
        model: Becomes known to the `GlobalOptimManager`; all hints about its parameters count, those of its classes
            too.
        overrides: Patterns over its names to options, as in `GlobalOptimManager.override_named`, for these groups only.
        weight_decay: For parameters with two dimensions or more; biases and norms get 0. None leaves it to the
            optimizer.
        lr: The main rate. Needed where a hint says ``lr_scale``.
        embeddings_32bit: As in `GlobalOptimManager.register_parameters`.

    Returns:
        Groups as ``torch.optim`` takes them: ``params`` holds (name, parameter) pairs, a tied parameter once. Those
        with the fewest options of their own come first. Hints given so far are in the groups and do not apply again;
        later ones do.

    Raises:
        TypeError: The model is none.
        OverrideError: A pattern fits no parameter, an option is unknown or impossible, or cannot be a group's.

    Example:
        >>> import torch, torch_bnb as bnb
        >>> model = torch.nn.ModuleDict({"embed": torch.nn.Embedding(100, 64), "head": torch.nn.Linear(64, 100)})
        >>> groups = bnb.param_groups(model, overrides={"head.*": {"lr": 1e-4}}, weight_decay=0.1)
        >>> [(g["params"][0][0], g["weight_decay"], g.get("lr"), g.get("optim_bits")) for g in groups]
        [('embed.weight', 0.1, None, 32), ('head.weight', 0.1, 0.0001, None), ('head.bias', 0.0, 0.0001, None)]
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"param_groups: expected an nn.Module, got {type(model).__name__}")
    GlobalOptimManager.get_instance().register_parameters(model, embeddings_32bit)
    groups: dict[tuple, dict[str, Any]] = {}
    merged = next_order()
    for name, parameter, hints in registry.named_hints(model, overrides):
        if not (parameter.requires_grad and parameter.is_floating_point()):
            continue
        options = {} if weight_decay is None else {"weight_decay": weight_decay if parameter.dim() > 1 else 0.0}
        options |= _as_group(merge(hints), lr, name)
        key = tuple(sorted(options.items()))
        groups.setdefault(key, {"params": [], **options, "merged_hints": merged})["params"].append((name, parameter))
    return sorted(groups.values(), key=lambda group: len(group))


def _as_group(config: dict[str, Any], lr: float | None, name: str) -> dict[str, Any]:
    config = dict(config)
    if not config.pop("lr_follows_schedule", True):
        raise OverrideError(
            f"{name}: lr_follows_schedule=False cannot be said of a group, whose rate the schedule sets"
        )
    scale = config.pop("lr_scale", None)
    if scale is not None:
        if (base := config.get("lr", lr)) is None:
            raise OverrideError(f"{name}: lr_scale={scale} needs the rate that it scales: param_groups(..., lr=...)")
        config["lr"] = base * scale
    return config
