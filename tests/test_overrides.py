"""Overrides: given anytime, anywhere, by parameter and never by accident."""

import copy
import gc
import pickle
import weakref

import pytest
import torch
from torch import nn

import torch_bnb as bnb
from torch_bnb.optim import AdamW, GlobalOptimManager
from torch_bnb.overrides import registry


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1, self.fc2, self.special = nn.Linear(80, 80), nn.Linear(80, 80), nn.Linear(80, 80)

    def forward(self, x):
        return self.special(self.fc2(self.fc1(x)))


def train(model, optimizer, steps=1):
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.randn(4, 80)).square().mean().backward()
        optimizer.step()


def bits(optimizer, parameter):
    return 8 if "exp_avg_codes" in optimizer.state[parameter] else 32


def step_size(optimizer, parameter):
    """How far one AdamW step with a constant gradient moves a fresh parameter: its rate."""
    parameter.grad = torch.ones_like(parameter)
    before = parameter.detach().clone()
    optimizer.step()
    return (before - parameter.detach()).mean().item()


# The how-to's three snippets, as users of 8-bit optimizers write them.


def test_snippet_registered_on_the_cpu_then_moved_then_overridden():
    mng = bnb.optim.GlobalOptimManager.get_instance()
    model = Net()
    mng.register_parameters(model.parameters())
    model = model.to(torch.bfloat16).to("cpu")
    adam = bnb.optim.Adam(model.parameters(), lr=0.001, optim_bits=8)
    mng.override_config(model.fc1.weight, "optim_bits", 32)
    model.float()
    train(model, adam)
    assert bits(adam, model.fc1.weight) == 32
    assert bits(adam, model.fc2.weight) == 8


def test_snippet_a_list_with_key_value_dict():
    mng = bnb.optim.GlobalOptimManager.get_instance()
    model = Net()
    mng.register_parameters(model.parameters())
    adam = bnb.optim.Adam(model.parameters(), lr=0.001, optim_bits=8)
    mng.override_config(
        [model.special.weight, model.fc1.weight], key_value_dict={"lr": 1e-5, "betas": (0.9, 0.98), "optim_bits": 32}
    )
    train(model, adam)
    assert bits(adam, model.special.weight) == bits(adam, model.fc1.weight) == 32
    assert bits(adam, model.fc2.weight) == 8


def test_snippet_a_module_override_declared_in_init_for_a_child():
    class MyModule(nn.Module):
        def __init__(self, din, dout):
            super().__init__()
            self.linear = nn.Linear(din, dout)
            config = {"optim_bits": 32, "lr": 0.0001}
            GlobalOptimManager.get_instance().register_module_override(self, "weight", config)

        def forward(self, x):
            return self.linear(x)

    model = MyModule(80, 80)
    adam = bnb.optim.Adam8bit(model.parameters(), lr=0.001, min_8bit_size=0)
    train(model, adam)
    assert bits(adam, model.linear.weight) == 32
    assert bits(adam, model.linear.bias) == 8
    optimizer = AdamW(model.parameters(), lr=0.01, weight_decay=0)
    assert step_size(optimizer, model.linear.weight) == pytest.approx(1e-4, rel=1e-3)


# Anytime, anywhere.


@pytest.mark.parametrize("when", ["before registration", "after registration", "after the optimizer", "after a step"])
@pytest.mark.parametrize("how", ["parameter", "module"])
def test_a_hint_holds_whenever_it_was_given(manager, when, how):
    model = Net()

    def hint():
        if how == "parameter":
            manager.override_config(model.fc1.weight, "optim_bits", 32)
        else:
            manager.register_module_override(model, "fc1.weight", {"optim_bits": 32})

    if when == "before registration":
        hint()
    manager.register_parameters(model)
    if when == "after registration":
        hint()
    optimizer = AdamW(model.parameters(), optim_bits=8)
    if when == "after the optimizer":
        hint()
    train(model, optimizer)
    if when == "after a step":
        hint()
        train(model, optimizer)
    assert bits(optimizer, model.fc1.weight) == 32
    assert bits(optimizer, model.fc2.weight) == 8


