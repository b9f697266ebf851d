"""What the step does beside arithmetic."""

import contextlib
import pickle
import subprocess
import sys
from functools import partial

import pytest
import torch
from cases import CASES
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

import torch_bnb as bnb

EVERY_RULE = pytest.mark.parametrize("name", CASES)


def param(*shape, grad=True, dtype=torch.float32):
    p = torch.randn(*shape).to(dtype).requires_grad_()
    if grad:
        p.grad = torch.randn(*shape).to(dtype)
    return p


def make(name, params, **options):
    return CASES[name].optimizer(params, lr=CASES[name].lr, **options)


def test_closure_runs_once_with_gradients_enabled_before_they_are_read():
    p = torch.zeros(5000, requires_grad=True)
    optimizer = bnb.optim.AdamW([p], lr=0.1, optim_bits=8)
    calls = []

    def closure():
        assert torch.is_grad_enabled()
        calls.append(1)
        loss = (p - 1).square().sum()
        loss.backward()
        return loss

    assert optimizer.step(closure=closure).item() == 5000
    assert len(calls) == 1
    assert (p > 0).all()


def test_step_returns_nothing_without_a_closure():
    assert bnb.optim.SGD([param(3)]).step() is None


@EVERY_RULE
@pytest.mark.parametrize("bits", [8, 32])
def test_layout_of_parameter_and_gradient_does_not_matter(name, bits):
    dense = param(60, 90)
    transposed = dense.detach().t().contiguous().t().requires_grad_()
    assert not transposed.is_contiguous()
    every_second = torch.zeros(60, 180)[:, ::2].copy_(dense.detach()).requires_grad_()
    every_second.grad = dense.grad.t().contiguous().t()
    transposed.grad = dense.grad.clone()
    for p in (dense, transposed, every_second):
        optimizer = make(name, [p], optim_bits=bits)
        for _ in range(3):
            optimizer.step()
    assert torch.equal(dense, transposed)
    assert torch.equal(dense, every_second)


@EVERY_RULE
def test_parameters_without_gradient_and_without_elements_are_passed_over(name):
    frozen, empty, live = param(5000, grad=False), param(0, 7), param(5000)
    before = live.detach().clone()
    optimizer = make(name, [frozen, empty, live], optim_bits=8)
    optimizer.step()
    assert frozen not in optimizer.state
    assert not torch.equal(live, before)
    optimizer.load_state_dict(optimizer.state_dict())
    optimizer.step()


def test_only_empty_parameters():
    empty = param(0, 7)
    optimizer = bnb.optim.AdamW([empty])
    optimizer.step()
    assert optimizer.state[empty]["step"] == 1


def test_parameter_added_later_starts_at_its_own_first_step():
    first, late = param(5000), param(5000)
    alone = late.detach().clone().requires_grad_()
    alone.grad = late.grad.clone()
    optimizer = bnb.optim.AdamW([first], lr=0.1, optim_bits=8)
    optimizer.step()
    optimizer.add_param_group({"params": [late], "lr": 0.01})
    optimizer.step()
    expected = bnb.optim.AdamW([alone], lr=0.01, optim_bits=8)
    expected.step()
    assert torch.equal(late, alone)
    assert optimizer.state[first]["step"] == 2 and optimizer.state[late]["step"] == 1


@EVERY_RULE
def test_many_tensors_in_one_call_are_each_alone(name):
    together = [param(n) for n in (1, 255, 256, 257, 5000, 33)]
    alone = [p.detach().clone().requires_grad_() for p in together]
    for p, q in zip(together, alone, strict=True):
        q.grad = p.grad.clone()
    options = {"optim_bits": 8, "min_8bit_size": 256, "state_rounding": "nearest"}  # chance knows a tensor's place
    optimizer = make(name, together, **options)
    optimizers = [make(name, [q], **options) for q in alone]
    for _ in range(3):
        optimizer.step()
        for single in optimizers:
            single.step()
    for p, q in zip(together, alone, strict=True):
        assert torch.equal(p, q)


