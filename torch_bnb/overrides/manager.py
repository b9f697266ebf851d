"""The process-wide manager through which users say what single parameters should get."""

import threading
import weakref
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from torch_bnb.overrides import hints
from torch_bnb.overrides.declare import declared
from torch_bnb.overrides.hints import Hint, ModuleHint
from torch_bnb.overrides.resolve import find, hints_through
from torch_bnb.overrides.spec import OverrideError, OverrideSpec, validate


class GlobalOptimManager:
    """Overrides an optimizer's options for single parameters, at any time.

    There is one per process; `get_instance` returns it. A hint is kept on the Parameter or Module that it was given to,
    so it dies with it and reaches no other; the manager keeps nothing alive. An optimizer applies hints when it is
    built and again at the next step after any was written: a changed ``optim_bits`` then converts the live state,
    nothing is reset.

    Example:
        >>> import torch, torch_bnb as bnb
        >>> model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.Linear(64, 64))
        >>> manager = bnb.optim.GlobalOptimManager.get_instance()
        >>> manager.register_parameters(model.parameters())
        >>> optimizer = bnb.optim.Adam(model.parameters(), lr=0.001, optim_bits=8)
        >>> manager.override_config(model[0].weight, "optim_bits", 32)
        >>> manager.override_config([model[0].bias, model[1].bias], key_value_dict={"lr": 1e-4, "betas": (0.9, 0.98)})
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
                cls._instance.version = 0
                cls._instance._epoch = 0
                cls._instance._modules = weakref.WeakSet()
        return cls._instance

    version: int
    """Grows with every hint and registration: an optimizer that has seen it need not look again."""

    def initialize(self) -> None:
        """Forgets everything: hints on parameters and modules, and which modules are known. Class declarations stay."""
        with self._lock:
            self._epoch += 1
            self._modules.clear()
            self.version += 1

    def register_parameters(self, params: nn.Module | Tensor | Iterable[Any]) -> None:
        """Makes parameters known, usually while the model is still on the CPU.

        Args:
            params: A module, whose classes' ``optim_overrides`` then apply; or parameters, ``(name, parameter)`` pairs
                or parameter groups, which are checked. Registering again is harmless, so is an empty list.

        Raises:
            TypeError: Something else was given.
            OverrideError: A module declares an unknown option or an impossible value.
        """
        if isinstance(params, nn.Module):
            for module in params.modules():
                declared(module)
            with self._lock:
                self._modules.add(params)
                self.version += 1
        else:
            _flatten(params, "register_parameters")

    def override_config(
        self,
        parameters: Tensor | Iterable[Tensor],
        key: str | None = None,
        value: Any = None,
        key_value_dict: OverrideSpec | None = None,
    ) -> None:
        """Sets options for one parameter or for several: the strongest kind of hint.

        Args:
            parameters: A parameter, or a list of them. Each keeps a copy of its own.
            key: One option's name, with `value`.
            value: Its value.
            key_value_dict: Several options at once; may stand beside `key`.

        Raises:
            OverrideError: Nothing to set, an unknown option (with the nearest spelling) or an impossible value.
            TypeError: `parameters` holds something that is no tensor.
        """
        if key is None and key_value_dict is None:
            raise OverrideError("override_config: give a key and its value, or key_value_dict")
        config = validate({**(key_value_dict or {}), **({} if key is None else {key: value})})
        targets = _flatten(parameters, "override_config")
        with self._lock:
            self.version += 1
            for parameter in targets:
                hints.set_on_parameter(parameter, config, self.version, self._epoch)

    def register_module_override(self, module: nn.Module, param_name: str, config: OverrideSpec) -> None:
        """Sets options for parameters of a module by name, whichever Parameter objects bear it when the optimizer
        steps.

        Args:
            module: Where to look; ``self`` in a module's ``__init__``.
            param_name: The module's own attribute (``"weight"``), else a dotted path (``"head.weight"``), else the last
                name of any number of parameters below it.
            config: The options.

        Raises:
            OverrideError: No parameter has that name, an unknown option, or an impossible value.
            TypeError: `module` is no ``nn.Module``.
        """
        if not isinstance(module, nn.Module):
            raise TypeError(f"register_module_override: module must be an nn.Module, got {module!r}")
        checked = validate(config)
        try:
            find(module, param_name)
        except LookupError as error:
            raise OverrideError(f"register_module_override: {error}") from None
        with self._lock:
            self.version += 1
            source = f"register_module_override({type(module).__name__}, {param_name!r})"
            hints.add_on_module(module, ModuleHint(param_name, checked, self.version, source, self._epoch))
            self._modules.add(module)

    def hints_for(self, params: Sequence[Tensor], carried: Mapping[int, Hint]) -> list[list[Hint]]:
        """Every hint in force, for each of an optimizer's parameters.

        Args:
            params: The parameters.
            carried: By index, the hint of a Parameter object that a framework has since replaced at this place.
        """
        with self._lock:
            through_modules = hints_through(list(self._modules), params, self._epoch)
            found = []
            for index, parameter in enumerate(params):
                own = hints.on_parameter(parameter) or carried.get(index)
                found.append(
                    through_modules.get(id(parameter), []) + ([own] if own and own.epoch >= self._epoch else [])
                )
            return found


def _flatten(params: Any, caller: str) -> list[Tensor]:
    """Tensors out of a tensor, a list, (name, tensor) pairs or parameter groups."""
    if isinstance(params, Tensor):
        return [params]
    if isinstance(params, Mapping):
        return _flatten(params["params"], caller)
    if isinstance(params, tuple) and len(params) == 2 and isinstance(params[0], str):
        return _flatten(params[1], caller)
    if isinstance(params, str) or not isinstance(params, Iterable):
        raise TypeError(f"{caller}: expected parameters, got {params!r}")
    return [tensor for item in params for tensor in _flatten(item, caller)]
