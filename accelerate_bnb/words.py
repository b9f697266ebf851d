"""What plugins say of a model, and how long it holds: until another one has an optimizer for the same parameters.

Knows no Accelerator.
"""

import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from accelerate.utils import extract_model_from_parallel
from torch import Tensor, nn
from torch.optim.optimizer import Optimizer

from torch_bnb import check_overrides
from torch_bnb.optim import GlobalOptimManager

if TYPE_CHECKING:
    from accelerate_bnb.plugin import BnbOptimizerPlugin

SOURCE = "BnbOptimizerPlugin"
"""Stands before the patterns of plugins in tables and errors."""


@dataclass
class _Made:
    by: "BnbOptimizerPlugin"
    model: "weakref.ref[nn.Module] | None"
    """Where the plugin's hints are said; None: another optimizer has taken some of the parameters."""


_made: "weakref.WeakKeyDictionary[Optimizer, _Made]" = weakref.WeakKeyDictionary()
"""Of optimizers that plugins made, the oldest first."""


def remember(optimizer: Optimizer, plugin: "BnbOptimizerPlugin", model: nn.Module) -> None:
    """That a plugin made an optimizer for a model."""
    _made[optimizer] = _Made(plugin, weakref.ref(_unwrapped(model)))


def maker(optimizer: Optimizer) -> "BnbOptimizerPlugin | None":
    """The plugin that made an optimizer, if one did."""
    made = _made.get(optimizer)
    return made and made.by


def retire(params: Any) -> None:
    """Ends what plugins say for optimizers that have one of these parameters: another optimizer is to train them.

    Args:
        params: Parameters, named ones or groups.
    """
    taken = _addresses(params)
    for optimizer, made in list(_made.items()):
        if not taken.isdisjoint(_addresses(optimizer.param_groups)):
            made.model = None


def speakers(model: nn.Module) -> "list[BnbOptimizerPlugin]":
    """The plugins whose optimizers train parameters of a model, the one that made the oldest first."""
    model = _unwrapped(model)
    own = _addresses(model.parameters())
    return [
        made.by
        for optimizer, made in list(_made.items())
        if made.model is not None and made.model() is model and not own.isdisjoint(_addresses(optimizer.param_groups))
    ]


def say(plugin: "BnbOptimizerPlugin", model: nn.Module, only: bool) -> None:
    """Makes a model known, with what its modules declare and what a plugin and the model's other speakers say.

    Args:
        plugin: The one that speaks now.
        model: In the wrapper in which it trains, or not: names are its own.
        only: What earlier plugins said is taken back, unless their optimizers still train the model, see `speakers`.

    Raises:
        OverrideError: A hint names an unknown option or no parameter.
    """
    model = _unwrapped(model)
    manager = GlobalOptimManager.get_instance()
    manager.register_parameters(model, plugin.embeddings_32bit)
    together = speakers(model)
    if plugin not in together:
        together.append(plugin)
    patterns = _patterns(together)
    if only or patterns:
        manager.say_named(model, patterns, all(one.strict for one in together), SOURCE, only)


def reusable(params: Iterable[Any]) -> Iterable[Any]:
    """Parameters or groups that can be read twice; a group's generator becomes a list in its place, as in torch."""
    if isinstance(params, Iterator):
        params = list(params)
    if isinstance(params, Sequence):
        for group in params:
            if isinstance(group, dict) and isinstance(group.get("params"), Iterator):
                group["params"] = list(group["params"])
    return params


def _patterns(plugins: "Sequence[BnbOptimizerPlugin]") -> dict[Any, dict[str, Any]]:
    """What all say; where two speak of one option under one pattern, the later."""
    patterns: dict[Any, dict[str, Any]] = {}
    for plugin in plugins:
        for key, config in check_overrides(plugin.overrides or {}).items():
            patterns[key] = {**patterns.get(key, {}), **config}
    return patterns


def _addresses(params: Any) -> set[int]:
    if isinstance(params, Tensor):
        return {id(params)}
    if isinstance(params, Mapping):
        return _addresses(params.get("params"))
    if isinstance(params, Iterable) and not isinstance(params, str):
        return set().union(*map(_addresses, params))
    return set()


def _unwrapped(model: nn.Module) -> nn.Module:
    return extract_model_from_parallel(model, keep_torch_compile=False)
