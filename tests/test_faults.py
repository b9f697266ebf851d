"""What a step does with numbers that go wrong and sizes that do not fit: as the oracle in 32 bits, by blocks in 8."""

import pytest
import seeded
import torch
from cases import CASES, CONFIGS
from hypothesis import given, settings
from hypothesis import strategies as st

from torch_bnb.codec import dequantize_blockwise, quantize_blockwise

EVERY_RULE = pytest.mark.parametrize("name", CASES)
EVERY_CONFIG = pytest.mark.parametrize(
    ("name", "config"), CONFIGS, ids=[f"{n}-{'-'.join(c) or 'default'}" for n, c in CONFIGS]
)
BAD = pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")], ids=str)


def make(name, p, bits, **options):
    """Rounds to the nearest code, so that every bit of a state is known."""
    common = {"optim_bits": bits, "min_8bit_size": 0, "state_rounding": "nearest"}
    return CASES[name].optimizer([p], lr=CASES[name].lr, **{**common, **options})


def oracle(name, q, **options):
    return CASES[name].oracle([q], lr=CASES[name].lr, **options)


def without(name, *options):
    """These options at zero, as far as the rule has them."""
    return {option: 0.0 for option in options if option in CASES[name].optimizer.options}


def values(optimizer, p):
    """Every state that is kept, as float32."""
    state, found = optimizer.state[p], {}
    for name, signed in optimizer.states.items():
        if name in state:
            found[name] = state[name]
        elif f"{name}_codes" in state:
            codes, absmax = state[f"{name}_codes"], state[f"{name}_absmax"]
            whole = optimizer.param_groups[0]["block_wise"] is False
            found[name] = dequantize_blockwise(codes, absmax, signed, max(1, codes.numel()) if whole else 256)
    return found


def gradients(steps, size, seed=1):
    generator = seeded.generator(seed)
    return [torch.randn(size, generator=generator) * 0.1 * (1 + i % 3) for i in range(steps)]


@EVERY_CONFIG
@BAD
def test_in_32_bits_what_the_oracle_makes_non_finite_is_so_and_nothing_else(name, config, bad):
    """Of the elements that got it ours may say more: infinity becomes NaN a step earlier than in some oracles."""
    p = torch.randn(600, requires_grad=True)
    q = p.detach().clone().requires_grad_()
    ours, theirs = make(name, p, 32, **config), oracle(name, q, **config)
    good = torch.ones(600, dtype=torch.bool)
    good[[3, 300]] = False
    for step, g in enumerate(gradients(6, 600)):
        g[~good] = bad if step == 2 else g[~good]
        p.grad, q.grad = g.clone(), g.clone()
        ours.step()
        theirs.step()
        pairs = [(p.detach(), q.detach()), *((value, theirs.state[q][key]) for key, value in values(ours, p).items())]
        for found, expected in pairs:
            torch.testing.assert_close(found[good], expected[good], rtol=1e-5, atol=1e-6)
            assert not found[~expected.isfinite()].isfinite().any()
            assert found[good].isfinite().all()
    assert all(not value[~good].isfinite().any() for value in values(ours, p).values())


@EVERY_CONFIG
@BAD
def test_in_8_bits_a_non_finite_gradient_takes_its_block_and_no_other(name, config, bad):
    start, ends = torch.randn(600), {}
    for spoilt in (False, True):
        p = start.clone().requires_grad_()
        optimizer = make(name, p, 8, **config)
        for step, g in enumerate(gradients(6, 600)):
            if spoilt and step == 2:
                g[300] = bad
            p.grad = g
            optimizer.step()
            if spoilt and step >= 2:  # finite gradients afterwards hide nothing
                for value in values(optimizer, p).values():
                    assert not value[256:512].isfinite().any()
        ends[spoilt] = p.detach(), values(optimizer, p)
    outside = torch.ones(600, dtype=torch.bool)
    outside[256:512] = False
    (clean, clean_states), (spoilt, states) = ends[False], ends[True]
    assert spoilt[outside].isfinite().all()
    assert not spoilt[256:512].isfinite().all() if states else not spoilt[300].isfinite()
    if not CASES[name].optimizer.layerwise:  # those share a norm
        assert torch.equal(spoilt[outside], clean[outside])
        assert all(torch.equal(states[key][outside], clean_states[key][outside]) for key in states)


