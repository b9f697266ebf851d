"""One module per form of optimizer state, each with the same five functions.

``recognises(state_dict)``, ``rules(state_dict)`` that it may be of, ``layout(rule)`` to tell whether two rules' files
differ, ``read(state_dict, rule)`` into `portable.Portable` and ``write(portable, bits)`` out of it.
"""

from collections.abc import Collection
from types import ModuleType

from torch_bnb.checkpoint.formats import bitsandbytes, native, torch_optim, torchao
from torch_bnb.checkpoint.portable import RULES

TARGETS: dict[str, ModuleType] = {
    "torch_bnb": native,
    "torch": torch_optim,
    "bitsandbytes": bitsandbytes,
    "torchao": torchao,
}
"""By the names that users say."""

SUPPORTED: dict[str, Collection[str]] = {
    "torch_bnb": RULES,
    "torch": tuple(torch_optim.CLASSES),
    "bitsandbytes": (*bitsandbytes.LAYOUTS, "lars"),
    "torchao": torchao.SUPPORTED,
}
"""The rules that each has, or has something to say about."""
