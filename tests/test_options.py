"""Options of every rule: clipping, longest update, one absmax a tensor, skipped zeros, rounding."""

import pytest
import torch
from cases import CASES

import torch_bnb as bnb

EVERY_RULE = pytest.mark.parametrize("name", CASES)
BITS = pytest.mark.parametrize("bits", [8, 32])


def make(name, params, **options):
    return CASES[name].optimizer(params, lr=CASES[name].lr, **options)


def param(n=3000, dtype=torch.float32):
    p = torch.randn(n).to(dtype).requires_grad_()
    p.grad = torch.randn(n).to(dtype)
    return p


def copy_of(p):
    q = p.detach().clone().requires_grad_()
    q.grad = p.grad.clone()
    return q


@EVERY_RULE
@BITS
def test_a_longer_update_than_max_unorm_is_scaled_down_to_it(name, bits):
    p = param()
    free, bound, loose = p, copy_of(p), copy_of(p)
    ways, tight = [], 1e-4 if name == "lars" else 0.05
    for q, limit in ((free, 0.0), (bound, tight), (loose, 1e4)):
        before = q.detach().clone()
        make(name, [q], optim_bits=bits, min_8bit_size=0, max_unorm=limit).step()
        ways.append((before - q.detach()).double())
    assert torch.equal(ways[0], ways[2])
    lr, length = CASES[name].lr, before.double().norm()
    torch.testing.assert_close(ways[1].norm(), tight * lr * length, rtol=1e-3, atol=0)
    cosine = torch.nn.functional.cosine_similarity(ways[0], ways[1], dim=0)
    assert cosine > 0.99, "the direction stays"


@EVERY_RULE
def test_one_absmax_for_the_whole_tensor(name):
    p = param()
    config = CASES[name].configs[1]
    optimizer = make(name, [p], optim_bits=8, min_8bit_size=0, block_wise=False, **config)
    reference = make(name, [q := copy_of(p)], optim_bits=8, min_8bit_size=0, **config)
    for _ in range(3):
        optimizer.step()
        reference.step()
    kept = [key for key in optimizer.state[p] if key.endswith("_absmax")]
    assert kept and all(optimizer.state[p][key].shape == (1,) for key in kept)
    for key in kept:
        torch.testing.assert_close(optimizer.state[p][key][0], reference.state[q][key].max(), rtol=0.1, atol=0)
    assert (p - q).norm() <= 0.1 * (p.detach() - p.grad).norm()
    again = make(name, [copy_of(p)], optim_bits=8, min_8bit_size=0, block_wise=False, **config)
    again.load_state_dict(optimizer.state_dict())
    assert all(again.state_dict()["state"][0][key].shape == (1,) for key in kept)


@EVERY_RULE
def test_one_absmax_for_a_tensor_of_one_block_resumes_bit_for_bit(name):
    """Its absmax has the shape that blocks have: taken for those, it would be encoded anew at every resume."""
    config = {"optim_bits": 8, "min_8bit_size": 0, "block_wise": False, **CASES[name].configs[1]}
    p = param(200)
    q = copy_of(p)
    optimizer, other = make(name, [p], **config), make(name, [q], **config)
    for _ in range(6):
        p.grad = torch.randn(200)
        q.grad = p.grad.clone()
        optimizer.step()
        saved = other.state_dict()
        other = make(name, [q], **config)
        other.load_state_dict(saved)
        other.step()
    assert torch.equal(p, q)


def test_block_wise_may_change_between_steps(manager):
    p = param()
    optimizer = bnb.optim.AdamW([p], optim_bits=8, min_8bit_size=0)
    shapes = []
    for block_wise in (True, False, True):
        manager.override_config(p, "block_wise", block_wise)
        optimizer.step()
        shapes.append(optimizer.state[p]["exp_avg_absmax"].numel())
    assert shapes == [12, 1, 12] and optimizer.state[p]["step"] == 3


