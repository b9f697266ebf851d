"""Hints by pattern and type, precedence and its explanation, files, groups, plans."""

import json
import pickle
import re
import subprocess
import sys
import threading
from functools import partial

import pytest
import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict
from torch.optim import lr_scheduler as schedulers

import torch_bnb as bnb
from torch_bnb import OverrideError
from torch_bnb.optim import SGD, AdamW
from torch_bnb.overrides.hints import notes


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(100, 64)
        self.blocks = nn.ModuleList(
            nn.ModuleDict({"fc": nn.Linear(64, 64), "norm": nn.LayerNorm(64)}) for _ in range(2)
        )
        self.head = nn.Linear(64, 100)

    def forward(self, x):
        x = self.embed(x)
        for block in self.blocks:
            x = block["norm"](block["fc"](x))
        return self.head(x)


def train(model, optimizer):
    optimizer.zero_grad()
    model(torch.arange(8)).square().mean().backward()
    optimizer.step()


def bits(optimizer, parameter):
    return 8 if "exp_avg_codes" in optimizer.state[parameter] else 32


def hinted(manager, model, option="lr"):
    """Names of the parameters for which `option` is overridden, as an optimizer would see it."""
    rows = manager.explain(AdamW(model.parameters()))
    return {row.name for row in rows if option in row.overrides}


# Patterns and types.


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("head.weight", {"head.weight"}),
        ("*.norm.*", {f"blocks.{i}.norm.{n}" for i in (0, 1) for n in ("weight", "bias")}),
        ("blocks.[0]*.fc.bias", {"blocks.0.fc.bias"}),
        ("*.embed*.weight", {"embed.weight"}),
        (r"re:blocks\.\d+\.fc\.weight", {"blocks.0.fc.weight", "blocks.1.fc.weight"}),
        ("re:^head", {"head.weight", "head.bias"}),
        (nn.LayerNorm, {f"blocks.{i}.norm.{n}" for i in (0, 1) for n in ("weight", "bias")}),
        (nn.Embedding, {"embed.weight"}),
    ],
    ids=str,
)
def test_a_key_reaches_what_it_says(manager, key, expected):
    model = Model()
    manager.override_named(model, {key: {"lr": 0.5}})
    assert hinted(manager, model) == expected


@pytest.mark.parametrize("key", ["*.nrom.*", "haed.weight", "re:^norm", nn.Conv2d], ids=str)
def test_a_pattern_that_fits_nothing_is_an_error(manager, key):
    with pytest.raises(OverrideError, match=r"override_named\(.*\): Model has no (parameter '|Conv2d with)"):
        manager.override_named(Model(), {key: {"lr": 0.5}})


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("head", "head.*"),
        ("hed.*", "head.*"),
        ("block.1.*", "blocks.1.*"),
        ("haed.bias", "head.bias"),
        ("norm", "blocks.0.norm.*"),
        ("*.fc", "blocks.0.fc.*"),
    ],
)
def test_the_nearest_name_is_suggested(manager, key, meant):
    with pytest.raises(OverrideError, match=f"did you mean '{re.escape(meant)}'"):
        manager.override_named(Model(), {key: {"lr": 0.5}})


def test_a_pattern_may_come_before_the_parameters_and_is_then_checked_by_the_optimizer(manager):
    model = nn.Module()
    manager.override_named(model, {"late.weight": {"lr": 0.5}, "never.*": {"lr": 0.5}})
    model.late = nn.Linear(3, 3)
    with pytest.raises(OverrideError, match=r"override_named\('never.\*'\): Module has no parameter"):
        AdamW(model.parameters())


def test_a_pattern_that_fits_nothing_is_a_warning_where_the_caller_says_so(manager):
    model = Model()
    manager.override_named(model, {"nothing.*": {"lr": 0.5}}, strict=False)
    with pytest.warns(UserWarning, match="no parameter 'nothing"):
        AdamW(model.parameters())


def test_a_broken_expression_is_an_error(manager):
    with pytest.raises(OverrideError, match=r"'re:\(' is no regular expression"):
        manager.override_named(Model(), {"re:(": {"lr": 0.5}})
    with pytest.raises(OverrideError, match="expected a dict of names and options, got 'lr'"):
        manager.override_named(Model(), "lr")