@EVERY_RULE
@pytest.mark.parametrize("options", [{"max_unorm": 0.1}, {"percentile_clipping": 50}, {"block_wise": False}], ids=str)
@pytest.mark.parametrize("bits", [8, 32])
@BAD
def test_no_option_hides_a_non_finite_gradient(name, options, bits, bad):
    p = torch.randn(600, requires_grad=True)
    optimizer = make(name, p, bits, **options, **CASES[name].configs[1])
    for step, g in enumerate(gradients(6, 600)):
        if step == 3:
            g[300] = bad
        p.grad = g
        optimizer.step()
    assert all(not value[300].isfinite() for value in values(optimizer, p).values())
    assert options == {"block_wise": False} or p[:256].isfinite().all()


@EVERY_RULE
@pytest.mark.parametrize("bits", [8, 32])
def test_a_block_without_gradient_stays_and_divides_nothing_by_zero(name, bits):
    p = torch.randn(600, requires_grad=True)
    before = p.detach().clone()
    optimizer = make(name, p, bits, **without(name, "weight_decay"))
    p.grad = torch.zeros(600)
    optimizer.step()
    assert torch.equal(p, before)
    for g in gradients(5, 600):
        p.grad = g
        p.grad[256:512] = 0
        optimizer.step()
    assert torch.equal(p[256:512], before[256:512])
    assert p.isfinite().all() and not (p == before)[:256].any()
    for key, value in values(optimizer, p).items():
        assert (value[256:512] == 0).all() and value.isfinite().all()
        assert bits == 32 or optimizer.state[p][f"{key}_absmax"][1] == 0


SMALLEST = 2.0**-149
"""Subnormal, of float32."""
TINY_AND_HUGE = pytest.mark.parametrize("scale", [1e-44, 1e-40, 1e-30, 1e-20, 1e-10, 1e10, 1e15])


@EVERY_RULE
@TINY_AND_HUGE
def test_states_of_every_size_are_kept_as_well_in_8_bits(name, scale):
    """1e-44 is subnormal with three bits left, its square is zero; 1e-20 is a number with a subnormal square."""
    p = torch.randn(600, requires_grad=True)
    kept, options = {}, {**CASES[name].configs[1], **without(name, "weight_decay")}
    for bits in (8, 32):
        q = p.detach().clone().requires_grad_()
        optimizer = make(name, q, bits, **options)
        q.grad = torch.randn(600, generator=seeded.generator(0)) * scale
        optimizer.step()
        kept[bits] = values(optimizer, q), q.detach()
    for key, exact in kept[32][0].items():
        for block, found in zip(exact.split(256), kept[8][0][key].split(256), strict=True):
            assert ((found - block).abs() <= 0.0075 * block.abs().max() + 3e-45).all(), "half the code's widest gap"
    assert torch.equal(kept[8][1], kept[32][1]), "the first step does not depend on how the state is kept"


def test_lars_has_a_finite_ratio_for_a_subnormal_gradient_without_decay():
    p = torch.randn(600, requires_grad=True)
    optimizer = make("lars", p, 32, weight_decay=0.0)
    p.grad = torch.full((600,), 1e-40)
    optimizer.step()
    assert p.isfinite().all() and optimizer.state[p]["momentum_buffer"].isfinite().all()


@EVERY_RULE
@TINY_AND_HUGE
def test_32_bit_steps_at_every_scale_are_the_oracles(name, scale):
    p = torch.randn(600, requires_grad=True)
    q = p.detach().clone().requires_grad_()
    ours, theirs = make(name, p, 32), oracle(name, q)
    decided = torch.ones(600, dtype=torch.bool)
    for g in gradients(5, 600):
        p.grad, q.grad = g * scale, g * scale
        if name == "lion":  # all of its step is a sum's sign, which rounding, of state too, chooses next to zero
            beta1, _ = theirs.defaults["betas"]
            before = theirs.state[q].get("exp_avg", torch.zeros(600)).double()
            decided &= (beta1 * before + (1 - beta1) * q.grad.double()).abs() > 4 * SMALLEST
        ours.step()
        theirs.step()
    torch.testing.assert_close(p[decided], q[decided], rtol=1e-4, atol=1e-6)
    assert decided.float().mean() > 0.95 or scale < 1e-40


