"""The names that users of 8-bit optimizers know: ``Adam8bit``, ``PagedAdamW32bit``, ... made from the rules.

``Paged*`` keep state in host memory, ``state_device="cpu"``. On a CPU that is where state is, so there they are the
plain optimizers.
"""

import inspect
from typing import Any

from torch_bnb.optim import rules
from torch_bnb.optim.base import BlockwiseOptimizer


def _variant(rule: type[BlockwiseOptimizer], name: str, bits: int | None, paged: bool) -> type[BlockwiseOptimizer]:
    fixed: dict[str, Any] = {} if bits is None else {"optim_bits": bits}
    if paged:
        fixed["state_device"] = "cpu"

    def __init__(self: BlockwiseOptimizer, params: Any, *args: Any, **kwargs: Any) -> None:
        for key, value in fixed.items():
            if str(kwargs.setdefault(key, value)) != str(value):
                raise ValueError(f"{name}: {key}={kwargs[key]!r}: expected {value!r}; use {rule.__name__} to choose")
        rule.__init__(self, params, *args, **kwargs)

    state = f"{bits}-bit state" if bits else "state"
    where = ", in host memory" if paged else ""
    body = (rule.__doc__ or "").partition("    Example:")[0].rstrip()
    members = {
        "__init__": __init__,
        "__doc__": f"`{rule.__name__}` with {state}{where}.\n\n    {body}\n",
        "__module__": __name__,
        "__qualname__": name,
        "fixed_bits": bits,
    }
    cls = type(name, (rule,), members)
    parameters = dict(rule.__signature__.parameters)
    parameters |= {key: parameters[key].replace(default=value) for key, value in fixed.items()}
    cls.__signature__ = rule.__signature__.replace(parameters=list(parameters.values()))
    me = inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    __init__.__signature__ = cls.__signature__.replace(parameters=[me, *parameters.values()])
    return cls


__all__ = []
for _rule in (getattr(rules, name) for name in rules.__all__):
    for _paged in (False, True):
        for _bits in (None, 8, 32):
            if _paged or _bits:
                _name = f"{'Paged' if _paged else ''}{_rule.__name__}{f'{_bits}bit' if _bits else ''}"
                globals()[_name] = _variant(_rule, _name, _bits, _paged)
                __all__ += [_name]
