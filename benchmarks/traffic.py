"""The bytes that a step must move: the least that any implementation could.

Parameter, gradient and state are read once, parameter and state written once. State is sized by `torch_bnb.plan`, so
absmax and tensors that are too small for 8 bits count as they are.
"""

from functools import lru_cache
from typing import Any

import torch
from torch import nn

import torch_bnb as bnb
from benchmarks.peers import OPTIONS, RULES
from benchmarks.shapes import shapes


@lru_cache
def _planned(shapes_name: str, rule: str, dtype: torch.dtype) -> Any:
    with torch.device("meta"):
        model = nn.ParameterList([nn.Parameter(torch.empty(shape, dtype=dtype)) for shape in shapes(shapes_name)])
    return bnb.plan(model, RULES[rule], optim_bits=8, **OPTIONS.get(rule, {})).total


def state_bytes(shapes_name: str, rule: str, dtype: torch.dtype, bits: int | None) -> int:
    """Bytes of state in 8 or 32 bits; with None it has the parameter's dtype, as in torch."""
    planned = _planned(shapes_name, rule, dtype)
    if bits == 8:
        return planned.state_8bit
    return planned.state_32bit * (4 if bits == 32 else dtype.itemsize) // 4


def step_bytes(shapes_name: str, rule: str, dtype: torch.dtype, bits: int | None) -> int:
    """Bytes that one step must read and write, taken together."""
    planned = _planned(shapes_name, rule, dtype)
    return 2 * planned.parameter + planned.gradient + 2 * state_bytes(shapes_name, rule, dtype, bits)