@EVERY_RULE
@pytest.mark.parametrize("bits", [8, 32])
def test_threads_do_not_change_a_bit(name, bits):
    start, ends = param(100_000), []
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            p = start.detach().clone().requires_grad_()
            p.grad = start.grad
            optimizer = make(name, [p], optim_bits=bits)
            for _ in range(3):
                optimizer.step()
            ends.append(p.detach())
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(ends[0], ends[1]) and torch.equal(ends[0], ends[2])


@EVERY_RULE
@pytest.mark.parametrize("bits", [8, 32])
def test_lr_0_and_zero_gradients_leave_weights_untouched(name, bits):
    p = param(5000)
    optimizer = make(name, [p], optim_bits=bits, **CASES[name].configs[1])
    before = p.detach().clone()
    p.grad.zero_()
    optimizer.param_groups[0]["lr"] = 0.0
    optimizer.step()
    assert torch.equal(p, before)


@EVERY_RULE
@pytest.mark.parametrize("bits", [8, 32])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_non_finite_gradient_shows(name, bits, bad):
    p = param(1024)
    optimizer = make(name, [p], optim_bits=bits, min_8bit_size=0, **CASES[name].configs[1])
    optimizer.step()
    p.grad[5] = bad
    optimizer.step()
    optimizer.step()
    tensors = [value for value in optimizer.state[p].values() if torch.is_tensor(value)]
    floats = [tensor for tensor in tensors if tensor.is_floating_point()]
    assert any(not value.isfinite().all() for value in floats), "the state remembers"
    assert bits == 8 or p[6:].isfinite().all(), "in 32 bits other elements are as if nothing had happened"
    assert p[256:].isfinite().all(), "other blocks are as if nothing had happened"


def test_autograd_notices_that_weights_have_changed():
    p, x = param(4, 4), torch.randn(4, 4, requires_grad=True)
    loss = (x @ p).sum()
    bnb.optim.SGD([p], lr=0.1).step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_min_8bit_size_decides_by_the_number_of_elements():
    small, large = param(4095), param(4096)
    optimizer = bnb.optim.AdamW8bit([small, large])
    optimizer.step()
    assert optimizer.state[small]["exp_avg"].dtype == torch.float32
    assert optimizer.state[large]["exp_avg_codes"].dtype == torch.uint8
    assert optimizer.state[large]["exp_avg_absmax"].shape == (16,)


def test_float64_parameters_keep_32_bit_state_and_their_precision():
    p = param(5000, dtype=torch.float64)
    optimizer = bnb.optim.SGD([p], lr=1e-9, momentum=0.9, optim_bits=8)
    before = p.detach().clone()
    optimizer.step()
    assert "momentum_buffer" in optimizer.state[p]
    torch.testing.assert_close(p.detach() - before, -1e-9 * p.grad, rtol=1e-6, atol=1e-15)


def test_momentum_0_keeps_no_buffer():
    p = param(5000)
    optimizer = bnb.optim.SGD([p], lr=0.1)
    optimizer.step()
    assert optimizer.state[p] == {"step": 1}


