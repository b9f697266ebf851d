"""capturable=True: the count, the rate and the loss scale on the device. The same code on a CPU as on a GPU."""

import copy
import weakref

import pytest
import torch
from cases import CASES, CONFIGS
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict

import torch_bnb as bnb
from torch_bnb.optim import host

SHAPES = ((64, 80), (700,), (3,))


def train(name, config, steps=6, reload_at=None, **common):
    torch.manual_seed(1)
    params = [torch.randn(shape, requires_grad=True) for shape in SHAPES]
    options = {"lr": CASES[name].lr, **config, **common, "min_8bit_size": 256}
    lr = options["lr"]
    optimizer = CASES[name].optimizer([{"params": params[:2]}, {"params": params[2:], "lr": lr}], **options)
    for step in range(steps):
        if step == reload_at:
            saved = copy.deepcopy(optimizer.state_dict())
            optimizer = CASES[name].optimizer([{"params": params[:2]}, {"params": params[2:]}], **options)
            optimizer.load_state_dict(saved)
        for p in params:
            p.grad = torch.randn_like(p)
        optimizer.step()
    return params, optimizer


@pytest.mark.parametrize("bits", [8, 32])
@pytest.mark.parametrize(("name", "config"), CONFIGS)
def test_it_steps_as_without(name, config, bits):
    plain, _ = train(name, config, optim_bits=bits)
    captured, optimizer = train(name, config, optim_bits=bits, capturable=True)
    assert all(map(torch.equal, plain, captured))
    count = optimizer.state[captured[0]]["step"]
    assert count.dtype == torch.float64 and count == 6


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_the_rate_is_read_from_a_tensor(name):
    """With what an override makes of it, and of a rate that does not follow."""

    def run(capturable):
        bnb.optim.GlobalOptimManager.get_instance().initialize()
        torch.manual_seed(1)
        params = [torch.randn(600, requires_grad=True) for _ in range(3)]
        rate = torch.tensor(0.01)
        optimizer = CASES[name].optimizer(params, lr=rate, capturable=capturable)
        manager = bnb.optim.GlobalOptimManager.get_instance()
        manager.override_config(params[1], "lr", 0.5)
        manager.override_config(params[2], key_value_dict={"lr": 0.25, "lr_follows_schedule": False})
        for new in (0.01, 0.02, 0.0, 0.005):
            rate.fill_(new)  # in place, as between two replays of a graph
            for p in params:
                p.grad = torch.randn_like(p)
            optimizer.step()
        return params

    for plain, captured in zip(run(False), run(True), strict=True):
        torch.testing.assert_close(captured, plain, rtol=1e-6, atol=1e-7)


def test_only_the_rate_depends_on_the_rate():
    """What lets the step keep it in a tensor: the scalar lr is the option times something, the others know it not."""
    for name, config in CONFIGS:
        optimizer = CASES[name].optimizer([torch.zeros(3, requires_grad=True)], **config)
        group = optimizer.param_groups[0]
        one, other = (optimizer.scalars({**group, "lr": lr}, 7, False) for lr in (1.0, 0.25))
        assert other.pop("lr") == 0.25 * one.pop("lr") and one == other


@pytest.mark.parametrize("name", CASES)
def test_it_resumes_to_the_bit_and_the_other_way(name):
    config = {"optim_bits": 8, "state_rounding": "stochastic", "weight_rounding": "stochastic", "seed": 3}
    whole, _ = train(name, config, capturable=True)
    resumed, _ = train(name, config, capturable=True, reload_at=3)
    plain, _ = train(name, config, reload_at=4)
    assert all(map(torch.equal, whole, resumed))
    assert all(map(torch.equal, whole, plain))


@pytest.mark.parametrize("name", CASES)
def test_parameters_without_gradient_are_not_counted(name):
    """Those that step together share a count, as long as they do."""
    with_gradient = ("ab", "a", "bc", "abc", "", "c", "ab", "abc")

    def run(capturable, reload_at=None):
        torch.manual_seed(1)
        params = {key: torch.randn(600, requires_grad=True) for key in "abc"}
        options = {"lr": CASES[name].lr, "optim_bits": 8, "min_8bit_size": 1, "capturable": capturable}
        optimizer = CASES[name].optimizer(params.values(), **options)
        for step, keys in enumerate(with_gradient):
            if step == reload_at:
                saved = copy.deepcopy(optimizer.state_dict())
                optimizer = CASES[name].optimizer(params.values(), **options)
                optimizer.load_state_dict(saved)
            for key, p in params.items():
                p.grad = torch.randn(600) if key in keys else None
            optimizer.step()
        return list(params.values()), [int(optimizer.state[p]["step"]) for p in params.values()]

    expected, counts = run(False)
    assert counts == [5, 5, 4]
    for reload_at in (None, 4, 5):
        params, found = run(True, reload_at)
        assert found == counts
        assert all(map(torch.equal, params, expected))


def test_nothing_in_a_step_asks_for_a_value(monkeypatch):
    """On a GPU, asking would wait for it, and a graph could not be captured."""
    asked = []

    def noting(ask, original):
        def answer(tensor, *_):
            asked.append(ask)
            return original(tensor)

        return answer

    params = [torch.randn(600, requires_grad=True) for _ in range(3)]
    rate = torch.tensor(0.01)
    configs = {
        "adamw": {},
        "ademamix": {"t_alpha": 5, "t_beta3": 5},
        "lamb": {"max_unorm": 0.1},
        "adagrad": {"lr_decay": 0.1},
    }
    for name, config in configs.items():
        optimizer = CASES[name].optimizer(params, lr=rate, capturable=True, optim_bits=8, min_8bit_size=1, **config)
        for p in params:
            p.grad = torch.randn_like(p)
        optimizer.step()
        asked.clear()
        with monkeypatch.context() as patch:
            for ask in ("__bool__", "__float__", "__int__", "item", "tolist", "__index__"):
                patch.setattr(torch.Tensor, ask, noting(ask, getattr(torch.Tensor, ask)))
            optimizer.step()
            assert not asked, f"{name}: {asked} of tensors"
            assert float(rate) > 0 and asked, "the watch sees it"