@EVERY_RULE
@BITS
@pytest.mark.parametrize("key", ["skip_zeros", "is_sparse"])
def test_elements_without_gradient_stay_with_their_state(name, bits, key, manager):
    p = param()
    manager.override_config(p, key, True)
    optimizer = make(name, [p], optim_bits=bits, min_8bit_size=0, **CASES[name].configs[1])
    optimizer.step()
    before, state = p.detach().clone(), {k: v.clone() for k, v in optimizer.state[p].items() if torch.is_tensor(v)}
    p.grad = torch.randn(3000)
    p.grad[256:1000] = 0  # two whole blocks and a part of one
    p.grad[5] = 0
    optimizer.step()
    skipped = p.grad == 0
    assert torch.equal(p[skipped], before[skipped]) and not torch.equal(p[~skipped], before[~skipped])
    for key, value in optimizer.state[p].items():
        if torch.is_tensor(value) and value.shape == p.shape:
            whole = slice(256, 768)
            assert torch.equal(value[whole], state[key][whole]), key
            if bits == 32:
                assert torch.equal(value[skipped], state[key][skipped]), key


@EVERY_RULE
def test_blocks_without_gradient_keep_their_state_when_the_tensors_absmax_changes(name):
    p = param(1024)
    options = {"optim_bits": 8, "min_8bit_size": 0, "block_wise": False, "skip_zeros": True}
    optimizer = make(name, [p], **options, **CASES[name].configs[1])

    def decoded(state):
        codes, absmax = optimizer.state[p][f"{state}_codes"], optimizer.state[p][f"{state}_absmax"]
        return bnb.codec.dequantize_blockwise(codes, absmax, optimizer.states[state], p.numel())[256:]

    optimizer.step()
    active = optimizer.active_states(optimizer.param_groups[0])
    before, kept = {state: decoded(state) for state in active}, p.detach()[256:].clone()
    p.grad = torch.cat([torch.randn(256) * 30, torch.zeros(768)])
    optimizer.step()
    assert torch.equal(p[256:], kept)
    for state in active:
        absmax = optimizer.state[p][f"{state}_absmax"].item()
        torch.testing.assert_close(decoded(state), before[state], rtol=0, atol=absmax / 100)  # a code is not far away


@EVERY_RULE
def test_a_gradient_is_scaled_to_the_percentile_of_its_norms(name):
    p = param(64)
    q = copy_of(p)
    clipped = make(name, [p], percentile_clipping=50)
    plain = make(name, [q])
    norms = []
    for step in range(8):
        grad = torch.randn(64) * (100 if step == 6 else 1)
        norms.append(grad.norm())
        limit = torch.quantile(torch.stack(norms), 0.5)
        p.grad = grad
        q.grad = grad * min(1.0, (limit / grad.norm()).item())
        clipped.step()
        plain.step()
    torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-5)
    history = clipped.state[p]["grad_norms"]
    torch.testing.assert_close(history[-8:], torch.stack(norms))
    assert history[:-8].isnan().all() and history.shape == (100,)
    other = make(name, [copy_of(p)], percentile_clipping=50)
    other.load_state_dict(clipped.state_dict())
    assert torch.equal(other.state_dict()["state"][0]["grad_norms"][-8:], history[-8:])