def test_gradscaler_skips_a_step_with_infinite_gradients():
    p = param(5000)
    optimizer = bnb.optim.AdamW8bit([p], lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    scaler.scale((p * float("inf")).sum()).backward()
    before = p.detach().clone()
    scaler.step(optimizer)
    scaler.update()
    assert torch.equal(p, before)
    p.grad = None
    scaler.scale((p * p).sum()).backward()
    scaler.step(optimizer)
    assert not torch.equal(p, before) and p.isfinite().all()


def test_a_learning_rate_may_be_a_tensor():
    p, q = param(5000), None
    q = p.detach().clone().requires_grad_()
    q.grad = p.grad
    bnb.optim.AdamW([p], lr=torch.tensor(0.25)).step()
    bnb.optim.AdamW([q], lr=0.25).step()
    assert torch.equal(p, q)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": -1.0}, r"AdamW: lr=-1\.0: expected a finite number >= 0"),
        ({"lr": float("nan")}, "AdamW: lr=nan: expected"),
        ({"betas": (0.9, 1.0)}, r"betas=\(0\.9, 1\.0\): expected two numbers in \[0, 1\)"),
        ({"eps": "tiny"}, "eps='tiny': expected"),
        ({"optim_bits": 4}, "optim_bits=4: expected 8 or 32"),
        ({"min_8bit_size": 1.5}, r"min_8bit_size=1\.5: expected an integer >= 0"),
        ({"percentile_clipping": 0}, "percentile_clipping=0: expected an integer from 1 to 100"),
        ({"maximize": 1}, "maximize=1: expected True or False"),
    ],
)
def test_an_impossible_option_is_an_error_that_names_it(options, message):
    with pytest.raises(ValueError, match=message):
        bnb.optim.AdamW([param(3)], **options)
    optimizer = bnb.optim.AdamW([param(3)])
    with pytest.raises(ValueError, match=message.replace("AdamW:", "AdamW, group 1:")):
        optimizer.add_param_group({"params": [param(3)], **options})
    assert len(optimizer.param_groups) == 1


def test_unknown_options_are_errors():
    with pytest.raises(TypeError, match=r"AdamW got an unexpected option 'rho'; it takes lr, betas"):
        bnb.optim.AdamW([param(3)], rho=0.9)
    with pytest.raises(TypeError, match="unexpected option 'amsgrad': torch_bnb has no optimizer that keeps"):
        bnb.optim.AdamW([param(3)], amsgrad=False)
    with pytest.raises(TypeError, match="unexpected option 'learning_rate', did you mean 'lr'"):
        bnb.optim.AdamW([param(3)], learning_rate=0.1)
    with pytest.raises(TypeError, match=r"AdamW: expected parameters, got a Linear; give it model\.parameters\(\)"):
        bnb.optim.AdamW(torch.nn.Linear(3, 3))
    with pytest.raises(TypeError, match="unexpected option 'optim_bit', did you mean 'optim_bits'"):
        bnb.optim.AdamW([param(3)], optim_bit=8)
    with pytest.raises(TypeError, match="the Paged variants are classes of their own"):
        bnb.optim.Adam8bit([param(3)], is_paged=True)
    with pytest.raises(ValueError, match="group 0: unknown option 'optim_bit', did you mean 'optim_bits'"):
        bnb.optim.AdamW([{"params": [param(3)], "optim_bit": 8}])
    with pytest.raises(ValueError, match=r"group 0: AdamW has no option 'amsgrad': torch_bnb has no .*; got True"):
        bnb.optim.AdamW([{"params": [param(3)], "amsgrad": True}])
    with pytest.raises(ValueError, match=r"group 0: AdamW has no option 'momentum'; got 0\.9"):
        bnb.optim.AdamW([{"params": [param(3)], "momentum": 0.9}])
    with pytest.raises(ValueError, match="group 0: AdamW has no option 'learning_rate', did you mean 'lr'"):
        bnb.optim.AdamW([{"params": [param(3)], "learning_rate": 0.1}])
    with pytest.raises(ValueError, match="group 0: decoupled_weight_decay=True: Adam adds the decay to the gradient"):
        bnb.optim.Adam([{"params": [param(3)], "decoupled_weight_decay": True}])
    with pytest.raises(ValueError, match="group 0: 'lr_follows_schedule' is an override's option, not a group's"):
        bnb.optim.AdamW([{"params": [param(3)], "lr_follows_schedule": False}])


def test_a_groups_lr_scale_is_the_schedules_as_in_layer_decay():
    with pytest.warns(UserWarning, match="AdamW: 'lr_scale' in a group is left to the schedule that heeds it"):
        optimizer = bnb.optim.AdamW([{"params": [param(3)], "lr_scale": 0.5}], lr=0.1)
    optimizer.step()
    assert optimizer.param_groups[0]["lr_scale"] == 0.5 and optimizer.param_groups[0]["lr"] == 0.1


