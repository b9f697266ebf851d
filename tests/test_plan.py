"""The plan of a step is kept for the next one, and never outlives what it was made of."""

import gc
import weakref

import pytest
import seeded
import torch
from cases import CASES
from hypothesis import example, given, settings
from hypothesis import strategies as st

import torch_bnb as bnb
from torch_bnb import ops
from torch_bnb.optim import calls, plan
from torch_bnb.optim.plan import Plan

SHAPES = [(70, 70), (5000,), (33,), (2, 3000)]


def start(name="adamw", **options):
    generator = seeded.generator(0)
    params = [torch.randn(shape, generator=generator).requires_grad_() for shape in SHAPES]
    case = CASES[name]
    groups = [{"params": params[:2]}, {"params": params[2:]}]
    return params, case.optimizer(groups, lr=case.lr, optim_bits=8, **{**case.configs[1], **options})


def give_gradients(params, seed):
    generator = seeded.generator(seed)
    for parameter in params:
        parameter.grad = torch.randn(parameter.shape, generator=generator).to(parameter.dtype)


def step(params, optimizer, seed):
    give_gradients(params, seed)
    optimizer.step()


@pytest.fixture
def plans(monkeypatch):
    made = []

    class Counted(Plan):
        def __init__(self, *arguments):
            made.append(self)
            super().__init__(*arguments)

    monkeypatch.setattr("torch_bnb.optim.base.Plan", Counted)
    return made


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("readable", [True, False])
def test_steps_that_are_alike_are_planned_once(name, plans, readable, monkeypatch):
    if not readable:
        monkeypatch.setattr(ops, "headers_of", lambda tensors: None)
    params, optimizer = start(name)
    for seed in range(5):
        step(params, optimizer, seed)
        optimizer.param_groups[0]["lr"] *= 0.9  # a schedule's numbers are new in every step
        optimizer.param_groups[1]["lr"] *= 0.9
    # The first step differs: there was no state yet.
    assert len(plans) <= 2


def nothing(params, optimizer):
    pass


def no_gradient(params, optimizer):
    params[0].grad = None


def another_without_gradient(params, optimizer):
    params[3].grad = None


def one_gradient(params, optimizer):
    for parameter in params[1:]:
        parameter.grad = None


def strided_gradient(params, optimizer):
    params[3].grad = params[3].grad.t().contiguous().t()


def strided_parameter(params, optimizer):
    params[3].data = params[3].data.t().contiguous().t()  # as module.to(memory_format=torch.channels_last) does


def sparse_gradient(params, optimizer):
    if optimizer.layerwise or not params[3].is_contiguous():
        return  # they take none
    rows = torch.tensor([[1, 0]]) if params[3].grad[0, 0] > 0 else torch.tensor([[1]])
    params[3].grad = torch.sparse_coo_tensor(rows, params[3].grad[: rows.numel()], SHAPES[3], check_invariants=True)


def other_dtype(params, optimizer):
    params[0].grad = None
    params[0].data = params[0].data.double()
    params[0].grad = torch.ones(SHAPES[0], dtype=torch.float64)


def other_rates(params, optimizer):
    optimizer.param_groups[1]["lr"] *= 0.5


def fewer_bits(params, optimizer):
    optimizer.param_groups[0]["optim_bits"] = 40 - optimizer.param_groups[0]["optim_bits"]


def hint(params, optimizer):
    bnb.optim.GlobalOptimManager.get_instance().override_config(params[1], "weight_decay", 0.3)


def clipped(params, optimizer):
    optimizer.param_groups[1]["percentile_clipping"] = 50


def no_history(params, optimizer):
    optimizer.state.get(params[3], {}).pop("grad_norms", None)


def no_rate(params, optimizer):
    optimizer.param_groups[1]["lr"] = 0.0
    params[3].grad.zero_()


def no_state(params, optimizer):
    optimizer.state.pop(params[1], None)


def other_count(params, optimizer):
    if params[2] in optimizer.state:
        optimizer.state[params[2]]["step"] = 40


def reloaded(params, optimizer):
    optimizer.load_state_dict(optimizer.state_dict())


def skipped_zeros(params, optimizer):
    params[1].grad[:4000] = 0
    optimizer.param_groups[0]["skip_zeros"] = True


def moved_state(params, optimizer):
    for value in optimizer.state.get(params[1], {}).values():
        if isinstance(value, torch.Tensor):
            value.data = value.data.clone()


def shared_state(params, optimizer):
    for value in optimizer.state.get(params[0], {}).values():
        if isinstance(value, torch.Tensor):
            value.share_memory_()


def moved_parameter(params, optimizer):
    params[2].data = params[2].data.clone()


EVENTS = [
    no_gradient, another_without_gradient, one_gradient, strided_gradient, strided_parameter, sparse_gradient,
    other_dtype, other_rates, fewer_bits, hint, clipped, no_history, no_rate, no_state, other_count, reloaded,
    moved_state, shared_state, moved_parameter, skipped_zeros, nothing,
]  # fmt: skip


