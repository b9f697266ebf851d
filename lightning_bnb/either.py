"""Classes that ``lightning.pytorch`` and ``pytorch_lightning``, the same code under two names, have each."""

from typing import Any

_PACKAGES = ("lightning", "pytorch_lightning")


def is_a(thing: Any, name: str) -> bool:
    """Whether an object is an instance of the class of this name in either package, imported or not."""
    theirs = (cls for cls in type(thing).__mro__ if cls.__module__.partition(".")[0] in _PACKAGES)
    return any(cls.__name__ == name for cls in theirs)
