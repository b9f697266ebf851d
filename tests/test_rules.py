"""Every rule against its oracle: torch.optim, or tests/reference.py where torch has none."""

import pytest
import seeded
import torch
from cases import CASES, CONFIGS

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
EVERY_CONFIG = pytest.mark.parametrize(
    ("name", "config"), CONFIGS, ids=[f"{n}-{'-'.join(c) or 'default'}" for n, c in CONFIGS]
)
EVERY_RULE = pytest.mark.parametrize("name", CASES)


def gradients(steps, *shapes, seed=1):
    """The same gradients for both sides, of changing scale."""
    generator = seeded.generator(seed)
    return [[torch.randn(shape, generator=generator) * 0.1 * (1 + i % 3) for shape in shapes] for i in range(steps)]


@EVERY_CONFIG
def test_32_bit_state_follows_the_oracle(name, config):
    case = CASES[name]
    shapes = [(40, 33), (257,), (3, 5, 7), ()]
    ours = [torch.randn(shape).requires_grad_() for shape in shapes]
    theirs = [p.detach().clone().requires_grad_() for p in ours]
    optimizer, oracle = case.optimizer(ours, lr=case.lr, **config), case.oracle(theirs, lr=case.lr, **config)
    for grads in gradients(20, *shapes):
        for p, q, g in zip(ours, theirs, grads, strict=True):
            p.grad, q.grad = g.clone(), g.clone()
        optimizer.step()
        oracle.step()
    for p, q in zip(ours, theirs, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)


@EVERY_RULE
@pytest.mark.parametrize("grad_dtype", DTYPES, ids=str)
@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64], ids=str)
def test_every_pair_of_dtypes_is_the_float32_oracle_rounded_once_a_step(name, dtype, grad_dtype):
    case = CASES[name]
    config = case.configs[-1]
    p = torch.randn(700, dtype=dtype).requires_grad_()
    optimizer = case.optimizer([p], lr=case.lr, **config)
    q = p.detach().float().requires_grad_()
    oracle = case.oracle([q], lr=case.lr, **config)
    p.grad_dtype = None  # any: frameworks with a backward of their own leave gradients of another dtype
    for (g,) in gradients(10, (700,)):
        p.grad = g.to(grad_dtype)
        q.grad = p.grad.float()
        optimizer.step()
        oracle.step()
        q.data.copy_(q.to(dtype))
    step = torch.finfo(dtype).eps if dtype in DTYPES[1:] else 1e-6
    different = (p.detach().float() - q).abs() > 1e-6 + 2e-6 * q.abs()
    torch.testing.assert_close(p.detach().float(), q.detach(), rtol=2 * step, atol=1e-5)
    assert different.float().mean() < 0.02, "only where a value lies on the edge between two numbers of the dtype"


@EVERY_CONFIG
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_8_bit_state_tracks_32_bit_state(name, config, dtype):
    case = CASES[name]
    # Small enough that a 16-bit weight can take the steps.
    start = (torch.randn(64, 128) * (1.0 if dtype == torch.float32 else 0.02)).to(dtype)
    ends = {}
    for bits in (8, 32):
        p = start.clone().requires_grad_()
        optimizer = case.optimizer([p], lr=case.lr, optim_bits=bits, **config)
        for (g,) in gradients(30, p.shape):
            p.grad = g.to(dtype) + 0.05 * p.detach()
            optimizer.step()
        ends[bits] = p.detach().float()
    way = (ends[32] - start.float()).norm()
    assert way > 0
    assert (ends[8] - ends[32]).norm() <= case.tracks_within * way


@EVERY_RULE
@pytest.mark.parametrize("bits", [8, 32])
def test_training_descends(name, bits):
    case = CASES[name]
    target, p = torch.randn(80, 80), torch.randn(80, 80, requires_grad=True)
    optimizer = case.optimizer([p], lr=case.lr, optim_bits=bits)
    first = None
    for _ in range(100):
        optimizer.zero_grad()
        loss = (p - target).square().sum() / 2
        loss.backward()
        optimizer.step()
        first = loss.item() if first is None else first
    assert loss.item() < 0.9 * first


@EVERY_RULE
def test_state_takes_two_bytes_a_parameter_and_moment(name):
    case = CASES[name]
    p = torch.randn(1024, 256, requires_grad=True)
    p.grad = torch.randn_like(p)
    optimizer = case.optimizer([p], lr=case.lr, optim_bits=8, **case.configs[1])
    optimizer.step()
    tensors = [value for value in optimizer.state[p].values() if torch.is_tensor(value)]
    size = sum(t.numel() * t.element_size() for t in tensors)
    assert size / p.numel() <= 1.02 * len(case.optimizer.states)


@EVERY_RULE
def test_constructor_from_defaults_gives_the_same_optimizer(name):
    case = CASES[name]
    for config in case.configs:
        first = case.optimizer([torch.zeros(5000, requires_grad=True)], lr=case.lr, optim_bits=8, **config)
        again = type(first)(first.param_groups[0]["params"], **first.defaults)
        assert again.defaults == first.defaults
        assert again.param_groups[0] == first.param_groups[0]