# Precedence and its explanation.


def test_every_level_wins_over_those_below_it(manager):
    class Inner(nn.Linear):
        optim_overrides = {"weight": {"lr": 3.0}}

    class Outer(nn.Module):
        optim_overrides = {"inner.weight": {"lr": 2.0}}

        def __init__(self):
            super().__init__()
            self.inner = Inner(8, 8, bias=False)

    model = Outer()
    groups = [{"params": [("inner.weight", model.inner.weight)], "lr": 1.0}]

    def lr():
        (row,) = manager.explain(AdamW(groups[0] | {} for _ in range(1)))
        return row.lr

    groups[0]["params"] = [("inner.weight", model.inner.weight)]
    assert lr() == 1.0
    manager.register_parameters(model)
    assert lr() == 3.0
    manager.register_module_override(model, "inner.weight", {"lr": 4.0})
    assert lr() == 3.0, "an outer module's hint is weaker, though later"
    manager.register_module_override(model.inner, "weight", {"lr": 5.0})
    assert lr() == 5.0
    manager.override_named(model, {"*weight": {"lr": 6.0}})
    assert lr() == 6.0
    manager.override_named(model, {"inner.*": {"lr": 7.0}})
    assert lr() == 7.0, "within a level the later one wins"
    manager.override_config(model.inner.weight, "lr", 8.0)
    manager.override_named(model, {"*weight": {"lr": 9.0}})
    assert lr() == 8.0
    row = manager.explain(AdamW(groups[0] | {} for _ in range(1)))["inner.weight"]
    assert row.winners == {"lr": "override_config"}
    assert [voice.value for voice in row.hints] == [8.0, 9.0, 7.0, 5.0, 3.0, 4.0, 2.0]
    assert row.losers["lr"][-1] == "optim_overrides of Outer"


def test_explain_shows_shape_bits_rate_and_overrides(manager):
    model = Model()
    manager.register_parameters(model)
    manager.override_config(model.head.weight, key_value_dict={"lr": 0.5, "betas": (0.8, 0.9)})
    optimizer = AdamW(model.parameters(), lr=0.01, optim_bits=8)
    optimizer.param_groups[0]["lr"] = 0.005
    rows = manager.explain(optimizer)
    assert len(rows) == len(list(model.parameters()))
    head = rows["head.weight"]
    assert (head.shape, head.bits, head.lr) == ((100, 64), 8, 0.25)
    assert head.overrides == {"lr": 0.5, "betas": (0.8, 0.9)}
    assert rows["embed.weight"].bits == 32 and rows["blocks.0.fc.weight"].bits == 8
    as_data = rows.to_dict()
    assert json.loads(json.dumps(as_data))[-2]["winners"] == {"lr": "override_config", "betas": "override_config"}
    text = str(rows)
    assert "head.weight" in text and "betas=(0.8, 0.9) by override_config" in text and "100x64" in text
    with pytest.raises(KeyError, match="no parameter 'haed'"):
        rows["haed"]


def test_explain_of_a_model_needs_no_optimizer(manager):
    model = Model()
    manager.register_parameters(model)
    manager.override_named(model, {"head.bias": {"lr": 0.5}})
    rows = manager.explain(model)
    assert rows["head.bias"].overrides == {"lr": 0.5} and rows["head.bias"].lr is None
    assert rows["embed.weight"].overrides == {"optim_bits": 32}
    with pytest.raises(TypeError, match=r"expected an nn.Module or an optimizer of torch_bnb, got a torch.*AdamW$"):
        manager.explain(torch.optim.AdamW(model.parameters()))
    with pytest.raises(TypeError, match=r"optimizer class of torch_bnb.optim, got an instance of AdamW$"):
        bnb.plan(model, AdamW(model.parameters()))