@EVERY_RULE
@pytest.mark.parametrize("bits", [8, 32])
def test_gradients_whose_squares_overflow_stop_elements_and_make_no_nan_from_them(name, bits):
    """As in torch, a second moment of infinity divides a step down to nothing. In 8 bits its block is lost then."""
    p = torch.randn(600, requires_grad=True)
    before = p.detach().clone()
    optimizer = make(name, p, bits, **without(name, "weight_decay"))
    p.grad = torch.full((600,), 1e-3)
    p.grad[:256] = 1e30
    optimizer.step()
    assert p.isfinite().all()
    squares = {"exp_avg_sq", "square_avg", "sum"} & set(optimizer.states)
    for key in squares:
        assert torch.equal(p[:256], before[:256]) or CASES[name].optimizer.layerwise
        assert not values(optimizer, p)[key][:256].isfinite().any() and values(optimizer, p)[key][256:].isfinite().all()


@EVERY_RULE
@settings(max_examples=15)
@given(exponent=st.integers(-40, 40), seed=st.integers(0, 1000))
def test_the_codes_do_not_depend_on_the_gradients_scale(name, exponent, seed):
    """Without eps and decay, doubling every gradient doubles or quadruples the states, to the last bit."""
    start = torch.randn(600, generator=seeded.generator(seed))
    options, ends = without(name, "eps", "weight_decay"), []
    for scale in (1.0, 2.0**exponent):
        p = start.clone().requires_grad_()
        optimizer = make(name, p, 8, **{**options, **({"momentum": 0.9} if name == "sgd" else {})})
        for g in gradients(4, 600, seed):
            p.grad = g * scale
            optimizer.step()
        ends.append((p.detach(), [optimizer.state[p][f"{key}_codes"] for key in values(optimizer, p)]))
    assert ends[0][1] and all(torch.equal(a, b) for a, b in zip(ends[0][1], ends[1][1], strict=True))
    if name != "sgd":  # the only one whose steps grow with the gradient
        assert torch.equal(ends[0][0], ends[1][0])


def encoded(exact, signed):
    """As a step stores it: a second moment that is not zero does not become zero."""
    codes, absmax = quantize_blockwise(exact, signed)
    if not signed:
        codes[(codes == 0) & (exact > 0)] = 1
    return codes, absmax


@EVERY_CONFIG
@pytest.mark.parametrize("size", [0, 1, 255, 256, 257, 600])
def test_an_8_bit_step_is_decode_the_rule_in_float64_encode(name, config, size):
    p = torch.randn(size, requires_grad=True)
    q = p.detach().double().requires_grad_()
    optimizer, exact = make(name, p, 8, **config), oracle(name, q, **config)
    for g in gradients(6, size):
        q.data.copy_(p)
        for key, value in values(optimizer, p).items():
            exact.state[q][key] = value.double()
        p.grad, q.grad = g.clone(), g.double()
        optimizer.step()
        exact.step()
        torch.testing.assert_close(p.double(), q, rtol=1e-6, atol=2e-6)
        for key in values(optimizer, p):
            codes, absmax = encoded(exact.state[q][key].float(), optimizer.states[key])
            found = optimizer.state[p][f"{key}_codes"]
            torch.testing.assert_close(optimizer.state[p][f"{key}_absmax"], absmax, rtol=1e-5, atol=0)
            assert found.shape == (size,) and (found.int() - codes.int()).abs().sum() <= 0.01 * size + 1, "the edge"


@EVERY_CONFIG
@pytest.mark.parametrize("size", [1, 255, 257])
def test_a_tail_steps_as_the_block_filled_up_with_zeros(name, config, size):
    """Neither are elements beyond the end read, nor do they count in an absmax or a norm."""
    short = torch.randn(size, requires_grad=True)
    full = torch.cat([short.detach(), torch.zeros(-size % 256)]).requires_grad_()
    optimizers = make(name, short, 8, **config), make(name, full, 8, **config)
    for g in gradients(5, size):
        short.grad, full.grad = g, torch.cat([g, torch.zeros(-size % 256)])
        for optimizer in optimizers:
            optimizer.step()
    assert torch.equal(short, full[:size])
    for key in values(optimizers[0], short):
        ours, padded = (o.state[q] for o, q in zip(optimizers, (short, full), strict=True))
        assert torch.equal(ours[f"{key}_codes"], padded[f"{key}_codes"][:size])
        assert torch.equal(ours[f"{key}_absmax"], padded[f"{key}_absmax"])
