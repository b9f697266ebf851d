"""`param_groups`: hints as parameter groups, for engines that know nothing else."""

import pytest
import torch
from model import Model
from torch import nn

import torch_bnb as bnb
from torch_bnb import OverrideError
from torch_bnb.optim import AdamW


def test_param_groups_make_overrides_explicit(manager):
    model = Model()
    model.embed.weight.requires_grad_(True)
    manager.override_config(model.head.bias, "lr", 5e-5)
    groups = bnb.param_groups(model, overrides={"head.*": {"lr": 1e-4}}, weight_decay=0.1)
    by_name = {
        name: {k: v for k, v in g.items() if k not in ("params", "merged_hints")}
        for g in groups
        for name, _ in g["params"]
    }
    assert by_name["embed.weight"] == {"weight_decay": 0.1, "optim_bits": 32}
    assert by_name["head.weight"] == {"weight_decay": 0.1, "lr": 1e-4}
    assert by_name["head.bias"] == {"weight_decay": 0.0, "lr": 5e-5}
    assert by_name["blocks.0.norm.weight"] == {"weight_decay": 0.0}
    assert by_name["blocks.0.fc.weight"] == {"weight_decay": 0.1}
    optimizer = AdamW(groups, lr=1e-3, optim_bits=8)
    assert sum(len(g["params"]) for g in optimizer.param_groups) == len(list(model.parameters()))
    assert optimizer.param_groups[0]["param_names"][0].startswith("blocks")
    rows = manager.explain(optimizer)
    assert rows["head.weight"].lr == 1e-4 and rows["head.bias"].lr == 5e-5 and rows["embed.weight"].bits == 32
    with pytest.raises(TypeError, match=r"param_groups: expected an nn\.Module, got generator"):
        bnb.param_groups(model.parameters())


def test_hints_that_went_into_groups_do_not_apply_again_and_later_ones_do(manager):
    model = Model()
    manager.override_named(model, {"head.weight": {"lr_scale": 0.5, "optim_bits": 32}, "head.bias": {"lr": 1e-3}})
    patterns = {"head.weight": {"optim_bits": 8}, "head.bias": {"lr": 1e-4}}
    optimizer = AdamW(bnb.param_groups(model, patterns, lr=0.1), lr=0.1, optim_bits=8)
    rows = manager.explain(optimizer)
    assert (rows["head.weight"].lr, rows["head.weight"].bits, rows["head.bias"].lr) == (0.05, 8, 1e-4)
    manager.override_config(model.head.bias, "lr", 5e-5)
    assert manager.explain(optimizer)["head.bias"].lr == pytest.approx(5e-5)


def test_param_groups_refuse_what_a_group_cannot_say(manager):
    model = Model()
    with pytest.raises(OverrideError, match=r"head.weight: lr_scale=0.5 needs the rate that it scales"):
        bnb.param_groups(model, overrides={"head.weight": {"lr_scale": 0.5}})
    (group,) = [g for g in bnb.param_groups(model, {"head.weight": {"lr_scale": 0.5}}, lr=0.1) if "lr" in g]
    assert group["lr"] == 0.05
    with pytest.raises(OverrideError, match=r"head.weight: lr_follows_schedule=False cannot be said of a group"):
        bnb.param_groups(model, overrides={"head.weight": {"lr_follows_schedule": False}})
    with pytest.raises(OverrideError, match=r"pattern 'haed.weight': Model has no parameter"):
        bnb.param_groups(model, overrides={"haed.weight": {"lr": 0.5}})


@pytest.mark.parametrize("options", [{"momentum": 0.9}, {"momentum": 0.0}, {"nesterov": False}])
def test_a_hint_for_another_rule_is_an_error_also_where_it_became_a_groups_option(options, manager):
    groups = bnb.param_groups(Model(), overrides={"head.*": options})
    with pytest.raises(ValueError, match=f"group 2: AdamW has no option '{next(iter(options))}'; got"):
        AdamW(groups)


def names_of(manager, optimizer):
    by_object = {id(row.parameter): row.name for row in optimizer.configurations()}
    assert [row.name for row in manager.explain(optimizer)] == list(by_object.values())
    return by_object


@pytest.mark.parametrize("registered", [False, True])
@pytest.mark.parametrize("change", ["grow", "shrink", "rotate", "insert"])
def test_names_in_groups_stay_true_when_parameters_come_and_go(change, registered, manager):
    model = nn.Sequential(*[nn.Linear(64, 64) for _ in range(3)])
    if registered:
        manager.register_parameters(model)
    named = dict(model.named_parameters())
    optimizer = AdamW(list(named.items())[:4], optim_bits=8)
    group = optimizer.param_groups[0]
    first = list(named.values())
    group["params"] = {
        "grow": first,
        "shrink": first[2:4],
        "rotate": first[3::-1],
        "insert": [first[4], *first[:4]],
    }[change]
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()
    found = names_of(manager, optimizer)
    for name, parameter in named.items():
        if id(parameter) in found and (registered or name < "2"):
            assert found[id(parameter)] == name
    assert bnb.report(optimizer).rows[0].name == group["param_names"][0]
    again = AdamW([{"params": group["params"], "param_names": group["param_names"]}], optim_bits=8)
    again.load_state_dict(optimizer.state_dict())
    assert again.param_groups[0]["param_names"] == list(found.values())


def test_names_that_are_changed_with_the_parameters_are_left_alone(manager):
    first, second = nn.Linear(3, 3), nn.Linear(3, 3, bias=False)
    optimizer = AdamW(first.named_parameters())
    optimizer.param_groups[0].update(params=[second.weight], param_names=["w"])
    assert list(names_of(manager, optimizer).values()) == ["w"]
    optimizer.param_groups[0].update(params=[*first.parameters(), second.weight], param_names=["w", "b"])
    assert list(names_of(manager, optimizer).values()) == ["parameter 0", "parameter 1", "parameter 2"]