@pytest.mark.parametrize("name", ["adamw", "adam", "sgd", "rmsprop", "adagrad"])
def test_torchs_groups_are_taken_with_what_they_hold_beside_options(name):
    """amsgrad=False and the like say nothing that is not so."""
    case = CASES[name]
    theirs = case.oracle([param(3)], lr=0.25)
    ours = case.optimizer(theirs.param_groups)
    assert ours.param_groups[0]["lr"] == 0.25


def test_nesterov_needs_momentum():
    with pytest.raises(ValueError, match=r"nesterov=True needs momentum > 0 and dampening=0, got momentum=0\.0"):
        bnb.optim.SGD([param(3)], nesterov=True)


@pytest.mark.parametrize("dtype", [torch.int64, torch.complex64], ids=str)
def test_parameters_that_are_not_real_floats_are_refused(dtype):
    with pytest.raises(ValueError, match=rf"parameter 1 of shape \(3,\) is {dtype}; expected one of torch.float32"):
        bnb.optim.AdamW([param(3), torch.zeros(3, dtype=dtype)])


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.float8_e4m3fn], ids=str)
def test_frozen_parameters_in_other_dtypes_are_passed_over(dtype, manager):
    """As the packed weights of a quantised model, whose adapters are trained."""
    model = nn.ModuleDict({"base": nn.Module(), "adapter": nn.Linear(64, 64)})
    model["base"].weight = nn.Parameter(torch.zeros(2048, dtype=torch.uint8).to(dtype), requires_grad=False)
    manager.register_parameters(model)
    manager.override_named(model, {"*": {"lr_scale": 0.5}})
    optimizer = bnb.optim.AdamW(model.parameters(), optim_bits=8, min_8bit_size=0)
    model["adapter"](torch.ones(3, 64)).sum().backward()
    optimizer.step()
    assert list(optimizer.state) == list(model["adapter"].parameters())
    assert bnb.report(optimizer).total.state == bnb.plan(model, optim_bits=8, min_8bit_size=0).total.state > 0
    assert manager.explain(optimizer)["adapter.weight"].lr == 0.0005
    bnb.verify(model, optimizer)
    other = bnb.optim.AdamW(model.parameters(), optim_bits=8, min_8bit_size=0)
    other.load_state_dict(pickle.loads(pickle.dumps(optimizer.state_dict())))
    assert [other.state[p]["step"] for p in model["adapter"].parameters()] == [1, 1]
    with pytest.raises(ValueError, match=rf"group 0: parameter 0 of shape \(2048,\) is {dtype}; expected one of"):
        bnb.optim.AdamW([model["base"].weight])
    if dtype.is_floating_point:
        model["base"].weight.requires_grad_()
        with pytest.raises(ValueError, match=rf"group 0: parameter 0 of shape \(2048,\) is {dtype}; expected one of"):
            bnb.optim.AdamW(model.parameters())


def test_wrong_gradients_are_refused_before_anything_is_written():
    good, bad = param(5000), param(10, 4)
    before = good.detach().clone()
    optimizer = bnb.optim.AdamW([good, bad], optim_bits=8)
    bad.grad = torch.randn(10, 4).to_sparse()
    with pytest.raises(
        NotImplementedError, match=r"parameter 1 of group 0, shape \(10, 4\): a sparse gradient must be"
    ):
        optimizer.step()
    assert torch.equal(good, before) and "step" not in optimizer.state[good]


def test_a_device_without_kernels_is_named(monkeypatch):
    monkeypatch.setattr(bnb.ops, "has_kernel", lambda rule, device: False)
    p = param(3)
    message = f"parameter 0 of group 0.*built without kernels for {p.device.type}"
    with pytest.raises(NotImplementedError, match=message):
        bnb.optim.AdamW([p]).step()


