"""Calls of the rules' operators amid a training, for tests that compare what computes them."""

import seeded
import torch
from cases import CASES

from torch_bnb.codec import quantize_blockwise

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def clone(tensors):
    return [t.clone() for t in tensors]


def same_bits(a, b):
    """Equal, with NaN at the same places."""
    return (
        a.dtype == b.dtype
        and torch.equal(a.nan_to_num(nan=123.0), b.nan_to_num(nan=123.0))
        and torch.equal(a.isnan(), b.isnan())
        if a.is_floating_point()
        else torch.equal(a, b)
    )


def a_call(name, config, sizes, dtypes, bits=8, block_wise=True, seed=0, offset=0):
    """Tensors of a call amid a training: states are neither zero nor of one size."""
    generator = seeded.generator(seed)

    def random(n, scale=1.0):
        spread = torch.rand(n + offset, generator=generator) * -6
        return (torch.randn(n + offset, generator=generator) * scale * 10**spread)[offset:]

    optimizer = CASES[name].optimizer([torch.zeros(1, requires_grad=True)], **{"lr": CASES[name].lr, **config})
    group = optimizer.param_groups[0]
    params = [random(n).to(dtype) for n, dtype in zip(sizes, dtypes, strict=True)]
    grads = [random(n, 0.1).to(dtypes[-1 - i]) for i, n in enumerate(sizes)]
    states, absmax = [], []
    for state, signed in optimizer.states.items():
        for i, n in enumerate(sizes):
            values = random(n, 0.01)
            values = values if signed else values.square()
            if state not in optimizer.active_states(group):
                states.append(torch.empty(0))
                absmax.append(torch.empty(0))
            elif bits == 8 and i % 5 != 4:  # 32-bit ones among them
                codes, largest = quantize_blockwise(values, signed, 256 if block_wise else max(n, 1))
                states.append(codes)
                absmax.append(largest)
            else:
                states.append(values.clone())
                absmax.append(torch.empty(0))
    return [params, grads, states, absmax], optimizer.scalars(group, 3, False)