@pytest.mark.parametrize("event", [nothing, strided_gradient, strided_parameter, sparse_gradient])
@pytest.mark.parametrize("percentile", [100, 50])
def test_steps_that_are_alike_are_planned_once_also_where_tensors_are_copied_or_clipped(event, percentile, plans):
    params, optimizer = start(percentile_clipping=percentile)
    for seed in range(5):
        give_gradients(params, seed)
        event(params, optimizer)
        optimizer.step()
    assert len(plans) <= 2


@pytest.mark.parametrize("event", [nothing, strided_gradient, strided_parameter, other_rates])
@pytest.mark.parametrize("percentile", [100, 50])
@pytest.mark.parametrize("name", CASES)
def test_parameters_whose_gradients_come_and_go_are_looked_at_once(name, percentile, event, monkeypatch):
    looked_at = []
    check = plan.check_grad
    monkeypatch.setattr(
        plan, "check_grad", lambda optimizer, p, *rest: (looked_at.append(p), check(optimizer, p, *rest))
    )
    params, optimizer = start(name, percentile_clipping=percentile)
    give_gradients(params, 0)
    event(params, optimizer)
    optimizer.step()
    for seed, absent in enumerate([no_gradient, another_without_gradient, one_gradient, nothing, no_gradient]):
        give_gradients(params, seed)
        if event is not strided_parameter:
            event(params, optimizer)
        absent(params, optimizer)
        optimizer.step()
    # The first step differs for some rules: which states there are depends on it.
    assert len(looked_at) <= 2 * len(params)


@pytest.mark.parametrize(
    "options", [{}, {"max_unorm": 0.1}, {"percentile_clipping": 50}, {"capturable": True}], ids=str
)
@pytest.mark.parametrize("name", CASES)
def test_strided_parameters_are_copied_a_few_at_a_time(name, options, monkeypatch):
    """More memory than that would be taken where it is short: parameters and gradients once more."""
    alive, most = [], []
    update = ops.update_on_device if "capturable" in options else ops.update

    def watched(rule, params, grads, *rest, **common):
        alive.append(weakref.ref(params[0]))
        most.append(sum(copy() is not None for copy in alive))
        update(rule, params, grads, *rest, **common)

    monkeypatch.setattr(calls, "COPIES_BYTES", 1)
    monkeypatch.setattr(ops, update.__name__, watched)
    generator = seeded.generator(0)
    contiguous = [torch.randn(8, 70, 3, 3, generator=generator).requires_grad_() for _ in range(5)]
    strided = [p.detach().to(memory_format=torch.channels_last).requires_grad_() for p in contiguous]
    case = CASES[name]
    optimizers = [case.optimizer(params, lr=case.lr, optim_bits=8, **options) for params in (contiguous, strided)]
    for seed in range(3):
        give_gradients(contiguous, seed)
        for p, q in zip(contiguous, strided, strict=True):
            q.grad = p.grad.to(memory_format=torch.channels_last)
        del alive[:]
        for optimizer in optimizers:
            optimizer.step()
    assert all(map(torch.equal, contiguous, strided))
    assert not any(p.is_contiguous() for p in strided)
    assert len(most) >= 5
    assert most[-5:] == ([2] * 5 if "capturable" in options else [1] * 5)  # the contiguous ones' first is alive


@pytest.mark.parametrize("name", CASES)
def test_tensors_that_are_handed_over_step_as_those_that_are_known_by_address(name, monkeypatch):
    params, optimizer = start(name)
    others, other = start(name)
    by_address = []
    update = ops.update_by_address
    monkeypatch.setattr(ops, "update_by_address", lambda *a, **k: (by_address.append(a[0]), update(*a, **k)))
    for seed in range(4):
        step(params, optimizer, seed)
        with monkeypatch.context() as patch:
            patch.setattr(ops, "headers_of", lambda tensors: None)
            step(others, other, seed)
    assert len(by_address) >= 4
    assert all(torch.equal(p, q) for p, q in zip(params, others, strict=True))