def test_tables_are_plain_text_without_rich(manager, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    model = nn.Linear(64, 64)
    manager.override_config(model.weight, key_value_dict={"lr": 0.5, "eps": 1e-6})
    lines = str(manager.explain(AdamW(model.named_parameters(), lr=0.01))).split("\n")
    assert lines[0].split() == ["parameter", "shape", "bits", "lr", "overrides", "lost"]
    assert lines[1].split() == ["weight", "64x64", "32", "0.5", "lr=0.5", "by", "override_config"]
    assert lines[2].split() == ["eps=1e-06", "by", "override_config"]
    assert len(lines) == 4
    assert "total" in str(bnb.plan(model))


def test_a_hint_on_a_tied_weight_counts_once(manager):
    model = Model()
    model.head.weight = model.embed.weight
    manager.register_parameters(model)
    manager.register_module_override(model, "weight", {"lr": 0.5})
    manager.override_config(model.embed.weight, "eps", 1e-6)
    rows = manager.explain(AdamW(model.parameters()))
    assert len(rows) == len(list(model.parameters()))
    voices = [voice.option for voice in rows["embed.weight"].hints]
    assert voices == ["eps", "lr"]
    assert len(manager.explain(model)) == len(rows)


def test_of_two_modules_that_share_a_weight_the_later_made_wins(manager):
    @bnb.optim_overrides({"weight": {"lr": 0.5}})
    class First(nn.Linear):
        pass

    @bnb.optim_overrides({"weight": {"lr": 0.25}})
    class Second(nn.Linear):
        pass

    kept = []
    for early, late, rate in ((First, Second, 0.25), (Second, First, 0.5)) * 10:
        pair = early(4, 4), late(4, 4)
        pair[1].weight = pair[0].weight
        kept.append(pair)  # at other addresses every time
        assert manager.explain(AdamW([pair[0].weight]))[0].lr == rate


# Defaults.


def test_embeddings_of_known_models_keep_32_bits_and_the_plan_says_what_it_costs(manager):
    model = Model()
    optimizer = AdamW(model.parameters(), optim_bits=8)
    train(model, optimizer)
    assert bits(optimizer, model.embed.weight) == 8, "the module is not known"
    manager.register_parameters(model)
    train(model, optimizer)
    assert bits(optimizer, model.embed.weight) == 32
    saved = 2 * (4 * 6400 - 6400 - 4 * 25)
    assert bnb.report(optimizer).embedding_bytes == saved
    assert f"Embeddings keep 32-bit state, which costs {saved / 1024:.2f} KiB" in str(bnb.report(optimizer))
    manager.register_parameters(model, embeddings_32bit=False)
    train(model, optimizer)
    assert bits(optimizer, model.embed.weight) == 8
    manager.register_parameters(model)
    train(model, optimizer)
    assert bits(optimizer, model.embed.weight) == 8, "registering again does not turn it on again"


@pytest.mark.parametrize("how", ["hint", "group"])
def test_explicit_optim_bits_turn_the_default_for_embeddings_off(manager, how):
    model = Model()
    manager.register_parameters(model)
    if how == "hint":
        manager.override_named(model, {nn.Embedding: {"optim_bits": 8}})
        optimizer = AdamW(model.parameters(), optim_bits=8)
    else:
        optimizer = AdamW([{"params": model.parameters(), "optim_bits": 8}])
    train(model, optimizer)
    assert bits(optimizer, model.embed.weight) == 8


def test_frozen_and_non_floating_parameters_are_passed_over(manager):
    model = Model()
    model.head.requires_grad_(False)
    model.counts = nn.Parameter(torch.zeros(3, dtype=torch.int64), requires_grad=False)
    manager.register_parameters(model)
    manager.override_named(model, {"*": {"lr_scale": 0.5}})
    assert [name for group in bnb.param_groups(model, lr=0.1) for name, _ in group["params"]][-1] != "counts"
    optimizer = AdamW([p for p in model.parameters() if p.requires_grad], optim_bits=8)
    train(model, optimizer)
    assert model.head.weight not in optimizer.state


# Cost.


def test_an_unchanged_manager_costs_no_lookup(manager, monkeypatch):
    model = Model()
    manager.register_parameters(model)
    optimizer = AdamW(model.parameters())
    train(model, optimizer)
    looked_up = []
    monkeypatch.setattr(type(manager), "hints_for", lambda *_: looked_up.append(1))
    train(model, optimizer)
    assert not looked_up


def test_overriding_in_a_loop_does_not_pile_up(manager):
    model = nn.Linear(4, 4)
    manager.register_parameters(model)
    optimizer = AdamW(model.named_parameters())
    for i in range(200):
        manager.override_config(model.weight, "eps" if i == 3 else "lr", 0.001 * i)
        manager.register_module_override(model, "bias", {"lr": 0.001 * i})
        if i % 2:
            optimizer.step()
    assert len(notes(model).hints) <= 3
    rows = manager.explain(optimizer)
    assert [len(row.hints) for row in rows] == [2, 1]
    assert rows["weight"].overrides == {"eps": 0.003, "lr": pytest.approx(0.199)}
    assert rows["bias"].overrides == {"lr": pytest.approx(0.199)}


def test_what_a_plugin_takes_back_leaves_what_the_user_said_of_the_same_name(manager):
    model = nn.Linear(4, 4)
    optimizer = AdamW(model.named_parameters(), lr=0.1)
    manager.override_named(model, {"weight": {"lr": 0.5}})
    manager.override_named(model, {"weight": {"lr": 0.25}}, source="plugin")
    row = manager.explain(optimizer)["weight"]
    assert row.lr == 0.25 and row.losers == {"lr": ["override_named('weight')"]}
    manager.say_named(model, {}, strict=True, source="plugin", only=True)
    assert manager.explain(optimizer)["weight"].lr == 0.5


def test_what_a_plugin_says_again_keeps_its_place_among_all_words(manager):
    model = nn.Linear(4, 4)
    patterns = {"weight": {"lr_scale": 0.5}, "bias": {"lr": 0.25}}

    def say(**how):
        manager.say_named(model, patterns, strict=True, source="plugin", **how)

    say()
    groups = bnb.param_groups(model, lr=0.1)
    manager.override_named(model, {"bias": {"lr": 0.5}})
    say()
    say(only=True)
    rows = manager.explain(AdamW(groups, lr=0.1))
    assert rows["weight"].lr == 0.05 and rows["weight"].overrides == {}
    assert rows["bias"].lr == 0.5
    patterns["weight"] = {"lr_scale": 0.25}  # this is new, and so are all in its place
    say(only=True)
    rows = manager.explain(AdamW(model.named_parameters(), lr=0.1))
    assert rows["weight"].lr == 0.025 and rows["bias"].lr == 0.25
    manager.override_named(model, {"weight": {"lr_scale": 0.5}})
    patterns["*"] = {"eps": 1e-6}  # behind what was said before, which keeps its place
    say(only=True)
    rows = manager.explain(AdamW(model.named_parameters(), lr=0.1))
    assert rows["weight"].overrides == {"lr_scale": 0.5, "eps": 1e-6} and rows["bias"].lr == 0.25
    with pytest.raises(OverrideError, match=r"plugin\('haed'\): Linear has no parameter 'haed'"):
        manager.say_named(model, {"haed": {"lr": 1.0}}, strict=True, source="plugin", only=True)
    assert manager.explain(AdamW(model.named_parameters(), lr=0.1))["bias"].lr == 0.25
    with pytest.raises(TypeError, match=r"override_named: expected an nn\.Module, got int"):
        manager.say_named(3, {}, strict=True, source="plugin")
    empty = nn.Module()
    for _ in range(2):  # its parameters may come later
        manager.say_named(empty, {"late": {"lr": 1.0}}, strict=True, source="plugin")


def test_threads_lose_no_hint(manager):
    model = nn.ModuleList(nn.Linear(4, 4) for _ in range(64))
    manager.register_parameters(model)
    before = manager.version
    instances = []

    def work(part):
        instances.append(bnb.optim.GlobalOptimManager.get_instance())
        for layer in model[part::4]:
            manager.override_config(layer.weight, "lr", 0.5)
            manager.register_module_override(layer, "bias", {"lr": 0.5})
            manager.explain(model)

    threads = [threading.Thread(target=work, args=(part,)) for part in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert manager.version == before + 128
    assert all(row.overrides == {"lr": 0.5} for row in manager.explain(model))
    assert set(map(id, instances)) == {id(manager)}


# Schedules beyond those in test_overrides.


MOVERS = {
    "plateau": lambda o: partial(schedulers.ReduceLROnPlateau(o, factor=0.1, patience=0).step, 1.0),
    "sequence": lambda o: (
        schedulers.SequentialLR(
            o, [schedulers.LinearLR(o, total_iters=2), schedulers.ExponentialLR(o, 0.5)], milestones=[2]
        ).step
    ),
    "list": lambda o: schedulers.LambdaLR(o, [lambda step: 1 / (step + 1), lambda step: 1.0]).step,
    "hand": lambda o: lambda: o.param_groups[0].update(lr=o.param_groups[0]["lr"] / 3),
}


@pytest.mark.parametrize("name", MOVERS)
def test_an_own_rate_follows_plateaus_sequences_lists_and_hands(manager, name):
    p, q = nn.Parameter(torch.zeros(8)), nn.Parameter(torch.zeros(8))
    manager.override_config(p, "lr", 0.05)
    optimizer = AdamW([{"params": [p]}, {"params": [q], "lr": 0.02}], lr=0.01)
    move = MOVERS[name](optimizer)
    seen = set()
    for _ in range(5):
        first, second = optimizer.param_groups
        assert manager.explain(optimizer)[0].lr == pytest.approx(5 * first["lr"])
        assert manager.explain(optimizer)[1].lr == second["lr"]
        seen.add(first["lr"])
        optimizer.step()
        move()
    assert len(seen) > 2


def test_asking_a_distributed_checkpoint_for_the_state_moves_no_weight(manager):
    model = Model()
    manager.register_parameters(model)
    manager.override_named(model, {"*": {"lr": 0.5, "lr_follows_schedule": False, "weight_decay": 0.1}})
    optimizer = AdamW(model.parameters(), lr=0.01, optim_bits=8)
    before = [p.detach().clone() for p in model.parameters()]
    state = get_optimizer_state_dict(model, optimizer)  # makes state by a step with zero gradients and rate 0
    assert "exp_avg_codes" in state["state"]["head.weight"]
    assert all(torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True))


# Groups.


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


def test_an_explicit_word_about_embeddings_stays(manager):
    model = Model()
    manager.register_parameters(model, embeddings_32bit=False)
    groups = bnb.param_groups(model)
    assert not any("optim_bits" in group for group in groups)
    outer = nn.ModuleList([model])
    manager.register_parameters(outer, embeddings_32bit=True)
    assert manager.explain(AdamW(model.parameters(), optim_bits=8))["0.embed.weight"].bits == 32


def test_a_word_about_embeddings_holds_through_wrappers_until_a_later_one(manager):
    def bits(outer):
        optimizer = AdamW(outer.parameters(), optim_bits=8)
        return next(row.bits for row in manager.explain(optimizer) if row.name.endswith("embed.weight"))

    inner = Model()
    outer = nn.ModuleList([inner])
    manager.register_parameters(inner, embeddings_32bit=False)
    manager.register_parameters(outer)
    assert bits(outer) == 8
    assert not any("optim_bits" in group for group in bnb.param_groups(torch.compile(inner, backend="eager")))
    manager.register_parameters(outer, embeddings_32bit=True)
    assert bits(outer) == 32
    manager.register_parameters(inner, embeddings_32bit=False)
    assert bits(outer) == 8
    loaded = pickle.loads(pickle.dumps(outer))
    manager.register_parameters(loaded)
    assert bits(loaded) == 8


def test_the_default_for_embeddings_holds_as_soon_as_a_group_asks_for_8_bits(manager):
    model = Model()
    manager.register_parameters(model)
    optimizer = AdamW(model.parameters())
    optimizer.param_groups[0]["optim_bits"] = 8
    assert manager.explain(optimizer)["embed.weight"].bits == 32


def test_an_embedding_whose_weight_is_no_parameter_has_no_default(manager):
    model = nn.Sequential(nn.Embedding(100, 64), nn.Linear(64, 64))
    weight = model[0].weight.detach()
    del model[0].weight
    model[0].register_buffer("weight", weight)
    manager.register_parameters(model)
    assert [row.bits for row in manager.explain(AdamW(model.parameters(), optim_bits=8))] == [8, 32]


def test_bits_that_a_group_says_stay_through_a_rebuild_and_a_checkpoint(manager):
    model = Model()
    manager.register_parameters(model)
    default = AdamW(model.parameters(), optim_bits=8)
    again = AdamW(default.param_groups, **default.defaults)
    explicit = AdamW([{"params": model.parameters(), "optim_bits": 8}])
    for optimizer, bits in ((default, 32), (again, 32), (explicit, 8)):
        assert manager.explain(optimizer)["embed.weight"].bits == bits
    default.load_state_dict(explicit.state_dict())
    explicit.load_state_dict(again.state_dict())
    assert manager.explain(default)["embed.weight"].bits == 32
    assert manager.explain(explicit)["embed.weight"].bits == 8


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


# Memory.


@pytest.mark.parametrize("optim_bits", [8, 32])
@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("known", [True, False])
def test_the_plan_is_what_is_measured(manager, optim_bits, device, known):
    with torch.device(device):
        planned = Model()
    model = Model()
    for m in (planned, model):
        if known:
            manager.register_parameters(m)
        manager.override_named(m, {"blocks.0.*": {"optim_bits": 8, "min_8bit_size": 1}})
    plan = bnb.plan(planned, AdamW, optim_bits, lr=0.5)
    optimizer = AdamW(model.parameters(), optim_bits=optim_bits)
    train(model, optimizer)
    report = bnb.report(optimizer)
    assert plan.total == report.total
    assert [row.state for row in plan.rows] == [row.state for row in report.rows]
    assert plan.total.state_32bit == 8 * sum(p.numel() for p in model.parameters())
    if device == "meta":
        assert all(p.is_meta for p in planned.parameters())


def test_frozen_parameters_that_an_optimizer_holds_take_no_state(manager):
    model = Model()
    manager.register_parameters(model)
    model.embed.requires_grad_(False)
    optimizer = AdamW(model.parameters(), optim_bits=8)
    expected, seen = bnb.plan(model, "adamw8bit").total, bnb.report(optimizer)
    assert (seen.total.planned, seen.total.state_32bit) == (expected.state, expected.state_32bit)
    assert seen.embedding_bytes == 0 and len(seen.rows) == len(list(model.parameters()))


def test_a_plan_takes_patterns_and_options_and_leaves_no_trace(manager):
    model = Model()
    model.head.requires_grad_(False)
    version = manager.version
    plain, hinted = bnb.plan(model), bnb.plan(model, overrides={nn.Embedding: {"optim_bits": 32}})
    assert hinted.total.state - plain.total.state == 2 * (4 * 6400 - 6400 - 4 * 25)
    assert manager.version == version and not manager.explain(model)["embed.weight"].overrides
    assert bnb.plan(model, SGD).total.state == 0
    assert bnb.plan(model, SGD, 32, momentum=0.9).total.state == 4 * sum(
        p.numel() for p in model.parameters() if p.requires_grad
    )
    rows = {row.name: row for row in plain.rows}
    assert rows["head.weight"].bits is None and rows["head.weight"].state == rows["head.weight"].gradient == 0
    with pytest.raises(OverrideError, match="pattern 'nope': Model has no parameter"):
        bnb.plan(model, overrides={"nope": {"lr": 1.0}})


def test_torch_optimizers_are_measured_too():
    p = nn.Parameter(torch.zeros(1000))
    optimizer = torch.optim.AdamW([p])
    p.grad = torch.ones(1000)
    optimizer.step()
    assert bnb.report(optimizer).total.state == 8000
    assert bnb.report(optimizer).total.gradient == 4000


# Files.


def test_yaml_and_json_say_the_same(tmp_path):
    yaml, js = tmp_path / "hints.yaml", tmp_path / "hints.json"
    yaml.write_text(
        '"*.embed*.weight": {optim_bits: 32, lr: 1e-4}\nhead.bias:\n  betas: [0.9, 0.98]\n  is_sparse: false\n'
    )
    js.write_text(
        '{"*.embed*.weight": {"optim_bits": 32, "lr": 1e-4},\n "head.bias": {"betas": [0.9, 0.98], "is_sparse": false}}'
    )
    expected = {
        "*.embed*.weight": {"optim_bits": 32, "lr": 1e-4},
        "head.bias": {"betas": (0.9, 0.98), "skip_zeros": False},
    }
    assert bnb.load_overrides(yaml) == bnb.load_overrides(str(js)) == expected


def test_an_empty_file_has_no_hints(tmp_path):
    (tmp_path / "empty.yaml").write_text("# nothing\n")
    assert bnb.load_overrides(tmp_path / "empty.yaml") == {}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a.weight: {lr: 0.1}\nb.weight:\n  optim_bit: 8\n", "line 3: 'b.weight': unknown option 'optim_bit', did you"),
        ("a.weight:\n  lr: 0.1\n  eps: small\n", "line 3: 'a.weight': eps='small': expected a finite number"),
        ("a.weight: {lr: 0.1}\na.weight: {lr: 0.2}\n", "line 2: 'a.weight' stands there twice"),
        ("a.weight:\n  lr: 0.1\n  lr: 0.2\n", "line 3: 'a.weight': 'lr' stands there twice"),
        ("- a\n- b\n", r"line 1: the file must be a mapping, got \['a', 'b'\]"),
        ("a.weight: 32\n", "line 1: 'a.weight' must be a mapping, got 32"),
        ("1: {lr: 0.1}\n", "line 1: the file has a key that is no string: '1'"),
        ("a: {lr: 0.1\nb: [}\n", "line 2: "),
        ("*.weight: {lr: 0.1}\n", "line 1: .*; a name that begins with \\* must be quoted"),
        ("a: !!python/object/apply:os.system [ls]\n", "line 1: "),
    ],
)
def test_a_bad_file_names_file_line_and_key(tmp_path, text, message):
    path = tmp_path / "hints.yaml"
    path.write_text(text)
    with pytest.raises(OverrideError, match=rf"hints\.yaml, {message}"):
        bnb.load_overrides(path)