def test_a_parameter_that_is_there_twice_is_refused():
    p = param(3)
    said = r"parameter 1 of group 0, shape \(3,\), is parameter 0 of group 0: it appears more than once"
    with pytest.raises(ValueError, match=said), pytest.warns(UserWarning):
        bnb.optim.AdamW([p, p])


def test_state_on_another_device_is_refused():
    p = param(5000)
    optimizer = bnb.optim.AdamW([p])
    optimizer.step()
    optimizer.state[p]["exp_avg"] = optimizer.state[p]["exp_avg"].to("meta")
    with pytest.raises(
        ValueError, match=r"exp_avg of the parameter of shape \(5000,\) is on meta, where it has no num"
    ):
        optimizer.step()


def test_a_subclass_of_a_users_own_is_an_optimizer_like_any_other(manager):
    class SGD(bnb.optim.AdamW):
        def __init__(self, params, lr=1e-3, optim_bits=8):
            super().__init__(params, lr, optim_bits=optim_bits)

    p, q = param(5000), param(5000)
    SGD([p]).step()
    manager.override_config(q, "momentum", 0.9)
    other = bnb.optim.SGD([q])
    other.step()
    assert "momentum_buffer" in other.state[q]


@EVERY_RULE
def test_8_bit_updates_stay_bounded_where_gradients_are_sparse_and_uneven(name):
    scales = 10.0 ** torch.linspace(-5, 0, 4096)
    start = torch.randn(4096)
    lengths = {}
    for bits in (8, 32):
        torch.manual_seed(1)
        p = start.clone().requires_grad_()
        optimizer = make(name, [p], optim_bits=bits)
        lengths[bits] = 0.0
        for _ in range(50):
            p.grad = scales * torch.randn(4096) * (torch.rand(4096) < 0.1)
            before = p.detach().clone()
            optimizer.step()
            lengths[bits] = max(lengths[bits], (p.detach() - before).abs().max().item())
    assert lengths[8] <= 30 * lengths[32]


@pytest.mark.parametrize("late", [False, True])
def test_sgds_buffer_begins_with_its_first_gradient_also_when_momentum_comes_late(late):
    p, q = param(5000), None
    q = p.detach().clone().requires_grad_()
    options = {"lr": 0.1, "momentum": 0.0 if late else 0.9, "dampening": 0.5}
    ours, theirs = bnb.optim.SGD([p], **options), torch.optim.SGD([q], **options)
    for step in range(6):
        if step == 3:
            for optimizer in (ours, theirs):
                optimizer.param_groups[0]["momentum"] = 0.9
        p.grad = torch.randn(5000)
        q.grad = p.grad.clone()
        ours.step()
        theirs.step()
    torch.testing.assert_close(p, q)


def test_foreach_and_fused_are_taken_as_torch_users_pass_them():
    for options in ({"fused": True}, {"foreach": True}, {"fused": False, "foreach": None}):
        bnb.optim.AdamW([param(3)], **options).step()
    with pytest.raises(ValueError, match="fused=1: expected True, False or None"):
        bnb.optim.AdamW([param(3)], fused=1)


def test_a_compiled_function_may_step():
    parameters, others = [param(5000)], [param(5000)]
    others[0].data.copy_(parameters[0].data)
    ours, theirs = (bnb.optim.AdamW8bit(params, lr=1e-2) for params in (parameters, others))

    def train(parameter, optimizer):
        optimizer.zero_grad()
        parameter.square().sum().backward()
        optimizer.step()

    compiled = torch.compile(train, backend="eager")
    for _ in range(3):
        compiled(parameters[0], ours)
        train(others[0], theirs)
    assert torch.equal(parameters[0], others[0])


