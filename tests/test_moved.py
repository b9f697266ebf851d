"""Hints on parameters that leave an optimizer, change places, or are flattened by an engine."""

import warnings

import pytest
import torch
from torch import nn

from torch_bnb import OverrideError
from torch_bnb.optim import AdamW


@pytest.mark.parametrize("when", ["before the optimizer", "before flattening", "after", "after a step"])
@pytest.mark.parametrize("how", ["on the parameter", "on an unknown parameter", "by name"])
def test_a_framework_that_flattens_a_group_with_overrides_is_an_error(how, when, manager):
    net = nn.ParameterDict({"p": torch.zeros(3), "q": torch.zeros(5)})
    if how != "on an unknown parameter":
        manager.register_parameters(net)

    def hint(now):
        if now == when:
            manager.override_named(net, {"q": {"lr": 0.5}}) if how == "by name" else manager.override_config(
                net["q"], "lr", 0.5
            )

    hint("before the optimizer")
    optimizer = AdamW(net.parameters())
    hint("before flattening")
    flat = nn.Parameter(torch.zeros(8))
    flat.grad = torch.ones(8)
    optimizer.param_groups[0]["params"] = [flat]
    hint("after")
    if when == "after a step":
        optimizer.step()
    hint("after a step")
    before = flat.detach().clone()
    for _ in range(2):
        with pytest.raises(OverrideError, match="group 0 held other parameters, some with overrides, and now holds 1"):
            optimizer.step()
    assert torch.equal(flat, before)


def test_hints_on_what_left_an_optimizer_and_is_not_trained_are_no_concern_of_it(manager):
    net = nn.ParameterDict({"p": torch.zeros(3), "q": torch.zeros(5)})
    manager.register_parameters(net)
    optimizer = AdamW(net.parameters())
    net["r"] = nn.Parameter(torch.ones(8))  # a small part is trained in place of the rest
    net["p"].requires_grad_(False)
    net["q"].requires_grad_(False)
    optimizer.param_groups[0]["params"] = [net["r"]]
    manager.override_named(net, {"*": {"weight_decay": 0.0}})
    net["r"].grad = torch.ones(8)
    optimizer.step()
    assert manager.explain(optimizer)["r"].overrides == {"weight_decay": 0.0}


def test_a_parameter_that_has_left_and_come_back_takes_hints(manager):
    p, q = nn.Parameter(torch.zeros(3)), nn.Parameter(torch.zeros(5))
    optimizer = AdamW([p, q])
    optimizer.param_groups[0]["params"] = [nn.Parameter(torch.zeros(8))]
    manager.explain(optimizer)
    optimizer.param_groups[0]["params"] = [p, q]
    manager.explain(optimizer)
    manager.override_config(p, "lr", 0.5)
    assert [row.lr for row in manager.explain(optimizer)] == [0.5, 0.001]


def test_a_hint_for_a_parameter_that_another_optimizer_has_taken_over_is_that_ones(manager):
    p, q = nn.Parameter(torch.zeros(3)), nn.Parameter(torch.zeros(5))
    one = AdamW([p, q])
    one.param_groups[0]["params"] = [q, nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(2))]
    other = AdamW([p])
    manager.explain(one)
    manager.override_config(p, "lr", 0.5)
    assert [row.lr for row in manager.explain(one)] == [0.001] * 3
    assert [row.lr for row in manager.explain(other)] == [0.5]


def test_parts_of_a_known_model_may_take_the_places_of_others_by_name(manager):
    net = nn.ModuleDict({"body": nn.Linear(3, 3), "head": nn.Linear(3, 5)})
    manager.register_parameters(net)
    manager.override_named(net, {"head.*": {"lr": 0.5}})
    optimizer = AdamW(net.parameters())
    net["head"] = nn.Linear(3, 7, bias=False)
    optimizer.param_groups[0]["params"] = list(net.parameters())
    assert {row.name: row.lr for row in manager.explain(optimizer)}["head.weight"] == 0.5


def test_a_hint_that_was_taken_back_leaves_the_others_of_a_parameter_that_an_engine_has_flattened(manager):
    p, flat = nn.Parameter(torch.zeros(3)), [nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(1))]
    optimizer = AdamW([p])
    optimizer.param_groups[0]["params"] = flat
    manager.explain(optimizer)
    manager.override_config(p, key_value_dict={"lr": 0.5, "eps": 0.1})
    manager.forget_config(p, "lr")
    with pytest.raises(OverrideError, match="some with overrides"):
        manager.explain(optimizer)
    manager.forget_config(p, "eps")
    manager.explain(optimizer)


def test_hints_do_not_move_to_parameters_that_only_take_the_position(manager):
    p, q = nn.Parameter(torch.zeros(3)), nn.Parameter(torch.zeros(3))
    manager.override_config(p, "lr", 0.5)
    optimizer = AdamW([p, q], lr=0.01)

    def rates():
        return [row.lr for row in manager.explain(optimizer)]

    optimizer.param_groups[0]["params"] = [q, p]
    assert rates() == [0.01, 0.5]
    optimizer.param_groups[0]["params"] = [q]
    assert rates() == [0.01]
    optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(3))]})
    assert rates() == [0.01, 0.01]


def test_a_hint_stays_with_its_living_parameter_when_another_known_one_takes_its_place(manager):
    model = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False))
    manager.register_parameters(model)
    manager.override_config(model[0].weight, "lr", 0.5)
    optimizer = AdamW(model[0].parameters(), lr=0.01)
    optimizer.param_groups[0]["params"] = list(model[1].parameters())
    assert manager.explain(optimizer)["1.weight"].lr == 0.01
    master = nn.Parameter(model[0].weight.detach().clone())  # a copy that an engine steps in a parameter's place
    optimizer = AdamW(model[0].parameters(), lr=0.01)
    optimizer.param_groups[0]["params"] = [master]
    assert manager.explain(optimizer)[0].lr == 0.5


def test_a_hint_moves_with_its_parameter_and_does_not_spread(manager):
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Sequential(nn.Linear(4, 4)))
    manager.register_parameters(model)
    manager.override_config(model[0].weight, "lr", 0.5)
    manager.override_config(model[1].bias, "lr", 0.25)
    model[0].weight, model[1].weight = model[1].weight, model[0].weight
    model[1].bias = None
    rows = {row.name: row.lr for row in manager.explain(AdamW(model.parameters(), lr=0.01))}
    assert rows == {
        "0.weight": 0.01, "0.bias": 0.01, "1.weight": 0.5, "2.0.weight": 0.01, "2.0.bias": 0.01,
    }  # fmt: skip


def test_state_that_leaves_with_its_parameter_is_a_warning_at_the_step_and_an_error_in_a_checkpoint():
    first, second = nn.Linear(64, 64), nn.Linear(64, 64)
    optimizer = AdamW(first.parameters(), optim_bits=8)
    for model in (first, second):
        model(torch.ones(3, 64)).sum().backward()
    optimizer.step()
    optimizer.param_groups[0]["params"] = list(second.parameters())
    with pytest.warns(UserWarning, match=r"AdamW: 2 parameters that have state, the first of shape \(64, 64\), have"):
        optimizer.step()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer.step()
    with pytest.raises(ValueError, match=r"del optimizer\.state\[parameter\]"):
        optimizer.state_dict()
    for parameter in first.parameters():
        del optimizer.state[parameter]
    assert len(optimizer.state_dict()["state"]) == 2
