"""What is measured of a step is what the step does, and measuring changes nothing."""

import copy
import pickle

import pytest
import torch
from cases import CASES
from torch import nn

import torch_bnb as bnb


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 128), nn.Linear(128, 64))


def backward(model):
    model.zero_grad()
    model(torch.randn(8, 64)).square().mean().backward()


def trained(rule, steps=3, **options):
    model = net()
    optimizer = CASES[rule].optimizer(
        model.named_parameters(), **{"lr": CASES[rule].lr, "optim_bits": 8, "state_rounding": "nearest", **options}
    )
    for _ in range(steps):
        backward(model)
        optimizer.step()
    backward(model)
    return model, optimizer


def decoded(optimizer, parameter):
    """By name, an optimizer's 8-bit states of a parameter as floats, and the codes."""
    state = optimizer.state[parameter]
    return {
        name: (
            bnb.codec.dequantize_blockwise(state[f"{name}_codes"], state[f"{name}_absmax"], signed),
            state[f"{name}_codes"].clone(),
        )
        for name, signed in optimizer.states.items()
        if f"{name}_codes" in state
    }


@pytest.mark.parametrize("rule", CASES)
def test_a_measurement_is_what_the_step_then_does(rule):
    model, optimizer = trained(rule)
    weight, old = model[0].weight, model[0].weight.detach().clone()
    before = decoded(optimizer, weight)
    measured = bnb.monitor.measure(optimizer).parameters["0.weight"]
    # The same step with exact states: from the decoded ones, in 32 bits.
    exact_model = net()
    exact_model.load_state_dict(model.state_dict())
    for p, q in zip(exact_model.parameters(), model.parameters(), strict=True):
        p.grad = q.grad.clone()
    in_32 = CASES[rule].optimizer(exact_model.named_parameters(), **{**optimizer.defaults, "optim_bits": 32})
    in_32.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    in_32.step()
    optimizer.step()
    after = decoded(optimizer, weight)
    wanted = in_32.state[exact_model[0].weight]
    if not before:  # a rule without state in this configuration
        assert measured.quantization_error == 0 and measured.codes == 0
    else:
        error = sum((after[name][0] - wanted[name]).square().sum() for name in after) ** 0.5
        norm = sum(wanted[name].square().sum() for name in after) ** 0.5
        assert measured.quantization_error == pytest.approx(float(error / norm), rel=1e-4)
        assert 0 < measured.quantization_error < 0.02
        unmoved = sum(int((before[name][1] == after[name][1]).sum()) for name in after)
        assert measured.unmoved_codes == unmoved / (len(after) * weight.numel())
    ratio = float((weight - old).norm() / old.norm())
    assert measured.update_to_weight == pytest.approx(ratio, rel=1e-4) and ratio > 0


def test_measuring_changes_nothing():
    model, optimizer = trained("adamw", percentile_clipping=50)

    def everything():
        grads = [p.grad for p in model.parameters()]
        return pickle.dumps([optimizer.state_dict(), model.state_dict(), grads])

    before = everything()
    bnb.monitor.measure(optimizer)
    assert everything() == before


def test_groups_add_up_and_the_worst_is_named():
    model = net()
    groups = [{"params": model[0].named_parameters()}, {"params": model[1].named_parameters(), "lr": 0.1}]
    optimizer = bnb.optim.AdamW8bit(groups, lr=1e-3)
    backward(model)
    optimizer.step()
    backward(model)
    found = bnb.monitor.measure(optimizer)
    assert set(found.parameters) == {"weight", "bias", "weight (group 1)", "bias (group 1)"}
    assert set(found.groups) == {0, 1}
    assert found.groups[0] + found.groups[1] == found.total
    assert found.total.state_bytes == bnb.report(optimizer).total.state
    name, value = found.worst("update_to_weight")
    assert value == max(q.update_to_weight for q in found.parameters.values()) and found.parameters[name]
    assert found.groups[1].update_to_weight > 10 * found.groups[0].update_to_weight


