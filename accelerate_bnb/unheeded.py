"""What a training does not do although a plugin says so, or its user may think so: sentences for warnings."""

from typing import Any

from accelerate_bnb import words
from accelerate_bnb.plugin import BnbOptimizerPlugin
from torch_bnb import report
from torch_bnb.optim import BlockwiseOptimizer

_INSTEAD = "build it with plugin.create_optimizer(model), or give a BnbDummyOptim() in its place"


def of_another_library(name: str) -> str:
    """Of an optimizer that no plugin has a say in."""
    return f"prepare: {name} is none of torch_bnb and trains as it is, not what the plugin says; {_INSTEAD}"


def as_built(optimizer: BlockwiseOptimizer, plugin: BnbOptimizerPlugin) -> str | None:
    """Of an optimizer that the plugin would have made otherwise; None if it says nothing else."""
    cls = plugin.optimizer_class
    other = {
        name: value
        for name, value in _said(plugin).items()
        if value not in [*_built_with(optimizer, name), optimizer.defaults.get(name)]
    }
    if not other and (not plugin.names_optimizer() or cls.rule == optimizer.rule):
        return None
    mine = [f"{name}={' and '.join(map(repr, values))}" for name in other if (values := _built_with(optimizer, name))]
    theirs = [*([cls.__name__] if plugin.names_optimizer() else []), *(f"{name}={other[name]!r}" for name in other)]
    return (
        f"prepare: {type(optimizer).__name__}{' with ' if mine else ''}{', '.join(mine)} trains as it was built, not "
        f"what the plugin says ({', '.join(theirs)}); {_INSTEAD}"
    )


def full_precision(optimizer: BlockwiseOptimizer, plugin: BnbOptimizerPlugin) -> str | None:
    """Of an optimizer none of whose state is in 8 bits although some could be; None if 32 were asked for."""
    name, memory = type(optimizer).__name__, report(optimizer)
    by_hints = any(group["optim_bits"] == 8 for group in optimizer.param_groups)
    by_plugin = words.maker(optimizer) is not None or _said(plugin).get("optim_bits") == 32
    if optimizer.fixed_bits == 32 or (by_plugin and not by_hints):
        return None
    if any(row.bits == 8 for row in memory.rows) or memory.total.state_8bit == memory.total.planned:
        return None
    why = "hints keep it there" if by_hints else f"set optim_bits=8, or build {name}32bit if that is meant"
    return f"prepare: {memory.headline}; {why}"


def _said(plugin: BnbOptimizerPlugin) -> dict[str, Any]:
    """The options that a plugin was given, by its optimizer's name too."""
    said, cls = plugin.given_options(), plugin.optimizer_class
    if cls.fixed_bits is not None:
        said["optim_bits"] = cls.fixed_bits
    if cls.__name__.startswith("Paged"):
        said["state_device"] = "cpu"
    return {name: _plain(value) for name, value in said.items()}


def _built_with(optimizer: BlockwiseOptimizer, name: str) -> list[Any]:
    """An option's values in the groups, the rate before schedulers."""
    key = "base_lr" if name == "lr" else name
    return list(dict.fromkeys(_plain(group[key]) for group in optimizer.param_groups if key in group))


def _plain(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