@pytest.mark.parametrize("steps", [0, 1, 3])
@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("optim_bits", 7, "optim_bits=7: expected 8 or 32"),
        ("lr", -1e-3, r"lr=-0\.001: expected a finite number >= 0"),
        ("lr", float("nan"), "lr=nan: expected a finite number >= 0"),
        ("weight_decay", -5.0, r"weight_decay=-5\.0: expected a finite number >= 0"),
        ("eps", float("nan"), "eps=nan: expected"),
        ("betas", (0.9, 1.0), "betas=.*: expected two numbers in"),
        ("betas", None, "betas=None: expected two numbers in"),
        ("maximize", 1, "maximize=1: expected True or False"),
    ],
)
@pytest.mark.parametrize("capturable", [False, True])
def test_what_is_written_into_a_group_later_is_checked_before_anything_moves(capturable, key, value, message, steps):
    p, q = param(5000), param(5000)
    optimizer = bnb.optim.AdamW([{"params": [p]}, {"params": [q]}], capturable=capturable)
    for _ in range(steps):
        optimizer.step()
        optimizer.param_groups[1]["lr"] *= 0.5
    before, was = p.detach().clone(), optimizer.param_groups[1][key]
    optimizer.param_groups[1][key] = value
    for _ in range(2):  # it is not forgotten that it is wrong
        with pytest.raises(ValueError, match=f"AdamW, group 1: {message}"):
            optimizer.step()
    assert torch.equal(p, before)
    optimizer.param_groups[1][key] = was
    optimizer.param_groups[0]["optim_bits"] = 8
    optimizer.step()
    assert "exp_avg_codes" in optimizer.state[p]


def test_a_schedule_may_take_the_momentum_to_0():
    ours = param(5000)
    theirs = ours.detach().clone().requires_grad_()
    theirs.grad = ours.grad.clone()
    for lib, p in ((bnb.optim, ours), (torch.optim, theirs)):
        optimizer = lib.SGD([p], lr=0.1, momentum=0.9, nesterov=True)
        for momentum in (0.9, 0.45, 0.0, 0.0):
            optimizer.param_groups[0]["momentum"] = momentum
            optimizer.step()
    torch.testing.assert_close(ours, theirs)


def other_data(q, state):
    q.data, q.grad = torch.ones(6000), torch.ones(6000)


def other_shape(q, state):
    q.data, q.grad = q.data.view(45, 100), q.grad.view(45, 100)


DAMAGE = [  # what it is called by, which bits of state it is of, what somebody does to a parameter or its state
    (r"its exp_avg\w* is torch.* of shape \(4500,\); expected .* of shape \(6000,\)", (8, 32), other_data),
    (r"its exp_avg\w* is torch.*; expected .* of shape \(45, 100\)", (8, 32), other_shape),
    ("its exp_avg is torch.float64", (32,), lambda q, state: state.update(exp_avg=state["exp_avg"].double())),
    ("its exp_avg_codes is", (8,), lambda q, state: state.update(exp_avg_codes=state["exp_avg_codes"].double())),
    ("its exp_avg_absmax is", (8,), lambda q, state: state.update(exp_avg_absmax=state["exp_avg_absmax"].half())),
    ("its exp_avg_sq_absmax is", (8,), lambda q, state: state.update(exp_avg_sq_absmax=torch.ones(7))),
    ("there is exp_avg_codes and no exp_avg_absmax", (8,), lambda q, state: state.pop("exp_avg_absmax")),
    ("there is exp_avg_absmax and no exp_avg_codes", (8,), lambda q, state: state.pop("exp_avg_codes")),
    ("it has stepped and there is no exp_avg", (32,), lambda q, state: state.pop("exp_avg")),
    (
        "it has stepped and there is no exp_avg",
        (8,),
        lambda q, state: (state.pop("exp_avg_codes"), state.pop("exp_avg_absmax")),
    ),
    (
        "it has stepped and there is no exp_avg nor exp_avg_sq",
        (8, 32),
        lambda q, state: [state.pop(key) for key in list(state) if key != "step"],
    ),
    (r"there is exp_avg and no step count", (8, 32), lambda q, state: state.pop("step")),
    (
        "the parameter has no memory, its storage has been freed",
        (8, 32),
        lambda q, state: q.untyped_storage().resize_(0),
    ),
    ("its gradient has no memory", (8, 32), lambda q, state: q.grad.untyped_storage().resize_(0)),
    ("its exp_avg has no memory", (32,), lambda q, state: state["exp_avg"].untyped_storage().resize_(0)),
    ("its exp_avg_codes has no memory", (8,), lambda q, state: state["exp_avg_codes"].untyped_storage().resize_(0)),
    ("its exp_avg_absmax has no memory", (8,), lambda q, state: state["exp_avg_absmax"].untyped_storage().resize_(0)),
]
CASES_OF_DAMAGE = [(bits, message, damage) for message, bit_widths, damage in DAMAGE for bits in bit_widths]