@EVERY_RULE
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_stochastic_rounding_is_the_same_for_the_same_seed_and_any_threads(name, dtype):
    start, ends = param(50_000, dtype), []
    threads = torch.get_num_threads()
    rounding = {"state_rounding": "stochastic", "weight_rounding": "stochastic"}
    try:
        for seed, count in ((1, 1), (1, 3), (2, 1)):
            torch.set_num_threads(count)
            p = copy_of(start)
            optimizer = make(name, [p], optim_bits=8, seed=seed, **rounding, **CASES[name].configs[1])
            for _ in range(3):
                optimizer.step()
            states = [optimizer.state[p][k].flatten() for k in sorted(optimizer.state[p]) if k.endswith("_codes")]
            ends.append(torch.cat([p.detach().double(), *states]))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(ends[0], ends[1])
    assert not torch.equal(ends[0], ends[2])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_small_steps_move_16_bit_weights_on_the_average(dtype):
    moved = {}
    for rounding in ("nearest", "stochastic"):
        p = torch.ones(20_000, dtype=dtype, requires_grad=True)
        optimizer = bnb.optim.SGD([p], lr=1e-5, weight_rounding=rounding)
        for _ in range(20):
            p.grad = torch.ones_like(p)
            optimizer.step()
        moved[rounding] = 1 - p.detach().double().mean().item()
    assert moved["nearest"] == 0
    assert moved["stochastic"] == pytest.approx(2e-4, rel=0.1)


@pytest.mark.parametrize(
    ("dtype", "value"),
    [(torch.bfloat16, value) for value in (6.0e-8, 0.3337, 65_519.0, 3.2e38)]
    + [(torch.float16, value) for value in (6.0e-8, 3.1e-6, 6.2e-5, 0.3337, 65_519.0)],
    ids=str,
)
def test_stochastic_weights_are_one_of_the_two_neighbours(dtype, value):
    p = torch.zeros(4000, dtype=dtype, requires_grad=True)
    p.grad_dtype = None
    p.grad = torch.full((4000,), -value)
    bnb.optim.SGD([p], lr=1.0, weight_rounding="stochastic").step()
    found = p.detach().double().unique()
    exact = torch.tensor(value).double()
    assert found.isfinite().all() and len(found) <= 2
    nearest = exact.to(dtype).double()
    assert nearest in found or not nearest.isfinite()
    spacing = max(float(exact) * torch.finfo(dtype).eps * 2, 2.0**-24 if dtype == torch.float16 else 0)
    assert ((found - exact).abs() <= spacing).all()
    if len(found) == 2 and nearest.isfinite():
        torch.testing.assert_close(p.detach().double().mean(), exact, rtol=0.1, atol=float(spacing) * 0.05)


def test_stochastic_states_follow_a_small_change_that_nearest_rounding_never_sees():
    second = {}
    for rounding in ("nearest", "stochastic"):
        torch.manual_seed(0)
        p = torch.zeros(8192, requires_grad=True)
        optimizer = bnb.optim.Adam([p], lr=0.0, betas=(0.9, 0.999), optim_bits=8, state_rounding=rounding)
        for step in range(3000):
            p.grad = torch.randn(8192) * (1.0 if step < 1500 else 0.7)
            optimizer.step()
        state = optimizer.state[p]
        decoded = bnb.codec.dequantize_blockwise(state["exp_avg_sq_codes"], state["exp_avg_sq_absmax"], signed=False)
        decay = 0.999**1500
        true = (1 - decay) * decay + 0.49 * (1 - decay)  # the mean of the second moment, its start at 0 included
        second[rounding] = decoded.mean().item() / true
    assert abs(second["stochastic"] - 1) < 0.05
    assert abs(second["nearest"] - 1) > 3 * abs(second["stochastic"] - 1)


@EVERY_RULE
def test_auto_is_stochastic_for_first_moments_that_keep_more_than_99_hundredths(name):
    start, codes = param(), {}
    for rounding in ("auto", "nearest", "stochastic"):
        p = copy_of(start)
        options = {**CASES[name].configs[1], "state_rounding": rounding}
        optimizer = make(name, [p], optim_bits=8, min_8bit_size=0, **options)
        optimizer.step()
        p.grad = start.grad.flip(0)  # after one step, RMSprop's buffer is one number and its negative
        optimizer.step()
        state = optimizer.state[p]
        codes[rounding] = {key: state[key] for key in state if key.endswith("_codes")}
    slow = {"exp_avg_slow_codes"} if name == "ademamix" else set()
    for key in codes["auto"]:
        assert torch.equal(codes["auto"][key], codes["stochastic" if key in slow else "nearest"][key]), key
        assert not torch.equal(codes["stochastic"][key], codes["nearest"][key]), key


