"""The plugin: which optimizer a training gets, said in code, in the environment or in a file."""

import warnings
from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import nn

from accelerate_bnb import settings, words
from torch_bnb import OverrideSpec, check_overrides, param_groups
from torch_bnb.optim import BlockwiseOptimizer, GlobalOptimManager, by_name


@dataclass
class BnbOptimizerPlugin:
    """Which 8-bit optimizer a training gets, and which options single parameters get instead.

    A field that is not given falls back to the environment variable ``ACCELERATE_BNB_<FIELD>``, then to the file that
    `config_file` names, then to a default.

    Args:
        optimizer (`str` or class, *optional*, defaults to `"adamw"`):
            A name from `torch_bnb.optim`, in any spelling: `"adamw8bit"`, `"lion"`, `"PagedAdamW32bit"`.
        lr (`float`, *optional*):
            The learning rate. By default the optimizer's own.
        betas (`tuple[float, ...]`, *optional*):
            Decay of the moments, for optimizers that have them. By default the optimizer's own.
        weight_decay (`float`, *optional*):
            By default the optimizer's own.
        optim_bits (`int`, *optional*, defaults to 8):
            Bits per element of state, 8 or 32. A name like `"adamw32bit"` fixes it.
        min_8bit_size (`int`, *optional*, defaults to 4096):
            Parameters with fewer elements keep 32-bit state.
        overrides (`dict[str, dict]`, *optional*):
            Patterns over parameters' names to options: `{"*.embed*.weight": {"optim_bits": 32}}`.
        config_file (`str`, *optional*):
            A YAML or JSON file with the fields above and below, or a config file of Accelerate's with a `bnb_config:`
            section.
        embeddings_32bit (`bool`, *optional*):
            Whether `nn.Embedding` weights keep 32-bit state where no hint says otherwise. By default as the model was
            registered before, else `True`.
        paged (`bool`, *optional*, defaults to `False`):
            Whether state is in host memory that the GPU reaches.
        strict (`bool`, *optional*, defaults to `True`):
            Whether a pattern that fits no parameter is an error; else it is a warning.

    Raises:
        ValueError: A name, key or value is unknown or impossible. The message names it, and what is allowed.

    Example:
        >>> import torch
        >>> from accelerate_bnb import BnbOptimizerPlugin
        >>> plugin = BnbOptimizerPlugin(optimizer="adamw8bit", lr=3e-4, overrides={"head.*": {"optim_bits": 32}})
        >>> model = torch.nn.ModuleDict({"body": torch.nn.Linear(64, 64), "head": torch.nn.Linear(64, 64)})
        >>> optimizer = plugin.create_optimizer(model)
        >>> [place.bits for place in optimizer.configurations() if "weight" in place.name]
        [8, 32]
    """

    optimizer: str | type[BlockwiseOptimizer] | None = field(
        default=None, metadata={"help": "Name of an optimizer of torch_bnb.optim: adamw8bit, lion, ... (default adamw)"}
    )
    lr: float | None = field(default=None, metadata={"help": "Learning rate (default: the optimizer's own)"})
    betas: tuple[float, ...] | None = field(
        default=None, metadata={"help": "Decay of the moments (default: the optimizer's own)"}
    )
    weight_decay: float | None = field(default=None, metadata={"help": "Weight decay (default: the optimizer's own)"})
    optim_bits: int | None = field(default=None, metadata={"help": "Bits per element of state, 8 or 32 (default 8)"})
    min_8bit_size: int | None = field(
        default=None, metadata={"help": "Parameters with fewer elements keep 32-bit state (default 4096)"}
    )
    overrides: dict[Any, OverrideSpec] | None = field(
        default=None, metadata={"help": "Patterns over parameters' names to options"}
    )
    config_file: str | None = field(
        default=None, metadata={"help": "YAML or JSON file with these fields, alone or in a bnb_config section"}
    )
    embeddings_32bit: bool | None = field(
        default=None, metadata={"help": "Whether embeddings keep 32-bit state (default true)"}
    )
    paged: bool | None = field(
        default=None, metadata={"help": "Whether state is in host memory that the GPU reaches (default false)"}
    )
    strict: bool | None = field(
        default=None, metadata={"help": "Whether a pattern that fits no parameter is an error (default true)"}
    )

    def __post_init__(self) -> None:
        environment = settings.from_environment()
        if self.config_file is None:
            self.config_file = environment.get("config_file")
        in_file = settings.from_file(self.config_file) if self.config_file is not None else {}
        self._names_optimizer = any(
            name is not None for name in (self.optimizer, environment.get("optimizer"), in_file.get("optimizer"))
        )
        defaults = {"optimizer": "adamw", "paged": False, "strict": True}
        for known in fields(self):
            for source in (environment, in_file, defaults):
                if getattr(self, known.name) is None:
                    setattr(self, known.name, source.get(known.name))
        if isinstance(self.overrides, str):
            self.overrides = settings.parse("overrides", self.overrides, "overrides")
        self._check()

    def _check(self) -> None:
        for name in ("embeddings_32bit", "paged", "strict"):
            if not isinstance(getattr(self, name), (bool, type(None))):
                raise ValueError(f"{name}={getattr(self, name)!r}: expected True or False")
        if self.overrides is not None:
            check_overrides(self.overrides)
        self.optimizer_class([torch.zeros(1, requires_grad=True)], **self.optimizer_options())

    @property
    def optimizer_class(self) -> type[BlockwiseOptimizer]:
        """The class that `optimizer` and `paged` mean."""
        given = self.optimizer
        if isinstance(given, type) and not issubclass(given, BlockwiseOptimizer):
            raise ValueError(f"optimizer={given!r}: expected a name, or a class of torch_bnb.optim")
        cls = given if isinstance(given, type) else by_name(given)
        return by_name(f"Paged{cls.__name__}") if self.paged and not cls.__name__.startswith("Paged") else cls

    def names_optimizer(self) -> bool:
        """Whether `optimizer` was given, in code, in the environment or in a file."""
        return self._names_optimizer

    def given_options(self) -> dict[str, Any]:
        """The optimizer's options that were given, in code, in the environment or in a file."""
        names = ("lr", "betas", "weight_decay", "optim_bits", "min_8bit_size")
        return {name: value for name in names if (value := getattr(self, name)) is not None}

    def optimizer_options(self) -> dict[str, Any]:
        """The class's arguments beside the parameters: the options given, and 8 bits unless its name fixes them."""
        options, cls = self.given_options(), self.optimizer_class
        if cls.leaves_bits_open():
            options.setdefault("optim_bits", 8)
        if lacking := [name for name in options if name not in cls.__signature__.parameters]:
            raise ValueError(f"{cls.__name__} has no option {lacking[0]!r}; it was given {options[lacking[0]]!r}")
        return options

    def register(self, model: nn.Module) -> None:
        """Makes a model known to the `GlobalOptimManager`, with its modules' hints and this plugin's `overrides`.

        The `overrides` of another plugin end here, unless that plugin's optimizer trains a part of the model beside
        this one's. Such an optimizer counts until it is freed, or until a later optimizer takes one of its parameters.

        Args:
            model: On any device, in a wrapper of Accelerate's or not.

        Raises:
            OverrideError: A hint names an unknown option or no parameter.
        """
        words.say(self, model, only=True)

    def create_optimizer(
        self,
        model: nn.Module,
        params: Iterable[Any] | None = None,
        *,
        as_groups: bool = False,
        **options: Any,
    ) -> BlockwiseOptimizer:
        """Registers a model and makes its optimizer.

        Args:
            model (`nn.Module`):
                On any device.
            params (`Iterable`, *optional*):
                Parameters or parameter groups. By default all that are trainable, in one group.
            as_groups (`bool`, defaults to `False`):
                One group for every set of options that hints make, for engines that flatten groups (DeepSpeed).
            **options:
                Options of the optimizer, in place of the plugin's.

        Raises:
            TypeError: `model` is no `nn.Module`, or the optimizer has no such option.
            ValueError: An option is impossible, a hint fits nothing, or both `as_groups` and `params` are given.
        """
        if not isinstance(model, nn.Module):
            raise TypeError(
                f"create_optimizer: expected an nn.Module, got {type(model).__name__}; parameters come after the model"
            )
        options = {**self.optimizer_options(), **options}
        if as_groups and params is not None:
            raise ValueError("as_groups makes the groups itself: leave params out, or say hints in your groups")
        self.optimizer_class([torch.zeros(1, requires_grad=True)], **options)  # an error, before hints are taken back
        trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
        chosen = trainable if params is None else words.reusable(params)
        words.retire(chosen)
        self.register(model)
        if params is None:
            for said in GlobalOptimManager.get_instance().idle_patterns(model, trainable):
                warnings.warn(said, stacklevel=2)
        if as_groups:
            chosen = param_groups(model, lr=options.get("lr"), embeddings_32bit=self.embeddings_32bit)
        optimizer = self.optimizer_class(chosen, **options)
        words.remember(optimizer, self, model)
        return optimizer


def checked(plugin: Any) -> BnbOptimizerPlugin | None:
    """The argument itself, if it is a plugin or None.

    Raises:
        TypeError: It is neither.
    """
    if not isinstance(plugin, (BnbOptimizerPlugin, type(None))):
        raise TypeError(f"plugin={plugin!r}: expected a BnbOptimizerPlugin, or None for one from the environment")
    return plugin