@pytest.mark.parametrize("capturable", [False, True], ids=["", "capturable"])
@pytest.mark.parametrize("steps", [1, 2], ids=["before it is known", "when it is known"])
@pytest.mark.parametrize(
    ("bits", "message", "damage"), CASES_OF_DAMAGE, ids=[f"{bits}-{message}" for bits, message, _ in CASES_OF_DAMAGE]
)
def test_state_that_does_not_fit_is_an_error_before_any_parameter_moves(bits, message, damage, steps, capturable):
    p, q = param(5000), param(4500)
    groups = [{"params": [p]}, {"params": [q], "lr": 0.5}]
    optimizer = bnb.optim.AdamW(groups, optim_bits=bits, capturable=capturable)
    for _ in range(steps):
        optimizer.step()
    damage(q, optimizer.state[q])
    before = p.detach().clone()
    with pytest.raises(ValueError, match=rf"AdamW: parameter 0 of group 1, shape .*: {message}"):
        optimizer.step()
    assert torch.equal(p, before) and optimizer.state[p]["step"] == steps


@pytest.mark.parametrize("capturable", [False, True], ids=["", "capturable"])
def test_a_parameter_whose_state_was_taken_away_as_a_whole_begins_anew(capturable):
    p, q = param(5000), param(5000)
    optimizer = bnb.optim.AdamW([p, q], optim_bits=8, capturable=capturable)
    fresh = p.detach().clone().requires_grad_()
    optimizer.step()
    del optimizer.state[p]
    optimizer.state[q].clear()
    fresh.data, fresh.grad = p.detach().clone(), p.grad.clone()
    optimizer.step()
    bnb.optim.AdamW([fresh], optim_bits=8, capturable=capturable).step()
    assert torch.equal(p, fresh)
    assert [optimizer.state[each]["step"] for each in (p, q)] == [1, 1]


def test_a_buffer_that_was_taken_away_begins_anew():
    ours = param(5000)
    theirs = ours.detach().clone().requires_grad_()
    theirs.grad = ours.grad.clone()
    optimizers = [lib.SGD([p], lr=0.1, momentum=0.9) for lib, p in ((bnb.optim, ours), (torch.optim, theirs))]
    for step in range(5):
        for optimizer, p in zip(optimizers, (ours, theirs), strict=True):
            if step == 3:
                del optimizer.state[p]["momentum_buffer"]
            optimizer.step()
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("wrong", ["twice", "option"])
def test_a_group_that_cannot_be_added_is_not(wrong):
    optimizer = bnb.optim.Adam([param(5)])
    optimizer.step()
    q = param(5)
    group = {"params": [q, q]} if wrong == "twice" else {"params": [q], "optim_bits": 7}
    given = dict(group)
    with (
        pytest.warns(UserWarning, match="duplicate") if wrong == "twice" else contextlib.nullcontext(),
        pytest.raises(ValueError, match=r"of group 1: it appears more than once|Adam, group 1: optim_bits=7: expected"),
    ):
        optimizer.add_param_group(group)
    assert group == given  # torch fills it in
    assert len(optimizer.param_groups) == 1
    optimizer.step()
    optimizer.add_param_group({"params": [param(5)]})
    optimizer.step()