# The command line.


def command(*arguments, cwd):
    return subprocess.run(
        [sys.executable, "-m", "torch_bnb", *arguments], capture_output=True, text=True, cwd=cwd, check=False
    )


def test_the_command_plans_a_model_by_name(tmp_path):
    (tmp_path / "mine.py").write_text(
        "from torch import nn\ndef make():\n    return nn.Linear(4096, 4096, bias=False)\n"
    )
    (tmp_path / "hints.yaml").write_text("weight: {optim_bits: 32}\n")
    shown = command("plan", "mine:make", cwd=tmp_path)
    assert shown.returncode == 0, shown.stderr
    assert "weight" in shown.stdout and "32.50 MiB" in shown.stdout and "128.00 MiB" in shown.stdout
    hinted = command("plan", "mine:make", "--overrides", "hints.yaml", "--optimizer", "Lion", "--json", cwd=tmp_path)
    assert json.loads(hinted.stdout)["total"]["state"] == 4 * 4096 * 4096
    fixed = command("plan", "mine:make", "--optimizer", "lion-32bit", "--json", cwd=tmp_path)
    assert json.loads(fixed.stdout)["total"]["state"] == 4 * 4096 * 4096


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("mine",), "'mine': expected package.module:factory"),
        (("no.such:thing",), "'no.such:thing': No module named 'no'"),
        (("builtins:dict",), "'builtins:dict' made a dict, expected an nn.Module"),
        (("torch.nn:Identity", "--option", "momentum"), "--option momentum: expected KEY=VALUE"),
        (("mine:make", "--option", "block_grid=row"), "AdamW: block_grid='row': expected 'flat' or 'rows'"),
        (("mine:make", "--optimizer", "adamx"), "unknown optimizer 'adamx'; did you mean adam"),
        (
            ("mine:make", "--optimizer", "Adam8bit", "--optim-bits", "32"),
            "Adam8bit: optim_bits=32: expected 8; use Adam",
        ),
        (("torch.nn:Identity", "--overrides", "none.yaml"), "No such file or directory: 'none.yaml'"),
    ],
)
def test_the_command_says_what_is_wrong(tmp_path, arguments, message):
    (tmp_path / "mine.py").write_text("from torch import nn\ndef make():\n    return nn.Linear(64, 64)\n")
    done = command("plan", *arguments, cwd=tmp_path)
    assert done.returncode == 2 and message in done.stderr and "Traceback" not in done.stderr