@pytest.mark.parametrize(("first", "then"), [(8, 32), (32, 8)])
def test_late_optim_bits_convert_the_live_state_and_reset_nothing(manager, first, then):
    model = Net()
    optimizer = AdamW(model.parameters(), optim_bits=first, state_rounding="nearest")
    train(model, optimizer, 3)
    p = model.fc1.weight
    before = dict(optimizer.state[p])
    manager.override_config(p, "optim_bits", then)
    p.grad = torch.zeros_like(p)
    optimizer.param_groups[0]["betas"] = (0.999999, 0.999999)  # the step itself leaves the moments as good as alone
    optimizer.step()
    after = optimizer.state[p]
    assert after["step"] == 4
    assert bits(optimizer, p) == then

    def decoded(state, bits):
        if bits == 32:
            return state["exp_avg"]
        return bnb.codec.dequantize_blockwise(state["exp_avg_codes"], state["exp_avg_absmax"])

    most = decoded(before, first).abs().max().item()
    # 8 bits are encoded twice, by the conversion and by the step: twice half the widest gap of the map.
    torch.testing.assert_close(decoded(after, then), decoded(before, first), rtol=1e-5, atol=2 * 0.0075 * most)


def test_a_late_min_8bit_size_converts_the_live_state_too(manager):
    model = Net()
    optimizer = AdamW(model.parameters(), optim_bits=8)
    for size, expected in ((4096, 8), (10_000, 32), (0, 8)):
        manager.override_config(model.fc1.weight, "min_8bit_size", size)
        train(model, optimizer)
        assert bits(optimizer, model.fc1.weight) == expected
    assert optimizer.state[model.fc1.weight]["step"] == 3


def test_a_hint_changes_the_next_step_and_no_earlier(manager):
    p = torch.zeros(10, requires_grad=True)
    optimizer = AdamW([p], lr=0.01, weight_decay=0)
    assert step_size(optimizer, p) == pytest.approx(0.01, rel=1e-3)
    manager.override_config(p, "lr", 0.5)
    assert step_size(optimizer, p) == pytest.approx(0.5, rel=1e-3)
    manager.override_config(p, "lr", 0.25)
    assert step_size(optimizer, p) == pytest.approx(0.25, rel=1e-3)


# By parameter, never by accident.


def test_two_optimizers_never_see_each_others_hints(manager):
    first, second = Net(), Net()
    manager.register_parameters(first.parameters())
    manager.register_parameters(second.parameters())
    manager.override_config(first.fc1.weight, "optim_bits", 32)
    one, two = AdamW(first.parameters(), optim_bits=8), AdamW(second.parameters(), optim_bits=8)
    train(first, one)
    train(second, two)
    assert bits(one, first.fc1.weight) == 32
    assert all(bits(two, p) == 8 for p in second.parameters() if p.numel() >= 4096)


def test_a_new_parameter_at_a_freed_address_meets_no_hint(manager):
    reused = 0
    for _ in range(5000):
        old = nn.Parameter(torch.zeros(8))
        address = id(old)
        manager.override_config(old, "lr", 123.0)
        data = torch.zeros(8)  # before the address is free, or this tensor takes it
        del old
        new = nn.Parameter(data)
        optimizer = AdamW([new], lr=0.01, weight_decay=0)
        assert step_size(optimizer, new) == pytest.approx(0.01, rel=1e-3)
        reused += id(new) == address
        del optimizer, new
        if reused == 200:
            break
    assert reused > 0, "else this test has shown nothing"


def test_dicts_are_copied(manager):
    p, q = nn.Parameter(torch.zeros(8)), nn.Parameter(torch.zeros(8))
    config = {"lr": 0.5}
    manager.override_config([p, q], key_value_dict=config)
    config["lr"] = 99.0
    manager.override_config(q, "lr", 0.25)
    optimizer = AdamW([{"params": [p]}, {"params": [q]}], lr=0.01, weight_decay=0)
    assert step_size(optimizer, p) == pytest.approx(0.5, rel=1e-3)
    q.grad = None
    assert step_size(optimizer, q) == pytest.approx(0.25, rel=1e-3)


