"""What docs/optimizers says that 8 bits do to each rule, measured: the advice may not outlive the facts."""

import pytest
import torch

import torch_bnb as bnb
from torch_bnb.codec import dequantize_blockwise


def steps(optimizer, count, gradient, size=4096, start=None, **options):
    """The optimizer after `count` steps and its parameter; ``gradient(p)`` gives each gradient."""
    torch.manual_seed(0)
    p = (torch.zeros(size) if start is None else start.clone()).requires_grad_()
    made = optimizer([p], **options)
    for _ in range(count):
        p.grad = gradient(p.detach())
        made.step()
    return made, p.detach()


def longest(optimizer, gradient, **options):
    """The longest step of any element in 300 steps at rate 1."""
    torch.manual_seed(0)
    p = torch.zeros(4096, requires_grad=True)
    made, most = optimizer([p], lr=1.0, **options), 0.0
    for _ in range(300):
        before = p.detach().clone()
        p.grad = gradient(before)
        made.step()
        most = max(most, (p.detach() - before).abs().max().item())
    return most


def test_one_sign_in_a_hundred_of_lions_is_another_in_8_bits():
    torch.manual_seed(0)
    pair = [torch.zeros(8192, requires_grad=True) for _ in range(2)]
    optimizers = [bnb.optim.Lion([p], lr=1.0, optim_bits=bits) for p, bits in zip(pair, (8, 32), strict=True)]
    different = []
    for _ in range(200):
        pair[0].grad = pair[1].grad = torch.randn(8192)
        before = [p.detach().clone() for p in pair]
        for optimizer in optimizers:
            optimizer.step()
        moves = [p.detach() - old for p, old in zip(pair, before, strict=True)]
        different.append((moves[0] != moves[1]).float().mean())
    assert 0.005 < torch.stack(different[100:]).mean() < 0.02


def test_rmsprops_first_step_is_ten_times_the_rate():
    _, p = steps(bnb.optim.RMSprop, 1, torch.ones_like, lr=1e-3)
    torch.testing.assert_close(p, torch.full((4096,), -1e-2), rtol=1e-4, atol=0)


@pytest.mark.parametrize("bits", [8, 32])
@pytest.mark.parametrize("deviation", [0.5, 0.3, 0.01])
def test_centered_rmsprop_has_bounded_steps_whatever_rounding_makes_of_the_variance(bits, deviation):
    def gradient(p):
        return 1 + deviation * torch.randn_like(p)

    first = 11  # in learning rates, without and with centering
    assert longest(bnb.optim.RMSprop, gradient, optim_bits=bits) < first
    largest = 1 + 5 * deviation  # of some thousand normal numbers
    bound = max(first, 1.3 * largest / deviation if bits == 32 else largest * 32**0.5)
    assert longest(bnb.optim.RMSprop, gradient, optim_bits=bits, centered=True) < bound


def test_small_parameters_of_an_8_bit_optimizer_have_no_least_variance():
    ours, theirs = (torch.ones(100, requires_grad=True) for _ in range(2))
    optimizer = bnb.optim.RMSprop([ours], lr=1e-3, centered=True, optim_bits=8)
    oracle = torch.optim.RMSprop([theirs], lr=1e-3, centered=True)
    for _ in range(100):
        ours.grad = 1 + 0.05 * torch.randn(100)
        theirs.grad = ours.grad.clone()
        optimizer.step()
        oracle.step()
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
def test_adagrads_sum_stays_within_a_third_for_nine_elements_in_ten(rounding):
    sizes = 10.0 ** torch.linspace(-2, 0, 4096)[torch.randperm(4096)]
    for count in (2000, 10_000):
        exact = steps(bnb.optim.Adagrad, count, lambda p: torch.randn_like(p) * sizes, lr=0.0)
        found = steps(
            bnb.optim.Adagrad, count, lambda p: torch.randn_like(p) * sizes, lr=0.0, optim_bits=8,
            state_rounding=rounding,
        )  # fmt: skip
        (state,), (truth,) = found[0].state.values(), exact[0].state.values()
        share = dequantize_blockwise(state["sum_codes"], state["sum_absmax"], signed=False) / truth["sum"]
        within = ((share > 2 / 3) & (share < 4 / 3)).float().mean()
        assert within > 0.9 if rounding == "nearest" else within < 0.95, within


def test_ademamix_in_8_bits_needs_stochastic_rounding():
    torch.manual_seed(0)
    target = torch.randn(8192)
    losses = {}
    for bits, rounding in ((32, "nearest"), (8, "nearest"), (8, "stochastic"), (8, "auto")):
        optimizer, p = steps(
            bnb.optim.AdEMAMix, 2000, lambda p: p - target + torch.randn_like(p), size=8192, betas=(0.9, 0.999, 0.999),
            t_alpha=2000, t_beta3=2000, weight_decay=0.0, optim_bits=bits, state_rounding=rounding,
        )  # fmt: skip
        losses[bits, rounding] = (p - target).square().mean().item()
        if (bits, rounding) == (8, "nearest"):
            (state,), (q,) = optimizer.state.values(), optimizer.param_groups[0]["params"]
            before = state["exp_avg_slow_codes"].clone()
            q.grad = p - target + torch.randn_like(p)
            optimizer.step()
            assert (state["exp_avg_slow_codes"] == before).float().mean() > 0.5
    assert losses[32, "nearest"] == pytest.approx(0.045, rel=0.1)
    assert losses[8, "stochastic"] == pytest.approx(0.045, rel=0.1)
    assert losses[8, "auto"] == pytest.approx(0.051, rel=0.1)
    assert losses[8, "nearest"] == pytest.approx(0.34, rel=0.1)


@pytest.mark.parametrize("bits", [8, 32])
def test_a_tensor_that_starts_at_0_moves_slowly_under_lamb(bits):
    _, slow = steps(bnb.optim.LAMB, 100, torch.ones_like, lr=1e-2, optim_bits=bits)
    _, free = steps(bnb.optim.AdamW, 100, torch.ones_like, lr=1e-2, optim_bits=bits)
    assert slow.abs().mean() < 0.05 * free.abs().mean()


@pytest.mark.parametrize("bits", [8, 32])
@pytest.mark.parametrize(("rule", "share"), [("LAMB", 1.0), ("LARS", 1e-3)])
def test_a_layer_wise_step_is_a_share_of_the_tensors_length(rule, share, bits):
    torch.manual_seed(0)
    start = torch.randn(4096)
    _, p = steps(getattr(bnb.optim, rule), 1, torch.randn_like, start=start, lr=0.01, optim_bits=bits, weight_decay=0.0)
    assert (p - start).norm() / start.norm() == pytest.approx(0.01 * share, rel=1e-2)
