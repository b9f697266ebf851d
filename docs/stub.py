"""The variants (``Adam8bit``, ...) as editors and type checkers read them, who run no program that makes names.

Part of ``generate.py``, which writes the file.
"""

import inspect

from torch.optim.optimizer import ParamsT

from torch_bnb.optim import rules, variants
from torch_bnb.optim.base import BlockwiseOptimizer

HEAD = """# Written by docs/generate.py: change torch_bnb/optim/rules.py, then run `make docs`.
from typing import Literal

from torch.optim.optimizer import ParamsT

from torch_bnb.optim.rules import {rules}

__all__ = [
{names}
]
"""

CLASS = """
class {name}({rule}):
    \"\"\"{what}\"\"\"

    def __init__(
        self,
{arguments}
    ) -> None: ...
"""


def variants_of(rule: type[BlockwiseOptimizer]) -> list[str]:
    """The names of a rule's variants."""
    return [name for name in variants.__all__ if getattr(variants, name).__bases__ == (rule,)]


def stub() -> str:
    """The whole file."""
    names = "\n".join(f'    "{name}",' for name in variants.__all__)
    head = HEAD.format(rules=", ".join(rules.__all__), names=names)
    return head + "".join(_class(name) for name in variants.__all__)


def _class(name: str) -> str:
    variant = getattr(variants, name)
    lines = []
    for parameter in variant.__signature__.parameters.values():
        if parameter.kind is parameter.KEYWORD_ONLY and "*" not in lines:
            lines.append("*")
        lines.append(_parameter(parameter, fixed=parameter.name == "optim_bits" and name.endswith("bit")))
    return CLASS.format(
        name=name,
        rule=variant.__base__.__name__,
        what=variant.__doc__.partition("\n")[0],
        arguments="\n".join(f"        {line}," for line in lines),
    )


def _parameter(parameter: inspect.Parameter, fixed: bool) -> str:
    if fixed:
        kind = f"Literal[{parameter.default!r}]"
    else:
        kind = "ParamsT" if parameter.annotation == ParamsT else inspect.formatannotation(parameter.annotation)
    default = "" if parameter.default is parameter.empty else f" = {parameter.default!r}"
    return f"{parameter.name}: {kind}{default}"