def test_nothing_is_kept_alive_and_there_is_no_cycle(manager):
    gc.disable()
    try:
        model = Net()
        manager.register_parameters(model)
        manager.override_config(model.fc1.weight, "lr", 0.5)
        manager.register_module_override(model.fc2, "weight", {"lr": 0.5})
        optimizer = AdamW(model.parameters(), optim_bits=8)
        train(model, optimizer)
        watched = [weakref.ref(model.fc1), weakref.ref(model.fc2), weakref.ref(model)]
        storages = [weakref.ref(p) for p in model.parameters()]
        del model, optimizer
        assert [w() for w in watched] == [None, None, None]
        assert [s() for s in storages] == [None] * 6
    finally:
        gc.enable()


def test_initialize_forgets(manager):
    model = Net()
    manager.override_config(model.fc1.weight, "optim_bits", 32)
    manager.register_module_override(model.fc2, "weight", {"optim_bits": 32})
    optimizer = AdamW(model.parameters(), optim_bits=8)
    train(model, optimizer)
    assert bits(optimizer, model.fc1.weight) == bits(optimizer, model.fc2.weight) == 32
    manager.initialize()
    train(model, optimizer)
    assert bits(optimizer, model.fc1.weight) == bits(optimizer, model.fc2.weight) == 8


def test_a_hint_stays_with_its_place_when_a_framework_replaces_the_parameter(manager):
    old = nn.Parameter(torch.zeros(8))
    manager.override_config(old, "lr", 0.5)
    optimizer = AdamW([old], lr=0.01, weight_decay=0)
    new = nn.Parameter(torch.zeros(8))
    optimizer.param_groups[0]["params"] = [new]
    del old
    assert step_size(optimizer, new) == pytest.approx(0.5, rel=1e-3)


# Through modules.


def test_module_override_prefers_the_own_attribute_then_a_path_then_descendants(manager):
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(8))
            self.inner = nn.Linear(8, 8)

    def rates(key):
        manager.initialize()
        block = Block()
        manager.register_module_override(block, key, {"lr": 0.5})
        optimizer = AdamW(block.parameters(), lr=0.01, weight_decay=0)
        found = set()
        for name, p in block.named_parameters():
            block.zero_grad()
            if step_size(optimizer, p) > 0.4:
                found.add(name)
        return found

    assert rates("weight") == {"weight"}
    assert rates("inner.weight") == {"inner.weight"}
    assert rates("bias") == {"inner.bias"}


def test_every_descendant_with_the_last_name_is_meant(manager):
    model = Net()
    manager.register_module_override(model, "weight", {"optim_bits": 32})
    optimizer = AdamW(model.parameters(), optim_bits=8)
    train(model, optimizer)
    assert all(bits(optimizer, p) == 32 for p in model.parameters())


def test_a_module_hint_follows_a_replaced_parameter(manager):
    model = Net()
    manager.register_module_override(model, "fc1.weight", {"optim_bits": 32})
    optimizer = AdamW(model.parameters(), optim_bits=8)
    model.load_state_dict({k: v.clone() for k, v in model.state_dict().items()}, assign=True)
    optimizer.param_groups[0]["params"] = list(model.parameters())
    train(model, optimizer)
    assert bits(optimizer, model.fc1.weight) == 32
    assert bits(optimizer, model.fc2.weight) == 8


def test_inner_modules_win_over_outer_ones_and_parameters_over_modules(manager):
    model = nn.Sequential(Net())
    manager.register_module_override(model[0].fc1, "weight", {"lr": 0.5})
    manager.register_module_override(model, "weight", {"lr": 0.25})  # later, but from further out
    optimizer = AdamW(model.parameters(), lr=0.01, weight_decay=0)
    assert step_size(optimizer, model[0].fc1.weight) == pytest.approx(0.5, rel=1e-3)
    model.zero_grad()
    assert step_size(optimizer, model[0].fc2.weight) == pytest.approx(0.25, rel=1e-3)
    manager.override_config(model[0].fc1.weight, "lr", 0.125)
    model.zero_grad()
    assert step_size(optimizer, model[0].fc1.weight) == pytest.approx(0.125, rel=1e-3)