def test_a_group_put_in_by_hand_is_an_error_that_says_how_to_add_it(manager):
    optimizer = bnb.optim.AdamW([torch.zeros(3, requires_grad=True)])
    group = {"params": [torch.zeros(3, requires_grad=True)]}
    for lacking, by_hand in (("lr", group), ("base_lr", {**optimizer.defaults, **group})):
        optimizer.param_groups[1:] = [by_hand]
        message = f"AdamW, group 1 lacks '{lacking}': .* by hand .*; use add_param_group"
        for use in (optimizer.step, optimizer.state_dict, partial(manager.explain, optimizer)):
            with pytest.raises(ValueError, match=message):
                use()
    optimizer.param_groups.pop()
    optimizer.add_param_group(group)
    optimizer.step()


def test_parameters_of_lazy_modules_step_once_they_have_a_shape(manager):
    module = torch.nn.LazyLinear(4)
    manager.register_parameters(module)
    manager.override_named(module, {"weight": {"lr": 0.5}})
    optimizer = bnb.optim.SGD(module.parameters(), lr=0.1)
    with pytest.raises(ValueError, match="weight belongs to a lazy module and has no shape yet; run a batch through"):
        manager.explain(optimizer)
    module(torch.ones(2, 3)).sum().backward()
    before = module.weight.detach().clone()
    optimizer.step()
    torch.testing.assert_close(module.weight.detach(), before - 0.5 * 2)


@pytest.mark.parametrize("capturable", [False, True])
def test_a_first_step_that_fails_makes_no_state(capturable):
    params = [param(5000), param(5000)]
    optimizer = bnb.optim.SGD(params, lr=0.1, momentum=0.9, dampening=0.5, optim_bits=8, capturable=capturable)
    params[1].grad_dtype = None
    params[1].grad = torch.ones(5000, dtype=torch.int32)
    before = params[0].detach().clone()
    with pytest.raises(ValueError, match=r"SGD: parameter 1 of group 0, shape \(5000,\): its gradient is torch.int32"):
        optimizer.step()
    assert not any(optimizer.state.values())
    optimizer.load_state_dict(optimizer.state_dict())
    params[1].grad = None
    optimizer.step()
    torch.testing.assert_close(params[0].detach(), before - 0.1 * params[0].grad)


def test_steps_of_fake_tensors_as_tools_that_plan_memory_make_them():
    with FakeTensorMode():
        model = torch.nn.Sequential(torch.nn.Linear(128, 128), torch.nn.LayerNorm(128))
        for optimizer in (bnb.optim.AdamW8bit(model.parameters()), bnb.optim.SGD(model.parameters(), lr=0.1)):
            model(torch.randn(3, 128)).sum().backward()
            optimizer.step()
            optimizer.step()
            assert all(state["step"] == 2 for state in optimizer.state.values())


def test_the_import_needs_no_device_of_its_own():
    code = "import torch\nwith torch.device('meta'):\n    import torch_bnb\nprint(torch_bnb.codec.ZERO_CODE)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "{True: 127, False: 0}", done.stderr


def test_what_a_schedule_has_brought_together_loads_again_and_is_no_hints_fault(manager):
    p = param(5000)
    optimizer = bnb.optim.SGD([p], lr=0.1, momentum=0.9, nesterov=True)
    optimizer.step()
    optimizer.param_groups[0]["momentum"] = 0.0
    optimizer.step()
    optimizer.load_state_dict(optimizer.state_dict())
    manager.override_config(p, "weight_decay", 0.5)
    optimizer.step()
    optimizer.param_groups[0]["capturable"] = True
    with pytest.raises(ValueError, match="SGD, group 0: capturable=True: is the whole optimizer's to say"):
        optimizer.step()


def test_an_expanded_parameter_is_an_error_before_anything_moves():
    p, q = param(5000), param(64, 64)
    optimizer = bnb.optim.AdamW([p, q], optim_bits=8)
    q.data = torch.randn(1, 64).expand(64, 64)
    before = p.detach().clone()
    with pytest.raises(ValueError, match=r"parameter 1 of group 0, shape \(64, 64\): its elements share memory"):
        optimizer.step()
    assert torch.equal(p, before) and not optimizer.state