def test_auto_follows_the_decay_of_each_parameter(manager):
    fast, slow = param(), param()
    manager.override_config(slow, "betas", (0.995, 0.999))
    slow.grad, slow.data = fast.grad.clone(), fast.data.clone()
    optimizer = make("adam", [fast, slow], optim_bits=8, min_8bit_size=0)
    twin = make("adam", [q := copy_of(fast)], optim_bits=8, min_8bit_size=0, state_rounding="nearest")
    optimizer.step()
    twin.step()
    assert torch.equal(optimizer.state[fast]["exp_avg_codes"], twin.state[q]["exp_avg_codes"])
    assert not torch.equal(optimizer.state[slow]["exp_avg_codes"], twin.state[q]["exp_avg_codes"])
    assert torch.equal(optimizer.state[slow]["exp_avg_sq_codes"], twin.state[q]["exp_avg_sq_codes"])


@EVERY_RULE
def test_decays_speak_of_the_rules_states(name):
    optimizer = make(name, [param()])
    decays = optimizer.decays(optimizer.param_groups[0])
    assert decays.keys() == optimizer.states.keys() and all(0 <= decay <= 1 for decay in decays.values())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"state_rounding": "up"}, "state_rounding='up': expected 'auto' or 'nearest' or 'stochastic'"),
        ({"weight_rounding": None}, "weight_rounding=None: expected 'nearest' or 'stochastic'"),
        ({"percentile_clipping": 101}, "percentile_clipping=101: expected an integer from 1 to 100"),
        ({"max_unorm": -1.0}, r"max_unorm=-1\.0: expected a finite number >= 0"),
        ({"block_wise": 1}, "block_wise=1: expected True or False"),
        ({"seed": 0.5}, r"seed=0\.5: expected an integer"),
    ],
)
def test_impossible_values_are_errors(options, message):
    with pytest.raises(ValueError, match=message):
        bnb.optim.AdamW([param()], **options)


def test_a_mean_that_would_grow_negative_is_an_error():
    with pytest.raises(ValueError, match=r"RMSprop: alpha=1\.5: expected a number in \[0, 1\)"):
        bnb.optim.RMSprop([param()], alpha=1.5)


OPTIONS = {
    "none": {},
    "percentile_clipping": {"percentile_clipping": 50},
    "max_unorm": {"max_unorm": 0.1},
    "block_wise": {"block_wise": False},
    "stochastic": {"state_rounding": "stochastic"},
    "capturable": {"capturable": True},
}


@pytest.mark.parametrize("option", OPTIONS)
@EVERY_RULE
def test_parameters_on_several_devices_step_as_those_of_each_alone(name, option):
    """The second device is meta, which has shapes and no numbers: what mixes the two is an error."""

    def model(device, seed):
        torch.manual_seed(seed)
        found = [torch.randn(shape, device=device).requires_grad_() for shape in ((70, 80), (5000,))]
        for p in found:
            p.grad = torch.randn_like(p)
        return found

    case = CASES[name]
    options = {"lr": case.lr, "optim_bits": 8, **OPTIONS[option]}
    alone, here, there = model("cpu", 0), model("cpu", 0), model("meta", 0)
    both = case.optimizer([*here, *there], **options)
    one = case.optimizer(alone, **options)
    for _ in range(3):
        both.step()
        one.step()
    assert all(map(torch.equal, here, alone))
    for p, q in zip(here, there, strict=True):
        for key, value in both.state[p].items():
            if key != "step":
                assert (value.device.type, value.shape) == ("cpu", both.state[q][key].shape)
                assert both.state[q][key].is_meta
