"""`param_groups`: hints as parameter groups, for engines that know nothing else."""

import pytest
from model import Model

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