def test_declared_hints_are_inherited_and_the_instance_wins(manager):
    @bnb.optim_overrides({"fc1.weight": {"lr": 0.5}, "fc2.weight": {"lr": 0.5}})
    class Base(Net):
        pass

    class Child(Base):
        optim_overrides = {"fc2.weight": {"lr": 0.25}, "special.weight": {"lr": 0.25}}

    model = Child()
    model.optim_overrides = {"special.weight": {"lr": 0.125}}
    manager.register_parameters(model)
    optimizer = AdamW(model.parameters(), lr=0.01, weight_decay=0)
    for layer, rate in ((model.fc1, 0.5), (model.fc2, 0.25), (model.special, 0.125)):
        model.zero_grad()
        assert step_size(optimizer, layer.weight) == pytest.approx(rate, rel=1e-3)


def test_the_decorator_returns_the_same_class():
    class Plain(Net):
        pass

    assert bnb.optim_overrides({"fc1.weight": {"lr": 0.5}})(Plain) is Plain
    with pytest.raises(TypeError, match=r"optim_overrides decorates an nn.Module class, got <class 'int'>"):
        bnb.optim_overrides({})(int)


# A learning rate of its own.


@pytest.mark.parametrize(
    "schedule",
    [
        lambda o: torch.optim.lr_scheduler.LambdaLR(o, lambda step: max(0.0, 1 - step / 4)),
        lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 5),
        lambda o: torch.optim.lr_scheduler.OneCycleLR(o, max_lr=0.01, total_steps=8),
    ],
    ids=["LambdaLR", "CosineAnnealingLR", "OneCycleLR"],
)
def test_an_own_rate_follows_the_schedule(manager, schedule):
    p, q = nn.Parameter(torch.zeros(8)), nn.Parameter(torch.zeros(8))
    manager.override_config(p, "lr", 0.05)
    optimizer = AdamW([p, q], lr=0.01, weight_decay=0, betas=(0.0, 0.0))
    scheduler = schedule(optimizer)
    for _ in range(6):
        p.grad, q.grad = torch.ones(8), torch.ones(8)
        before = p.detach().clone(), q.detach().clone()
        optimizer.step()
        own, main = ((b - a.detach()).mean().item() for a, b in zip((p, q), before, strict=True))
        assert own == pytest.approx(5 * main, rel=1e-3, abs=1e-9)
        scheduler.step()


def test_lr_0_of_the_group_stops_every_override(manager):
    p = nn.Parameter(torch.ones(8))
    manager.override_config(p, key_value_dict={"lr": 0.5, "lr_follows_schedule": False})
    optimizer = AdamW([p], lr=0.01, weight_decay=0.1)
    optimizer.param_groups[0]["lr"] = 0.0
    assert step_size(optimizer, p) == 0.0
    optimizer.param_groups[0]["lr"] = 1e-6
    assert step_size(optimizer, p) > 0.4


def test_lr_scale_multiplies(manager):
    p = nn.Parameter(torch.zeros(8))
    manager.override_config(p, "lr_scale", 0.5)
    optimizer = AdamW([p], lr=0.01, weight_decay=0)
    assert step_size(optimizer, p) == pytest.approx(0.005, rel=1e-3)


def test_an_own_rate_survives_a_checkpoint(manager):
    p = nn.Parameter(torch.zeros(8))
    manager.override_config(p, "lr", 0.5)
    optimizer = AdamW([p], lr=0.01, weight_decay=0)
    optimizer.param_groups[0]["lr"] = 0.005
    saved = optimizer.state_dict()
    again = AdamW([p], lr=0.03, weight_decay=0)
    again.load_state_dict(saved)
    assert step_size(again, p) == pytest.approx(0.25, rel=1e-3)


