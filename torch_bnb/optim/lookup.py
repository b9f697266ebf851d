"""Optimizers by name, as configuration files and command lines spell them."""

import difflib
import re

from torch_bnb.optim import rules, variants
from torch_bnb.optim.base import BlockwiseOptimizer


def by_name(name: str) -> type[BlockwiseOptimizer]:
    """The class that a name means, in any spelling of case, hyphens and underscores.

    Args:
        name: ``"AdamW8bit"``, ``"adamw8bit"``, ``"adamw_8bit"``, ``"paged-lion-32bit"``, ``"sgd"``, ...

    Raises:
        ValueError: There is none; the nearest names are given.

    Example:
        >>> import torch_bnb as bnb
        >>> bnb.optim.by_name("paged_adamw_8bit").__name__
        'PagedAdamW8bit'
    """
    if not isinstance(name, str):
        raise TypeError(f"by_name: expected a name, got {name!r}")
    modules = {spelled: module for module in (rules, variants) for spelled in module.__all__}
    known = {_plain(spelled): spelled for spelled in modules}
    spelled = known.get(_plain(name))
    if spelled is None:
        near = difflib.get_close_matches(_plain(name), known, n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(map(str.lower, rules.__all__))}"
        raise ValueError(f"unknown optimizer {name!r}; {hint}")
    return getattr(modules[spelled], spelled)


def _plain(name: str) -> str:
    return re.sub(r"[\s_-]", "", name).lower()
