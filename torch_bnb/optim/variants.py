"""The names that users of 8-bit optimizers know: ``Adam8bit``, ``PagedAdamW32bit``, ... made from the rules.

``Paged*`` asks for state in host memory that a GPU reaches; on a CPU that is where state is, so there they are the
plain optimizers. With a parameter on a GPU they are an error: that is not there yet.
"""

import inspect
from typing import Any

from torch_bnb.optim import rules
from torch_bnb.optim.base import BlockwiseOptimizer


def _variant(rule: type[BlockwiseOptimizer], name: str, bits: int | None, paged: bool) -> type[BlockwiseOptimizer]:
    def __init__(self: BlockwiseOptimizer, params: Any, *args: Any, **kwargs: Any) -> None:
        if bits is not None and kwargs.setdefault("optim_bits", bits) != bits:
            raise ValueError(
                f"{name}: optim_bits={kwargs['optim_bits']!r}: expected {bits}; use {rule.__name__} to choose"
            )
        rule.__init__(self, params, *args, **kwargs)

    state = f"{bits}-bit state" if bits else "state"
    where = ", in host memory that the GPU reaches" if paged else ""
    body = (rule.__doc__ or "").partition("    Example:")[0].rstrip()
    members = {
        "__init__": __init__,
        "__doc__": f"`{rule.__name__}` with {state}{where}.\n\n    {body}\n",
        "__module__": __name__,
        "__qualname__": name,
        "paged": paged,
    }
    cls = type(name, (rule,), members)
    parameters = rule.__signature__.parameters
    if bits is not None:
        parameters = {**parameters, "optim_bits": parameters["optim_bits"].replace(default=bits)}
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