def test_overrides_do_not_split_groups(manager):
    model = Net()
    manager.override_config(model.fc1.weight, "lr", 0.5)
    optimizer = AdamW(model.parameters(), optim_bits=8)
    train(model, optimizer)
    assert len(optimizer.param_groups) == 1
    torch.optim.lr_scheduler.LambdaLR(optimizer, [lambda step: 1.0])


# Errors, where the hint is written.


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"optim_bit": 32}, "unknown option 'optim_bit', did you mean 'optim_bits'"),
        ({"optim_bits": 16}, "optim_bits=16: expected 8 or 32"),
        ({"lr": "1e-4"}, "lr='1e-4': expected a finite number >= 0"),
        ({"lr": True}, "lr=True: expected"),
        ({"betas": 0.9}, r"betas=0\.9: expected two numbers in \[0, 1\)"),
        ({"is_sparse": 1}, "is_sparse=1: expected True or False"),
    ],
)
def test_a_misspelt_or_impossible_hint_is_an_error_where_it_is_written(manager, config, message):
    model = Net()
    for write in (
        lambda: manager.override_config(model.fc1.weight, key_value_dict=config),
        lambda: manager.override_config(model.fc1.weight, *next(iter(config.items()))),
        lambda: manager.register_module_override(model, "weight", config),
        lambda: bnb.optim_overrides({"fc1.weight": config}),
    ):
        with pytest.raises(bnb.OverrideError, match=message):
            write()
    Net.optim_overrides = {"fc1.weight": config}
    try:
        with pytest.raises(bnb.OverrideError, match=rf"optim_overrides of Net\['fc1.weight'\]: {message}"):
            manager.register_parameters(model)
    finally:
        del Net.optim_overrides


def test_errors_of_arguments(manager):
    p = nn.Parameter(torch.zeros(3))
    with pytest.raises(ValueError, match="give a key and its value, or key_value_dict"):
        manager.override_config(p)
    with pytest.raises(TypeError, match="override_config: expected parameters, got 'fc1'"):
        manager.override_config("fc1", "lr", 1.0)
    with pytest.raises(TypeError, match="register_parameters: expected parameters, got 3"):
        manager.register_parameters(3)
    with pytest.raises(TypeError, match=r"expected an nn\.Module, got Parameter"):
        manager.register_module_override(p, "weight", {"lr": 1.0})
    with pytest.raises(ValueError, match=r"Net has no parameter 'fc1.wieght', did you mean 'fc1.weight'\?"):
        manager.register_module_override(Net(), "fc1.wieght", {"lr": 1.0})
    with pytest.raises(ValueError, match=r"Net has no parameter 'fc1', did you mean 'fc1\.\*'\?"):
        manager.override_named(Net(), {"fc1": {"lr": 1.0}})
    with pytest.raises(RuntimeError, match=r"call GlobalOptimManager\.get_instance"):
        GlobalOptimManager()


def test_registering_takes_every_form(manager):
    model = Net()
    manager.register_parameters([])
    manager.register_parameters(model)
    manager.register_parameters(model.parameters())
    manager.register_parameters(model.named_parameters())
    manager.register_parameters([{"params": list(model.parameters()), "lr": 0.1}])
    manager.register_parameters(model.fc1.weight)
    assert {registry.parameter_names()[id(p)] for p in model.parameters()} == {
        name for name, _ in model.named_parameters()
    }


def test_an_option_of_another_rule_is_an_error_of_the_optimizer(manager):
    p = nn.Parameter(torch.zeros(3))
    manager.override_config(p, "momentum", 0.9)
    bnb.optim.SGD([p])
    message = r"^override for parameter 0 of group 0, shape \(3,\), by override_config: AdamW has no option 'momentum'"
    with pytest.raises(bnb.OverrideError, match=message):
        AdamW([p])


