"""Arithmetic of scalars that depend on the step: the same expression for a float and for a 0-dim tensor.

``capturable=True`` counts steps on the device, so what a rule makes of its step must not ask for its value: no ``if``,
no ``math``. ``+ - * / **`` do for both; the rest is here.
"""

from typing import TypeVar

from torch import Tensor

Number = TypeVar("Number", float, Tensor)


def least(x: Number, bound: float) -> Number:
    """The smaller of both."""
    return x.clamp(max=bound) if isinstance(x, Tensor) else min(x, bound)
