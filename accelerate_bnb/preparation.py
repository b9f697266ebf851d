"""`prepare`: Accelerate's own, with placeholders made real before and the result verified after."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator, PartialState
from accelerate.logging import get_logger
from accelerate.utils.deepspeed import DummyScheduler  # importable without DeepSpeed there
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.optimizer import Optimizer
from typing_extensions import override

from accelerate_bnb import settings, unheeded, words
from accelerate_bnb.engines import Engine, engine_of
from accelerate_bnb.fsdp1 import make_loadable
from accelerate_bnb.placeholder import BnbDummyOptim
from accelerate_bnb.plugin import BnbOptimizerPlugin, checked
from torch_bnb import check_agreement, report, verify
from torch_bnb.optim import BlockwiseOptimizer, GlobalOptimManager

logger = get_logger(__name__)


def prepare(
    accelerator: Accelerator,
    *objects: Any,
    plugin: BnbOptimizerPlugin | None = None,
    device_placement: Sequence[bool] | None = None,
) -> Any:
    """`Accelerator.prepare` for any Accelerator, with an optimizer of torch_bnb.

    Registers the models before Accelerate moves them, puts the real optimizer in the place of every `BnbDummyOptim`,
    calls `Accelerator.prepare`, and checks with `torch_bnb.verify` that the optimizers train as they were built.

    Args:
        accelerator (`Accelerator`):
            The script's own, or the one of trl or diffusers.
        *objects:
            As for `Accelerator.prepare`.
        plugin (`BnbOptimizerPlugin`, *optional*):
            By default the one of a `BnbAccelerator`, else one from the environment.
        device_placement (`Sequence[bool]`, *optional*):
            As for `Accelerator.prepare`.

    Returns:
        The same objects in the same order, prepared; a single one not in a tuple.

    Raises:
        VerificationError: The engine replaces the optimizer, or the optimizer does not train the whole model as hints
            say. The message names the cause, and the setting that avoids it.
        TypeError: `accelerator` is no Accelerator, `plugin` is no plugin, or a plugin is among the objects.
        ValueError: A hint is impossible, or a placeholder does not say which of several models it is for.
    """
    if not hasattr(accelerator, "prepare"):
        raise TypeError(f"prepare: expected an Accelerator before the objects, got {type(accelerator).__name__}")
    if isinstance(accelerator, BnbAccelerator) and plugin is None:
        return accelerator.prepare(*objects, device_placement=device_placement)
    if isinstance(accelerator, BnbAccelerator):
        return _prepare(accelerator, super(BnbAccelerator, accelerator).prepare, objects, plugin, device_placement)
    return _prepare(accelerator, accelerator.prepare, objects, plugin, device_placement)


def _prepare(
    accelerator: Accelerator,
    framework: Callable[..., Any],
    objects: Sequence[Any],
    plugin: BnbOptimizerPlugin | None,
    device_placement: Sequence[bool] | None,
) -> Any:
    """`prepare`, where `framework` is Accelerate's own and `plugin` what the user gave."""
    given = checked(plugin) is not None
    plugin = plugin or BnbOptimizerPlugin()
    if any(isinstance(item, BnbOptimizerPlugin) for item in objects):
        raise TypeError("prepare: a plugin is no object to prepare; give it as prepare(..., plugin=plugin)")
    models = [item for item in objects if isinstance(item, nn.Module)]
    concerned = any(isinstance(item, (BlockwiseOptimizer, BnbDummyOptim)) for item in objects)
    if concerned and not models:
        models = list(accelerator._models)
    optimizers = [item for item in objects if isinstance(item, Optimizer) and not isinstance(item, BnbDummyOptim)]
    held = [getattr(item, "optimizer", item) for item in optimizers]
    _register(models, held, plugin, given)
    if not concerned:
        others = [type(item).__name__ for item in held if not isinstance(item, BlockwiseOptimizer)]
        if others and (given or settings.from_environment()):
            _warn(unheeded.of_another_library(others[0]), stacklevel=4)
        return framework(*objects, device_placement=device_placement)
    engine = engine_of(accelerator)
    makers = [(item, words.maker(item)) for item in objects if isinstance(item, BlockwiseOptimizer)]
    beside = any(maker == plugin for _, maker in makers)  # then those of other plugins are meant to be others
    for optimizer, maker in makers:
        if maker is None or (given and not beside):
            _warn(unheeded.as_built(optimizer, plugin), stacklevel=4)
    placement = [None] * len(objects) if device_placement is None else list(device_placement)
    with _taken_out_if_it_fails(accelerator):
        made = _made_and_checked(engine, framework, objects, models, plugin, placement)
    return tuple(made) if len(made) > 1 else made[0]


@contextmanager
def _taken_out_if_it_fails(accelerator: Accelerator) -> Iterator[None]:
    """Leaves nothing of a `prepare` that fails in the accelerator, whose checkpoints count what they hold."""
    lists = [accelerator._models, accelerator._optimizers, accelerator._schedulers, accelerator._dataloaders]
    before = [list(held) for held in lists]
    try:
        yield
    except BaseException:
        for held, earlier in zip(lists, before, strict=True):
            held[:] = earlier
        raise