@pytest.mark.parametrize(
    ("optimizer", "hints", "message"),
    [
        (AdamW, [{"momentum": 0.5}], "plugin('1.*'): AdamW has no option 'momentum'"),
        (AdamW, [{"lr": 0.5}, {"momentum": 0.5}], "override_config: AdamW has no option 'momentum'"),
        (AdamW, [{"momentum": 0.5}, {"lr": 0.5}], "plugin('1.*'): AdamW has no option 'momentum'"),
        (AdamW, [{"betas": (0.1, 0.2, 0.3)}], "plugin('1.*'): betas=(0.1, 0.2, 0.3): expected two numbers"),
        (AdamW, [{"eps": 0.1}, {"lr_follows_schedule": False}], "override_config: lr_follows_schedule=False is about"),
        (bnb.optim.SGD, [{"momentum": 0}, {"nesterov": True}], "plugin('1.*') and override_config: nesterov=True"),
    ],
)
def test_an_error_of_the_optimizer_names_who_gave_the_hint(optimizer, hints, message, manager):
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4, bias=False))
    manager.override_named(model, {"1.*": hints[0]}, source="plugin")
    for config in hints[1:]:
        manager.override_config(model[1].weight, key_value_dict=config)
    with pytest.raises(bnb.OverrideError) as error:
        optimizer(model.parameters(), lr=0.1)
    assert str(error.value).startswith(f"override for 1.weight, shape (4, 4), by {message}")


def test_an_error_of_a_plan_names_the_pattern():
    with pytest.raises(bnb.OverrideError, match=r"^override for bias, by pattern 'b\*': AdamW has no option 'alpha'"):
        bnb.plan(nn.Linear(4, 4), AdamW, overrides={"b*": {"alpha": 0.5}})


def test_a_declared_name_that_no_longer_exists_is_an_error_of_the_optimizer(manager):
    model = Net()
    model.optim_overrides = {"fc9.weight": {"lr": 1.0}}
    manager.register_parameters(model)
    with pytest.raises(bnb.OverrideError, match=r"this Net: Net has no parameter 'fc9.weight', did you mean"):
        AdamW(model.parameters())
    AdamW(Net().parameters())


def test_hints_that_say_nothing_or_reach_nothing_are_errors(manager):
    p = nn.Parameter(torch.zeros(3))
    with pytest.raises(bnb.OverrideError, match="no parameters were given"):
        manager.override_config([], "lr", 0.1)
    with pytest.raises(TypeError, match="got a tensor that is no parameter"):
        manager.override_config(p.data, "lr", 0.1)
    with pytest.raises(bnb.OverrideError, match=r"several options go into key_value_dict"):
        manager.override_config(p, {"lr": 0.1})
    with pytest.raises(TypeError, match="got a Linear; see register_module_override"):
        manager.override_config(nn.Linear(2, 2), "lr", 0.1)
    with pytest.raises(bnb.OverrideError, match="expected a name, a pattern or a module type, got Parameter"):
        manager.register_module_override(nn.Linear(2, 2), p, {"lr": 0.1})
    with pytest.raises(TypeError, match="optim_overrides takes a dict of names and options"):
        bnb.optim_overrides(Net)
    with pytest.raises(bnb.OverrideError, match="are the same option, say one of them"):
        manager.override_config(p, key_value_dict={"skip_zeros": True, "is_sparse": False})
    manager.override_config(p, "lr_follows_schedule", False)
    with pytest.raises(bnb.OverrideError, match=r"lr_follows_schedule=False is about an lr of the parameter's own"):
        AdamW([p])


def test_a_rate_in_a_tensor_is_copied(manager):
    p, rate = nn.Parameter(torch.zeros(3)), torch.tensor(0.5)
    manager.override_config(p, "lr", rate)
    rate.fill_(9.0)
    assert step_size(AdamW([p], weight_decay=0), p) == pytest.approx(0.5, rel=1e-3)


def test_instances_of_a_decorated_class_are_known_from_the_start():
    @bnb.optim_overrides({"weight": {"optim_bits": 32}})
    class Stable(nn.Linear):
        pass

    model = nn.Sequential(Stable(80, 80), nn.Linear(80, 80))
    optimizer = AdamW(model.parameters(), optim_bits=8)
    train(model, optimizer)
    assert bits(optimizer, model[0].weight) == 32 and bits(optimizer, model[1].weight) == 8