@settings(max_examples=40)
@given(
    events=st.lists(st.sampled_from(EVENTS), min_size=2, max_size=8),
    name=st.sampled_from(["adamw", "sgd", "lamb"]),
    percentile=st.sampled_from([100, 50]),
)
@example(events=[nothing, nothing, no_history, nothing], name="sgd", percentile=50)
@example(events=[strided_gradient] * 4 + [nothing, strided_gradient], name="adamw", percentile=50)
@example(events=[strided_parameter] * 4 + [nothing, no_gradient], name="lamb", percentile=100)
@example(events=[nothing, one_gradient, no_gradient, no_state, one_gradient, nothing], name="sgd", percentile=50)
@example(events=[nothing, one_gradient, strided_parameter, no_gradient, nothing], name="adamw", percentile=100)
@example(events=[sparse_gradient] * 5 + [nothing, sparse_gradient], name="adamw", percentile=50)
@example(events=[sparse_gradient] * 3 + [fewer_bits, other_count, sparse_gradient], name="sgd", percentile=100)
def test_a_kept_plan_steps_as_a_new_one_whatever_happens_in_between(events, name, percentile):
    bnb.optim.GlobalOptimManager.get_instance().initialize()
    ours, kept = start(name, percentile_clipping=percentile)
    theirs, planned_anew = start(name, percentile_clipping=percentile)
    for seed, event in enumerate(events):
        for params, optimizer in ((ours, kept), (theirs, planned_anew)):
            give_gradients(params, seed)
            event(params, optimizer)
        planned_anew._plan = None
        kept.step()
        planned_anew.step()
        assert all(torch.equal(p, q) for p, q in zip(ours, theirs, strict=True)), event
        for p, q in zip(ours, theirs, strict=True):
            a, b = kept.state.get(p, {}), planned_anew.state.get(q, {})
            assert a.keys() == b.keys()
            for key in a:
                equal = torch.as_tensor(a[key]).nan_to_num() == torch.as_tensor(b[key]).nan_to_num()
                assert equal.all(), (event, key)


@pytest.mark.parametrize("event", [nothing, strided_gradient, strided_parameter, sparse_gradient])
def test_a_plan_keeps_no_parameter_and_no_gradient_alive(event):
    params, optimizer = start()
    for seed in range(3):
        give_gradients(params, seed)
        event(params, optimizer)
        optimizer.step()
    gradients = [weakref.ref(parameter.grad) for parameter in params]
    optimizer.zero_grad()
    gc.collect()
    assert all(gradient() is None for gradient in gradients)
    made = [planned.call for planned in optimizer._plan._planned]
    assert not any(call.params or call.grads or getattr(call, "put_back", None) for call in made)


def test_a_gradient_that_goes_wrong_later_is_an_error_before_anything_moves():
    params, optimizer = start()
    optimizer.param_groups[1]["lr"] *= 0.5  # two calls of the operator
    for seed in range(2):
        step(params, optimizer, seed)
    give_gradients(params, 2)
    params[3].grad_dtype = None
    params[3].grad = torch.ones(SHAPES[3], dtype=torch.int32)
    before = [parameter.detach().clone() for parameter in params]
    with pytest.raises(
        ValueError, match=r"AdamW: parameter 1 of group 1, shape \(2, 3000\): its gradient is torch.int32"
    ):
        optimizer.step()
    assert all(torch.equal(p, q) for p, q in zip(params, before, strict=True))


def test_a_step_that_fails_leaves_no_plan():
    params, optimizer = start()
    step(params, optimizer, 0)
    give_gradients(params, 1)
    optimizer.param_groups[0]["lr"] = "fast"
    with pytest.raises(ValueError, match="fast"):
        optimizer.step()
    assert optimizer._plan is None
    optimizer.param_groups[0]["lr"] = 1e-2
    optimizer.step()
    assert isinstance(optimizer._plan, plan.Plan)


def test_a_gradient_that_stands_for_its_negative_steps_as_what_it_is():
    params, optimizer = start("sgd")
    others, other = start("sgd")
    for seed in range(3):
        give_gradients(params, seed)
        give_gradients(others, seed)
        for p, q in zip(params, others, strict=True):
            p.grad, q.grad = torch._neg_view(p.grad), -q.grad
        optimizer.step()
        other.step()
    assert all(torch.equal(p, q) for p, q in zip(params, others, strict=True))


def test_state_that_is_replaced_while_a_step_is_made_is_stepped_or_left_but_alive():
    """The numbers of a step are the rule's own affair, which a subclass may see to; the kernel runs without the GIL."""
    params, _ = start()
    alive = []

    class Replacing(bnb.optim.AdamW):
        def scalars(self, config, step, fresh):
            for state in self.state.values():
                if step > 2:
                    state["exp_avg_sq"] = state["exp_avg_sq"].clone()
            return super().scalars(config, step, fresh)

    update = ops.update_by_address
    optimizer = Replacing(params)

    def watched(rule, headers, scalars, **common):
        described = {tensor.data_ptr() for tensor in headers.tensors}
        assert described == set(headers.table[:, 0].tolist())
        held = [weakref.ref(tensor) for tensor in headers.tensors]
        optimizer.state.clear()  # as another thread might
        gc.collect()
        alive.append(all(tensor() is not None for tensor in held))
        update(rule, headers, scalars, **common)

    with pytest.MonkeyPatch.context() as patch:
        for seed in range(4):
            step(params, optimizer, seed)
        patch.setattr(ops, "update_by_address", watched)
        step(params, optimizer, 4)
    assert alive == [True] * len(alive) and alive