def _made_and_checked(
    engine: Engine,
    framework: Callable[..., Any],
    objects: Sequence[Any],
    models: Sequence[nn.Module],
    plugin: BnbOptimizerPlugin,
    placement: Sequence[Any],
) -> list[Any]:
    """The objects prepared, with optimizers in place of placeholders, which train the models as hints say."""
    made = list(objects)
    if engine is Engine.FSDP1:  # the parameters change with the model: an optimizer is built from what they become
        made = _prepared(framework, made, placement, lambda item: isinstance(item, nn.Module))
    become = {id(old): new for old, new in zip(objects, made, strict=True)}
    models = [become.get(id(model), model) for model in models]
    made = _made_real(made, plugin, models, become, as_groups=engine is Engine.DEEPSPEED)

    ours = [isinstance(item, BlockwiseOptimizer) for item in made]
    manager = GlobalOptimManager.get_instance()
    before = []
    for optimizer in (item for item in made if isinstance(item, BlockwiseOptimizer)):
        before += manager.explain(optimizer)
        logger.info(report(optimizer).headline)
        _warn(unheeded.full_precision(optimizer, plugin), stacklevel=5)
    waits = (lambda item: not isinstance(item, nn.Module)) if engine is Engine.FSDP1 else (lambda item: True)
    made = _prepared(framework, made, placement, waits)

    mine = [item for item, is_ours in zip(made, ours, strict=True) if is_ours]
    if engine is Engine.DEEPSPEED:  # a name for each parameter does not fit the one tensor of the group
        for group in (group for optimizer in mine for group in optimizer.param_groups):
            group.pop("param_names", None)

    trained = [item for item in made if isinstance(item, nn.Module)] or models
    if mine and trained:
        beside = [item for item in made if isinstance(item, Optimizer) and not any(item is own for own in mine)]
        verify(trained[0] if len(trained) == 1 else nn.ModuleList(trained), mine, before, beside)
    if any(isinstance(item, DistributedDataParallel) for item in trained):  # plain parameters: nobody else compares
        for optimizer in mine:
            check_agreement(optimizer.optimizer, [torch.distributed.group.WORLD])
    if engine is Engine.FSDP1:
        for optimizer in mine:
            make_loadable(optimizer.optimizer)
    return made


def _warn(said: str | None, stacklevel: int) -> None:
    """Warns in one of the processes."""
    if said is not None and PartialState().is_main_process:
        warnings.warn(said, stacklevel=stacklevel)


def _register(
    models: Sequence[nn.Module], optimizers: Sequence[Optimizer], plugin: BnbOptimizerPlugin, given: bool
) -> None:
    """Registers the models with the plugin's hints; if none was given, those of the optimizers' makers stay."""
    if given:
        words.retire([optimizer.param_groups for optimizer in optimizers if words.maker(optimizer) is None])
    for model in models:
        if given or not words.speakers(model):
            words.say(plugin, model, only=given)
        else:
            GlobalOptimManager.get_instance().register_parameters(model)


def _prepared(
    framework: Callable[..., Any], objects: Sequence[Any], placement: Sequence[Any], which: Callable[[Any], bool]
) -> list[Any]:
    """The objects, those that `which` says prepared together."""
    chosen = [index for index, item in enumerate(objects) if which(item)]
    result = list(objects)
    if chosen:
        given = [placement[index] for index in chosen]
        placed = {"device_placement": given} if any(place is not None for place in given) else {}
        done = framework(*(objects[index] for index in chosen), **placed)
        for index, item in zip(chosen, done if len(chosen) > 1 else [done], strict=True):
            result[index] = item
    return result


def _made_real(
    objects: Sequence[Any], plugin: BnbOptimizerPlugin, models: Sequence[nn.Module], become: dict[int, Any], **how: Any
) -> list[Any]:
    """The objects with optimizers in place of their placeholders, and schedulers that waited for them."""
    real: dict[int, BlockwiseOptimizer] = {}
    for item in objects:
        if isinstance(item, BnbDummyOptim):
            model = become.get(id(item.model), item.model)
            if model is None and len(models) != 1 and item.params is None:
                raise ValueError(
                    f"BnbDummyOptim: prepare got {len(models)} models; say which one is meant: BnbDummyOptim(model)"
                )
            model = models[0] if model is None else model
            real[id(item)] = plugin.create_optimizer(model, item.params, **how, **item.options)
    made = [real.get(id(item), item) for item in objects]
    for index, item in enumerate(made):
        if isinstance(item, DummyScheduler) and isinstance(item.optimizer, BnbDummyOptim):
            if item.lr_scheduler_callable is None or id(item.optimizer) not in real:
                raise ValueError(
                    "a DummyScheduler over a BnbDummyOptim needs lr_scheduler_callable, and its placeholder in the "
                    "same prepare(...)"
                )
            made[index] = item.lr_scheduler_callable(real[id(item.optimizer)])
    return made


class BnbAccelerator(Accelerator):
    """An `Accelerator` whose `prepare` is `accelerate_bnb.prepare`.

    Args:
        *args:
            As for `Accelerator`.
        bnb_plugin (`BnbOptimizerPlugin`, *optional*):
            By default one from the environment.
        **kwargs:
            As for `Accelerator`.

    Example:
        >>> import torch
        >>> from accelerate_bnb import BnbAccelerator, BnbDummyOptim, BnbOptimizerPlugin
        >>> accelerator = BnbAccelerator(cpu=True, bnb_plugin=BnbOptimizerPlugin(optimizer="lion8bit", lr=1e-4))
        >>> model, optimizer = accelerator.prepare(torch.nn.Linear(64, 64), BnbDummyOptim())
        >>> optimizer.param_groups[0]["lr"]
        0.0001
    """

    def __init__(self, *args: Any, bnb_plugin: BnbOptimizerPlugin | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._given = checked(bnb_plugin)

    @property
    def bnb_plugin(self) -> BnbOptimizerPlugin:
        """The plugin that was given, else one from the environment."""
        return self._given or BnbOptimizerPlugin()

    @override
    def prepare(self, *args: Any, device_placement: Any = None) -> Any:
        return _prepare(self, super().prepare, args, self._given, device_placement)