def test_a_replaced_parameter_is_freed_at_once(manager):
    old = nn.Parameter(torch.zeros(8))
    manager.override_config(old, "lr", 0.5)
    optimizer = AdamW([old], lr=0.01)
    watched = weakref.ref(old)
    optimizer.param_groups[0]["params"] = [nn.Parameter(torch.zeros(8))]
    del old
    assert watched() is None


def test_a_hint_between_the_last_lookup_and_a_swap_is_not_lost(manager):
    p, q = nn.Parameter(torch.zeros(8)), nn.Parameter(torch.zeros(8))
    optimizer = AdamW([p, q], lr=0.01, weight_decay=0)
    manager.override_config(p, "lr", 0.5)
    new = nn.Parameter(torch.zeros(8))
    optimizer.param_groups[0]["params"] = [new, q]
    manager.override_config(new, "eps", 1e-6)
    assert manager.explain(optimizer)[0].overrides == {"lr": 0.5, "eps": 1e-6}


def test_the_manager_copies_as_itself(manager):
    assert copy.deepcopy(manager) is manager and pickle.loads(pickle.dumps(manager)) is manager


@pytest.mark.parametrize("registered", [True, False])
@pytest.mark.parametrize("keys", [("momentum",), ()])
def test_what_was_said_of_a_parameter_can_be_taken_back(manager, registered, keys):
    net = Net()
    if registered:
        manager.register_parameters(net)
    manager.override_named(net, {"fc1.weight": {"lr": 0.25}})
    optimizer = AdamW(net.named_parameters(), lr=0.1)
    manager.override_config(net.fc1.weight, key_value_dict={"lr": 0.5, "eps": 1e-6})
    train(net, optimizer)
    manager.override_config(net.fc1.weight, "momentum", 0.9)
    with pytest.raises(bnb.OverrideError, match="AdamW has no option 'momentum'"):
        train(net, optimizer)
    manager.forget_config(net.fc1.weight, *keys)
    train(net, optimizer)
    expected = {"lr": 0.5, "eps": 1e-6} if keys else {"lr": 0.25}
    for current in (optimizer, copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))):
        assert manager.explain(current)[0].overrides == expected
    manager.override_config(net.fc1.weight, "eps", 1e-5)
    assert manager.explain(optimizer)["fc1.weight"].overrides == {"lr": expected["lr"], "eps": 1e-5}


def test_what_was_taken_back_does_not_return_with_a_replaced_parameter(manager):
    net = Net()
    manager.register_parameters(net)
    optimizer = AdamW(net.named_parameters(), lr=0.1)
    manager.override_config(net.fc1.weight, "lr", 0.5)

    def replaced():
        net.fc1.weight = nn.Parameter(net.fc1.weight.detach().clone())
        optimizer.param_groups[0]["params"] = list(net.parameters())
        return manager.explain(optimizer)["fc1.weight"].lr

    assert replaced() == 0.5
    manager.forget_config(net.fc1.weight)
    assert manager.explain(optimizer)["fc1.weight"].lr == 0.1
    assert replaced() == 0.1
    manager.override_config(net.fc1.weight, "eps", 1e-5)
    assert manager.explain(optimizer)["fc1.weight"].overrides == {"eps": 1e-5}


def test_taking_back_what_cannot_be_is_an_error(manager):
    layer = nn.Linear(4, 4)
    with pytest.raises(bnb.OverrideError, match="unknown option 'momentun', did you mean 'momentum'"):
        manager.forget_config(layer.weight, "momentun")
    with pytest.raises(bnb.OverrideError, match="forget_config: no parameters were given"):
        manager.forget_config([])
    for say in (manager.forget_config, lambda p: manager.override_config(p, "lr", 0.1)):
        with pytest.raises(TypeError, match="_config: got a tensor that is no parameter: one computed from others"):
            say(layer.weight * 2)
