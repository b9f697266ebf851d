"""An optimizer for modules that configure none: Lightning checks that before any callback runs."""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, TypeVar

import lightning.pytorch as pl
from torch.optim.optimizer import Optimizer

from lightning_bnb import build
from torch_bnb import optim, optim_overrides
from torch_bnb.optim import AdamW, GlobalOptimManager

ModuleClass = TypeVar("ModuleClass", bound=type[pl.LightningModule])


class EightBitOptimizerMixin:
    r"""Gives a LightningModule a ``configure_optimizers`` with 8-bit state. A base before ``LightningModule``.

    Class attributes say which optimizer to build, arguments of ``__init__`` say it for one instance. With an
    :class:`~lightning_bnb.EightBitOptimizer`, the callback's arguments apply too, and its ``optimizer`` wins; without
    the callback, the mixin applies the module's declared hints itself.

    Args:
        args: Passed on to the next base class.
        optimizer_class: The optimizer; one of torch or bitsandbytes is replaced by its 8-bit twin.
        optimizer_options: Its arguments beside the parameters; ``optim_bits`` is 8, or the callback's, unless it says
            otherwise.
        overrides: Hints about single parameters, beside those that the class declares; patterns are allowed.
        kwargs: Passed on to the next base class.

    Raises:
        MisconfigurationException:
            If a hint fits no parameter, or the optimizer cannot honour it.
        TypeError:
            When a class is defined that lists the mixin after ``LightningModule``, or that has ``overrides`` instead
            of ``optim_overrides``.

    Example::

        >>> import torch
        >>> from lightning.pytorch import LightningModule
        >>> from lightning_bnb import EightBitOptimizerMixin, optim_overrides
        >>> @optim_overrides({"embed.weight": {"optim_bits": 32}})
        ... class Model(EightBitOptimizerMixin, LightningModule):
        ...     optimizer_options = {"lr": 3e-4}
        ...
        ...     def __init__(self, **optimizer):
        ...         super().__init__(**optimizer)
        ...         self.embed = torch.nn.Embedding(1000, 64)
        >>> type(Model().configure_optimizers()).__name__
        'AdamW'
        >>> Model(optimizer_class=torch.optim.SGD, optimizer_options={"lr": 0.1}).configure_optimizers().rule
        'sgd'

    """

    optimizer_class: ClassVar[type[Optimizer]] = AdamW
    optimizer_options: ClassVar[Mapping[str, Any]] = {}

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if getattr(cls, "configure_optimizers", None) is pl.LightningModule.configure_optimizers:
            raise TypeError(
                f"{cls.__name__}: LightningModule stands before EightBitOptimizerMixin, so its empty "
                f"configure_optimizers would be called; write class {cls.__name__}(EightBitOptimizerMixin, ...)"
            )
        if "overrides" in vars(cls):
            raise TypeError(f"{cls.__name__}.overrides: hints that a class declares are its optim_overrides")

    def __init__(
        self,
        *args: Any,
        optimizer_class: type[Optimizer] | None = None,
        optimizer_options: Mapping[str, Any] | None = None,
        overrides: build.Overrides | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        given = {
            "optimizer_class": optimizer_class,
            "optimizer_options": optimizer_options,
            "optim_overrides": overrides,
        }
        vars(self).update({name: value for name, value in given.items() if value is not None})

    def configure_optimizers(self) -> Optimizer:
        """The optimizer over the trainable parameters, in one group."""
        with build.misconfigurations():
            GlobalOptimManager.get_instance().register_parameters(self)
            optimizer = declared_optimizer(self, optim_bits=8)
            build.warn_of_full_precision(optimizer)
            return optimizer


def eight_bit_optimizer(
    optimizer_class: type[Optimizer] = AdamW, overrides: build.Overrides | None = None, **optimizer_options: Any
) -> Callable[[ModuleClass], ModuleClass]:
    r"""Class decorator: the same as :class:`EightBitOptimizerMixin`, without a base class.

    Args:
        optimizer_class: The optimizer; one of torch or bitsandbytes is replaced by its 8-bit twin.
        overrides: Hints about single parameters, as ``optim_overrides`` takes them.
        optimizer_options: The optimizer's arguments beside the parameters. An instance may set its own
            ``self.optimizer_options`` in ``__init__``.

    Returns:
        A decorator that returns the same class, with a ``configure_optimizers``.

    Raises:
        TypeError: ``optimizer_class`` is no class of optimizers, the decorated class is no LightningModule, or it has a
            ``configure_optimizers`` of its own, for which there is the callback.

    Example::

        >>> import torch
        >>> from lightning.pytorch import LightningModule
        >>> from lightning_bnb import eight_bit_optimizer
        >>> @eight_bit_optimizer(lr=3e-4, overrides={"head.bias": {"weight_decay": 0.0}})
        ... class Model(LightningModule):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.head = torch.nn.Linear(64, 64)
        >>> Model().configure_optimizers().param_groups[0]["lr"]
        0.0003

    """
    if isinstance(optimizer_class, type) and issubclass(optimizer_class, pl.LightningModule):
        raise TypeError(
            f"eight_bit_optimizer: {optimizer_class.__name__} stands where an optimizer is expected; decorate with "
            "parentheses, @eight_bit_optimizer()"
        )
    _check_class(optimizer_class)

    def decorate(cls: ModuleClass) -> ModuleClass:
        if not (isinstance(cls, type) and issubclass(cls, pl.LightningModule)):
            raise TypeError(f"eight_bit_optimizer(...) decorates a LightningModule class of {pl.__name__}, got {cls!r}")
        if cls.configure_optimizers is not pl.LightningModule.configure_optimizers:
            raise TypeError(
                f"eight_bit_optimizer: {cls.__name__} has a configure_optimizers; the EightBitOptimizer callback puts "
                "what it returns into 8 bits"
            )
        cls.optimizer_class, cls.optimizer_options = optimizer_class, optimizer_options
        cls.configure_optimizers = EightBitOptimizerMixin.configure_optimizers
        return optim_overrides(overrides)(cls) if overrides else cls

    return decorate


def configures(configure_optimizers: Callable[[], Any]) -> bool:
    """Whether this bound method is the mixin's, also by way of the decorator."""
    return getattr(configure_optimizers, "__func__", None) is EightBitOptimizerMixin.configure_optimizers


def declared_optimizer(module: Any, optim_bits: int) -> Optimizer:
    """What a module with the mixin or the decorator asks for.

    Args:
        module: A registered LightningModule.
        optim_bits: Bits per element of state, where the module says nothing about it.

    Raises:
        TypeError: Its ``optimizer_class`` is no class of optimizers.
    """
    _check_class(module.optimizer_class)
    trainable = [parameter for parameter in module.parameters() if parameter.requires_grad]
    options = dict(module.optimizer_options)
    if issubclass(module.optimizer_class, optim.BlockwiseOptimizer):
        chosen = {"optim_bits": optim_bits} if module.optimizer_class.leaves_bits_open() else {}
        return module.optimizer_class(trainable, **{**chosen, **options})
    bits = options.pop("optim_bits", optim_bits)
    optimizer, _ = build.replaced(module.optimizer_class(trainable, **options), bits)
    return optimizer


def _check_class(optimizer_class: Any) -> None:
    if not (isinstance(optimizer_class, type) and issubclass(optimizer_class, Optimizer)):
        raise TypeError(
            f"optimizer_class={optimizer_class!r}: expected a class of optimizers, such as torch_bnb.optim.AdamW; "
            "its arguments go into optimizer_options"
        )