def test_a_scaler_steps_and_skips_without_a_look():
    torch.manual_seed(0)
    start = torch.randn(600)
    plain, scaled = (start.clone().requires_grad_() for _ in range(2))
    reference = bnb.optim.AdamW([plain], lr=0.1)
    optimizer = bnb.optim.AdamW([scaled], lr=0.1, capturable=True)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for step in range(4):
        scaled.grad = None
        weights = torch.randn(600)
        scaler.scale((scaled * weights).sum()).backward()
        if step == 2:
            scaled.grad[5] = torch.inf
        else:
            plain.grad = weights
            reference.step()
        scaler.step(optimizer)
        scaler.update()
    assert scaler.get_scale() == 512.0
    assert optimizer.state[scaled]["step"] == reference.state[plain]["step"] == 3
    torch.testing.assert_close(scaled, plain)


@pytest.mark.parametrize(("name", "config"), CONFIGS)
def test_a_first_step_that_a_scaler_skips_leaves_nothing_behind(name, config):
    """The scale that a scaler starts with is usually too large."""

    def run(capturable):
        torch.manual_seed(0)
        parameter = torch.randn(600, requires_grad=True)
        options = {"lr": CASES[name].lr, "optim_bits": 8, "min_8bit_size": 1, **config}
        optimizer = CASES[name].optimizer([parameter], capturable=capturable, **options)
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
        for step in range(4):
            parameter.grad = None
            scaler.scale((parameter * torch.randn(600)).sum()).backward()
            if step == 0:
                parameter.grad[5] = torch.inf
            scaler.step(optimizer)
            scaler.update()
        assert optimizer.state[parameter]["step"] == 3
        return parameter

    torch.testing.assert_close(run(True), run(False))


@pytest.mark.parametrize("name", ["adamw", "sgd"])
@pytest.mark.parametrize("rate", [0.1, torch.tensor(0.1)], ids=["number", "tensor"])
def test_state_that_a_distributed_checkpoint_makes_is_no_step(name, rate):
    def run(asked):
        torch.manual_seed(0)
        model = torch.nn.Linear(40, 40)
        options = {"momentum": 0.9, "dampening": 0.5} if name == "sgd" else {}
        optimizer = CASES[name].optimizer(model.parameters(), lr=rate, capturable=True, **options)
        if asked:
            saved = get_optimizer_state_dict(model, optimizer)
            assert all(entry["step"] == 0 for entry in saved["state"].values())
        for _ in range(3):
            optimizer.zero_grad()
            model(torch.randn(5, 40)).square().sum().backward()
            optimizer.step()
        assert all(state["step"] == 3 for state in optimizer.state.values())
        return model.weight

    assert torch.equal(run(True), run(False))


def test_a_step_without_it_is_not_captured(monkeypatch):
    parameter = torch.zeros(8, requires_grad=True)
    parameter.grad = torch.ones(8)
    optimizer = bnb.optim.SGD([parameter], lr=1.0)
    optimizer.step()
    monkeypatch.setattr(host, "captures", lambda device: True)
    with pytest.raises(RuntimeError, match=r"SGD: a CUDA graph is being captured, .* with capturable=True"):
        optimizer.step()
    assert torch.equal(parameter, -torch.ones(8)) and optimizer.state[parameter]["step"] == 1


def test_it_is_the_whole_optimizers():
    groups = [{"params": [torch.zeros(8, requires_grad=True)], "capturable": True}]
    with pytest.raises(ValueError, match="AdamW, group 0: capturable=True: is the whole optimizer's to say"):
        bnb.optim.AdamW(groups)


def test_a_scaler_that_has_unscaled_for_clipping_leaves_nothing_to_do():
    parameter = torch.zeros(8, requires_grad=True)
    optimizer = bnb.optim.SGD([parameter], lr=1.0, capturable=True)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    scaler.scale(parameter.sum()).backward()
    scaler.unscale_(optimizer)
    torch.nn.utils.clip_grad_value_([parameter], 0.5)
    scaler.step(optimizer)
    assert torch.equal(parameter, torch.full((8,), -0.5))


def test_without_it_a_scaler_does_the_work():
    assert not bnb.optim.AdamW([torch.zeros(3, requires_grad=True)])._step_supports_amp_scaling


@pytest.mark.parametrize(
    ("options", "gradient", "message"),
    [
        (
            {"percentile_clipping": 5},
            lambda: torch.ones(4, 4),
            "parameter 0 of group 0: percentile_clipping and capturable",
        ),
        ({}, lambda: torch.eye(4).to_sparse(1), "capturable=True takes no gradient with layout torch.sparse_coo"),
    ],
)
def test_what_it_cannot_do_is_an_error(options, gradient, message):
    parameter = torch.zeros(4, 4, requires_grad=True)
    optimizer = bnb.optim.SGD([parameter], capturable=True, **options)
    parameter.grad = gradient()
    with pytest.raises(NotImplementedError, match=message):
        optimizer.step()
    assert not parameter.any()


def test_a_step_keeps_no_gradient_alive():
    p = torch.ones(5000, requires_grad=True)
    optimizer = bnb.optim.AdamW8bit([p], capturable=True)
    for _ in range(2):
        p.grad = torch.ones(5000)
        optimizer.step()
    gradient = weakref.ref(p.grad)
    optimizer.zero_grad()
    assert gradient() is None