def test_parameters_in_32_bits_have_no_error_and_those_without_gradient_are_not_there():
    model, optimizer = trained("adamw", optim_bits=32)
    model[0].bias.grad = None
    found = bnb.monitor.measure(optimizer)
    assert set(found.parameters) == {"0.weight", "1.weight", "1.bias"}
    assert found.total.quantization_error == 0 and found.total.unmoved_codes == 0 and found.total.codes == 0
    assert found.total.update_to_weight > 0


def test_the_order_of_batches_does_not_matter(monkeypatch):
    _, optimizer = trained("adamw")
    whole = bnb.monitor.measure(optimizer)
    monkeypatch.setattr(bnb.monitor, "MOST_ELEMENTS", 1)
    assert bnb.monitor.measure(optimizer) == whole


def test_overrides_hold_in_the_measured_step(manager):
    model, optimizer = trained("adamw")
    manager.override_config(model[0].weight, "lr", 0.0)
    found = bnb.monitor.measure(optimizer)
    assert found.parameters["0.weight"].update_to_weight == 0 < found.parameters["1.weight"].update_to_weight


def test_a_second_moment_that_rounding_freezes_is_seen():
    unmoved = {}
    for alpha in (0.9, 0.999):
        model = net()
        optimizer = bnb.optim.RMSprop8bit(model.parameters(), alpha=alpha)
        backward(model)
        for _ in range(300):
            optimizer.step()
        for parameter in model.parameters():
            parameter.grad[::2] *= 1.5
        unmoved[alpha] = bnb.monitor.measure(optimizer).total.unmoved_codes
    assert unmoved[0.9] < 0.6, "the half with another gradient moves by 12 percent"
    assert unmoved[0.999] > 0.9, "by a thousandth of it: less than half a code"


@pytest.mark.parametrize("how", ["keyword", "position", "none"])
def test_a_watch_sees_the_gradients_that_the_step_uses(how):
    model = net()
    optimizer, seen = bnb.optim.SGD(model.parameters(), lr=1.0), []
    old = model[0].weight.detach().clone()

    def closure():
        backward(model)
        nn.utils.clip_grad_norm_(model.parameters(), 1e-3)
        return 1.5

    with bnb.monitor.watch(optimizer, when=lambda: True, then=seen.append):
        if how == "none":
            closure()
            optimizer.step()
        else:
            assert (optimizer.step(closure) if how == "position" else optimizer.step(closure=closure)) == 1.5
    optimizer.step(closure)
    assert len(seen) == 1
    norm = sum(p.detach().square().sum() for p in net().parameters()) ** 0.5
    assert seen[0].total.update_to_weight == pytest.approx(1e-3 / float(norm), rel=1e-2)
    assert not torch.equal(old, model[0].weight)


def test_a_watch_measures_when_it_is_asked_to(monkeypatch):
    _, optimizer = trained("adamw")
    calls, answers = [], iter([False, True, False])
    monkeypatch.setattr(bnb.monitor, "measure", lambda o: calls.append(o))
    bnb.monitor.watch(optimizer, when=lambda: next(answers), then=lambda _: None)
    for _ in range(3):
        optimizer.step()
    assert calls == [optimizer]


def test_other_optimizers_are_refused():
    optimizer = torch.optim.AdamW(net().parameters())
    with pytest.raises(TypeError, match=r"measure: expected an optimizer of torch_bnb.optim, got AdamW"):
        bnb.monitor.measure(optimizer)
    with pytest.raises(TypeError, match=r"watch: expected an optimizer of torch_bnb.optim, got AdamW"):
        bnb.monitor.watch(optimizer, lambda: True, print)


def test_metrics_have_stable_keys():
    _, optimizer = trained("adamw")
    keys = set(bnb.monitor.as_metrics(bnb.monitor.measure(optimizer), "o"))
    ratios = {"quantization_error", "unmoved_codes", "update_to_weight"}
    assert keys == {"o/state_bytes", "o/group0/state_bytes"} | {
        f"o/{w}/{r}" for w in ("group0", "worst") for r in ratios
    }
