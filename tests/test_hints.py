"""Hints by pattern and type, which of several wins and how that is explained, rates that follow schedules."""

import json
import re
import threading
from functools import partial

import pytest
import torch
from model import Model, train
from torch import nn
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict
from torch.optim import lr_scheduler as schedulers

import torch_bnb as bnb
from torch_bnb import OverrideError
from torch_bnb.optim import AdamW
from torch_bnb.overrides import registry, resolve
from torch_bnb.overrides.hints import notes


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
    ids=lambda value: "fits" if isinstance(value, set) else str(value),  # a set's order is another in every process
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
    assert [setting.value for setting in row.hints] == [8.0, 9.0, 7.0, 5.0, 3.0, 4.0, 2.0]
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
    assert [setting.option for setting in rows["embed.weight"].hints] == ["eps", "lr"]
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


# What hints pass over.


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
    monkeypatch.setattr(registry, "hints_for", lambda *_: looked_up.append(1))
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
    before = registry.version()
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
    assert registry.version() == before + 128
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


def test_an_optimizer_asks_only_modules_above_its_parameters_for_hints(manager, monkeypatch):
    net = nn.Sequential(*(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)) for _ in range(9)))
    manager.register_parameters(net)
    asked, declared = [], resolve.declared
    monkeypatch.setattr(resolve, "declared", lambda module: asked.append(module) or declared(module))
    monkeypatch.setattr(registry, "names", lambda module: pytest.fail("nothing is to be named where no hint holds"))
    AdamW([net[3][1].weight])
    assert set(asked) == {net, net[3], net[3][1]}
