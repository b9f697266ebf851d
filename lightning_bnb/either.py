"""Classes that ``lightning.pytorch`` and ``pytorch_lightning``, the same code under two names, have each."""

from typing import Any


def is_a(thing: Any, name: str) -> bool:
    """Whether an object's class, or one that it derives from, bears this name: isinstance sees one package only."""
    return any(cls.__name__ == name for cls in type(thing).__mro__)
