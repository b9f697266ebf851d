"""What users hand over as parameters: one, several, named ones, groups. Knows no hints."""

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn

from torch_bnb.overrides.spec import OverrideError


def parameters(given: Any, caller: str) -> list[Tensor]:
    """The parameters in what a user has handed over to give hints on.

    Args:
        given: As for `flatten`.
        caller: Names the function in errors.

    Raises:
        OverrideError: There are none.
        TypeError: One is no parameter.
    """
    targets = flatten(given, caller)
    if not targets:
        raise OverrideError(f"{caller}: no parameters were given (a generator can be used up)")
    for parameter in targets:
        if not (isinstance(parameter, nn.Parameter) or (parameter.requires_grad and parameter.is_leaf)):
            computed = "computed from others" if parameter.requires_grad else "as p.data and state_dict() hold"
            raise TypeError(f"{caller}: got a tensor that is no parameter: one {computed}")
    return targets


def flatten(params: Any, caller: str) -> list[Tensor]:
    """Tensors out of a tensor, a list, (name, tensor) pairs or parameter groups."""
    if isinstance(params, Tensor):
        return [params]
    if isinstance(params, nn.Module):
        raise TypeError(f"{caller}: expected parameters, got a {type(params).__name__}; see register_module_override")
    if isinstance(params, Mapping) and "params" in params:
        return flatten(params["params"], caller)
    if isinstance(params, tuple) and len(params) == 2 and isinstance(params[0], str):
        return flatten(params[1], caller)
    if isinstance(params, (str, Mapping)) or not isinstance(params, Iterable):
        raise TypeError(f"{caller}: expected parameters, got {params!r:.80}")
    return [tensor for item in params for tensor in flatten(item, caller)]
