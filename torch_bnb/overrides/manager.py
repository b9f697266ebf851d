"""The process-wide manager: what users and plugins call. It checks hints; the registry keeps and finds them."""

import threading
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn

from torch_bnb.overrides import registry, targets
from torch_bnb.overrides.declare import declared
from torch_bnb.overrides.explain import Explanation, explain, idle_patterns
from torch_bnb.overrides.hints import Level
from torch_bnb.overrides.names import Key, called, check_overrides, find, spell
from torch_bnb.overrides.registry import Source
from torch_bnb.overrides.spec import OverrideError, OverrideSpec, known_names, known_options, validate


class GlobalOptimManager:
    """Overrides an optimizer's options for single parameters, at any time.

    There is one per process; `get_instance` returns it. A hint is kept on the Parameter or Module that it was given to
    and dies with that; the manager keeps nothing alive. An optimizer applies hints when it is built, and new ones at
    its next step: a changed ``optim_bits`` then converts the live state, nothing is reset. All methods may be called
    from any thread.

    Precedence, weakest first: constructor default, parameter group, 32-bit embeddings, hints of outer modules, hints of
    inner modules, patterns, `override_config`; within one level the later one wins.

    Example:
        >>> import torch, torch_bnb as bnb
        >>> model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.Linear(64, 64))
        >>> manager = bnb.optim.GlobalOptimManager.get_instance()
        >>> manager.register_parameters(model.parameters())
        >>> optimizer = bnb.optim.Adam(model.parameters(), lr=0.001, optim_bits=8)
        >>> manager.override_config(model[0].weight, "optim_bits", 32)
        >>> biases = [model[0].bias, model[1].bias]
        >>> manager.override_config(biases, key_value_dict={"lr": 1e-4, "betas": (0.9, 0.98)})
    """

    _instance: "GlobalOptimManager | None" = None
    _lock = threading.RLock()

    def __init__(self) -> None:
        raise RuntimeError("GlobalOptimManager is a singleton: call GlobalOptimManager.get_instance()")

    @classmethod
    def get_instance(cls) -> "GlobalOptimManager":
        """The process's manager."""
        with cls._lock:
            if cls._instance is None:
                cls._instance = super().__new__(cls)
        return cls._instance

    def __reduce__(self) -> tuple:
        """Copies and pickles as itself: there is one."""
        return GlobalOptimManager.get_instance, ()

    def initialize(self) -> None:
        """Forgets everything: hints on parameters and modules, and which modules are known. Class declarations stay."""
        registry.forget()

    def register_parameters(
        self, params: nn.Module | Tensor | Iterable[Any], embeddings_32bit: bool | None = None
    ) -> None:
        """Makes parameters known, usually while the model is still on the CPU.

        Args:
            params: A module, whose classes' ``optim_overrides`` then apply; or parameters, ``(name, parameter)`` pairs
                or parameter groups, which are checked. Registering again is harmless, so is an empty list.
            embeddings_32bit: For a module: whether ``nn.Embedding`` weights below it keep 32-bit state, unless a hint
                or their group sets ``optim_bits``. None: they do, unless a call with True or False for a module that
                holds them says otherwise. Of several such calls the last one holds.

        Raises:
            TypeError: Something else was given.
            OverrideError: A module declares an unknown option or an impossible value.
        """
        if not isinstance(params, nn.Module):
            targets.flatten(params, "register_parameters")
            return
        for module in params.modules():
            declared(module)
        registry.register(params, embeddings_32bit)

    def override_config(
        self,
        parameters: Tensor | Iterable[Tensor],
        key: str | None = None,
        value: Any = None,
        key_value_dict: OverrideSpec | None = None,
    ) -> None:
        """Sets options for one parameter or for several: the strongest kind of hint.

        Where a known module holds the parameter, the hint also holds for whatever takes its place there.

        Args:
            parameters: A parameter, or a list of them. Each keeps a copy of its own.
            key: One option's name, with `value`.
            value: Its value.
            key_value_dict: Several options at once; may stand beside `key`.

        Raises:
            OverrideError: Nothing to set, an unknown option (with the nearest spelling) or an impossible value.
            TypeError: `parameters` holds something that is no parameter.
        """
        if isinstance(key, Mapping) or (key_value_dict is not None and not isinstance(key_value_dict, Mapping)):
            raise OverrideError("override_config: several options go into key_value_dict={...}")
        config = validate({**(key_value_dict or {}), **({} if key is None else {key: value})})
        if not config:
            raise OverrideError("override_config: give a key and its value, or key_value_dict")
        registry.give(targets.parameters(parameters, "override_config"), config)

    def forget_config(self, parameters: Tensor | Iterable[Tensor], *keys: str) -> None:
        """Takes back options that `override_config` has set; what modules and patterns say stays in force.

        Args:
            parameters: A parameter, or a list of them.
            *keys: The options. Without any: all of them.

        Raises:
            OverrideError: No parameters, or an unknown option (with the nearest spelling).
            TypeError: `parameters` holds something that is no parameter.

        Example:
            >>> import torch, torch_bnb as bnb
            >>> layer, manager = torch.nn.Linear(4, 4), bnb.optim.GlobalOptimManager.get_instance()
            >>> manager.override_config(layer.weight, key_value_dict={"lr": 0.5, "eps": 1e-6})
            >>> manager.forget_config(layer.weight, "lr")
            >>> manager.explain(layer)["weight"].overrides
            {'eps': 1e-06}
        """
        withdrawn = known_names(keys) if keys else tuple(known_options())
        registry.give(targets.parameters(parameters, "forget_config"), {}, withdrawn)

    def register_module_override(self, module: nn.Module, param_name: Key, config: OverrideSpec) -> None:
        """Sets options for parameters of a module by name, whichever objects have it when the optimizer steps.

        Args:
            module: Where to look; ``self`` in a module's ``__init__``.
            param_name: The module's own attribute (``"weight"``), else a dotted path (``"head.weight"``), else the last
                name of any number of parameters below it. Also a glob, ``"re:..."`` or a module type.
            config: The options.

        Raises:
            OverrideError: No parameter has that name, an unknown option, or an impossible value.
            TypeError: `module` is no ``nn.Module``.
        """
        caller = "register_module_override"
        source = f"{caller}({type(module).__name__}, {spell(param_name)})"
        checked = _checked(module, {param_name: config}, Level.MODULE, lambda _: source, caller, strict=True)
        registry.give_through(module, checked, Level.MODULE, lambda _: source, strict=True)

    def override_named(
        self,
        model: nn.Module,
        patterns: Mapping[Key, OverrideSpec],
        strict: bool = True,
        source: str = "override_named",
    ) -> None:
        """Sets options for parameters of a model by patterns over their names. Stronger than what modules say.

        Args:
            model: The names' root.
            patterns: From a name, a glob (``"*.embed*.weight"``), ``"re:..."`` or a module type to options. All that
                match apply; of one option the later pattern's value holds.
            strict: Whether a pattern that fits no parameter is an error, at once if the model has parameters, and
                whenever an optimizer looks hints up. False: it is a warning whenever an optimizer looks hints up.
            source: What `explain` and errors call these hints.

        Raises:
            OverrideError: A pattern fits no parameter, an unknown option, or an impossible value.
            TypeError: `model` is no ``nn.Module``.

        Example:
            >>> import torch, torch_bnb as bnb
            >>> model = torch.nn.ModuleDict({"embed": torch.nn.Embedding(9, 4), "norm": torch.nn.LayerNorm(4)})
            >>> manager = bnb.optim.GlobalOptimManager.get_instance()
            >>> hints = {"embed.*": {"optim_bits": 32}, torch.nn.LayerNorm: {"weight_decay": 0.0}}
            >>> manager.override_named(model, hints)
        """
        named = _sources(source)
        checked = _checked(model, patterns, Level.PATTERN, named, "override_named", strict)
        registry.give_through(model, checked, Level.PATTERN, named, strict)

    def explain(self, model_or_optimizer: Any) -> Explanation:
        """Who gets what, and which hint said so: a table to print, rows to read, ``.to_dict()`` for programs.

        Args:
            model_or_optimizer: An optimizer of torch_bnb, whose wrappers of frameworks are looked through; or a
                module, whose rows show hints only.

        Raises:
            TypeError: Neither.
            OverrideError: A hint fits no parameter, or the optimizer's rule cannot honour it.
        """
        return explain(model_or_optimizer)

    def say_named(
        self, model: nn.Module, patterns: Mapping[Key, OverrideSpec], strict: bool, source: str, only: bool = False
    ) -> None:
        """For plugins: `override_named` that may be repeated at several points of a set-up.

        Patterns that the plugin gives again, unchanged and from the first one on, keep their place in the order of
        hints: what users have said between the two calls stays later. The first pattern that is new or changed, and all
        after it, are the latest hints.

        Args:
            model: The names' root.
            patterns: All that the plugin says of the model, as for `override_named`.
            strict: As for `override_named`.
            source: The plugin, in tables and errors; its hints are told from others' by it.
            only: Whether hints of this source that are not among `patterns` are taken back.

        Raises:
            OverrideError: As for `override_named`.
            TypeError: As for `override_named`.
        """
        named = _sources(source)
        checked = _checked(model, patterns, Level.PATTERN, named, "override_named", strict)
        registry.give_again(model, checked, named, strict, only)

    def idle_patterns(self, model: nn.Module, trained: Iterable[Tensor]) -> list[str]:
        """For plugins, and loops that know all optimizers: a sentence for each pattern that has no effect.

        Such a pattern fits parameters of the model, but none that an optimizer has. The sentence names them.

        Args:
            model: The names' root.
            trained: The parameters of all its optimizers.
        """
        return idle_patterns(model, trained)


def _sources(source: str) -> Source:
    """What each pattern of a call is called: ``source('*.weight')``."""
    return lambda key: f"{source}({spell(key)})"


def _checked(
    module: Any, given: Mapping[Key, OverrideSpec], level: Level, source: Source, caller: str, strict: bool
) -> dict[Key, dict[str, Any]]:
    """Names or patterns with checked options; those that fit nothing are an error if the module is complete by now.

    A pattern may be given before the model has parameters; a module's own hint may not.
    """
    if not isinstance(module, nn.Module):
        raise TypeError(f"{caller}: expected an nn.Module, got {type(module).__name__}")
    checked = check_overrides(given, caller, source)
    if strict and (level is Level.MODULE or any(True for _ in module.parameters())):
        named = called(module)
        for key in checked:
            try:
                find(module, key, named)
            except (OverrideError, LookupError) as error:
                raise OverrideError(f"{source(key)}: {error}") from None
    return checked
