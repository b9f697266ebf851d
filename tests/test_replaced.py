"""Hints that outlive the Parameter object they were given for."""

import copy
import gc
import io
import pickle
import re
import subprocess
import sys
import weakref

import pytest
import torch
from processes import run
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.utils.prune import l1_unstructured

import torch_bnb as bnb
from torch_bnb.optim import AdamW, GlobalOptimManager


@bnb.optim_overrides({"first.bias": {"lr": 0.1}})
class Net(nn.Module):
    """Hints of every kind: declared above, by module and by pattern; the test adds one on the Parameter."""

    def __init__(self):
        super().__init__()
        manager = GlobalOptimManager.get_instance()
        self.first, self.second, self.third = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)
        manager.register_module_override(self.second, "weight", {"lr": 0.2})
        manager.register_module_override(self, "second.bias", {"lr": 0.3})
        manager.override_named(self, {"third.w*": {"lr": 0.4}})

    def forward(self, x):
        return self.third(self.second(self.first(x)))


EXPECTED = {"first.weight": 0.5, "first.bias": 0.1, "second.weight": 0.2, "second.bias": 0.3, "third.weight": 0.4}
EXPECTED["third.bias"] = 0.01


def known_net():
    net = Net()
    manager = GlobalOptimManager.get_instance()
    manager.register_parameters(net)
    manager.override_config(net.first.weight, "lr", 0.5)
    return net


def rates(model, optimizer=None):
    """By name, the rate in force, of an optimizer built now or of an older one."""
    optimizer = optimizer or AdamW(model.parameters(), lr=0.01)
    return {row.name: row.lr for row in GlobalOptimManager.get_instance().explain(optimizer)}


def to_empty(model):
    return model.to("meta").to_empty(device="cpu")


def assign(model):
    model.load_state_dict({k: v.clone() for k, v in model.state_dict().items()}, assign=True)
    return model


def swapping_to(model):
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        return model.to(torch.float64)
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)


def overwriting_to(model):
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    try:
        return model.to(torch.float64)
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(False)


REPLACE = [copy.deepcopy, to_empty, assign, swapping_to, overwriting_to]


@pytest.mark.parametrize("replace", REPLACE, ids=lambda f: f.__name__)
def test_hints_hold_for_the_parameters_that_take_the_places(replace):
    net = known_net()
    assert rates(net) == EXPECTED
    # swapping_to keeps the objects, exchanges all that is in them, attributes included, and wants no other references.
    before = [] if replace is swapping_to else list(net.parameters())
    replaced = replace(net)
    assert not any(old is new for old in before for new in replaced.parameters())
    assert rates(replaced) == EXPECTED
    GlobalOptimManager.get_instance().override_config(replaced.first.weight, "lr", 0.6)
    assert rates(replaced)["first.weight"] == 0.6


def test_a_copy_is_on_its_own():
    net = known_net()
    other = copy.deepcopy(net)
    manager = GlobalOptimManager.get_instance()
    manager.override_config(other.first.weight, "lr", 0.6)
    manager.register_module_override(other.second, "weight", {"lr": 0.7})
    assert rates(net) == EXPECTED
    watched = weakref.ref(other)
    del other
    gc.collect()
    assert watched() is None


def test_a_layer_copied_many_times_takes_its_hint_along():
    layer = nn.TransformerEncoderLayer(16, 2, 32)
    GlobalOptimManager.get_instance().register_module_override(layer, "linear1.weight", {"lr": 0.5})
    encoder = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)
    rows = GlobalOptimManager.get_instance().explain(AdamW(encoder.named_parameters(), lr=0.01))
    assert {row.name for row in rows if row.lr == 0.5} == {f"layers.{i}.linear1.weight" for i in range(3)}


def test_a_module_pickles_as_plain_data_and_knows_its_hints_when_registered_again():
    net = known_net()
    stored = pickle.dumps(net)
    assert b"torch_bnb." not in stored, "no class of ours, so that it loads where torch_bnb is not installed"
    loaded = pickle.loads(stored)
    GlobalOptimManager.get_instance().register_parameters(loaded)
    assert rates(loaded) == EXPECTED


def test_parameters_with_hints_load_with_weights_only():
    net = known_net()
    file = io.BytesIO()
    torch.save([net.first.weight, net.state_dict(keep_vars=True)], file)
    file.seek(0)
    weight, _ = torch.load(file, weights_only=True)
    assert torch.equal(weight, net.first.weight)


OTHER_PROCESS = """
import sys, torch, torch_bnb as bnb
manager = bnb.optim.GlobalOptimManager.get_instance()
for _ in range(5):
    manager.initialize()
net = torch.nn.Linear(64, 64)
for _ in range(20):
    manager.override_config(net.weight, "lr_scale", 0.5)
torch.save(net, sys.argv[1])
"""


@pytest.mark.parametrize("forgets", [0, 9])
def test_hints_on_parameters_from_another_process_are_as_if_said_here(forgets, tmp_path):
    subprocess.run([sys.executable, "-c", OTHER_PROCESS, str(tmp_path / "net.pt")], check=True)
    manager = GlobalOptimManager.get_instance()
    for _ in range(forgets):
        manager.initialize()
    net = torch.load(tmp_path / "net.pt", weights_only=False)
    optimizer = AdamW(bnb.param_groups(net, lr=0.01), lr=0.01)
    assert manager.explain(optimizer)["weight"].lr == 0.005
    assert manager.explain(AdamW(net.named_parameters(), lr=0.01))["weight"].lr == 0.005
    manager.initialize()
    assert manager.explain(AdamW(net.named_parameters(), lr=0.01))["weight"].lr == 0.01


def test_a_hint_outlives_its_parameter_beside_an_unpickled_twin():
    net = known_net()
    rates(net)
    twin = pickle.loads(pickle.dumps(net))
    GlobalOptimManager.get_instance().register_parameters(twin)
    assert rates(assign(net)) == EXPECTED
    assert rates(assign(twin)) == EXPECTED


def test_a_framework_that_swaps_the_groups_parameters_keeps_every_hint():
    net = known_net()
    unknown = nn.Linear(4, 4)
    GlobalOptimManager.get_instance().override_config(unknown.weight, "lr", 0.9)
    optimizer = AdamW([*net.parameters(), unknown.weight], lr=0.01)
    assign(net)
    optimizer.param_groups[0]["params"] = [*net.parameters(), nn.Parameter(torch.zeros(4, 4))]
    assert rates(net, optimizer) == {**EXPECTED, "group 0, parameter 6": 0.9}


def test_a_hint_on_a_parameter_that_has_come_since_the_last_hint_outlives_it_too():
    net = known_net()
    manager = GlobalOptimManager.get_instance()
    assign(net)
    manager.override_config(net.third.bias, "lr", 0.7)
    swapping_to(net)
    assert rates(net) == {**EXPECTED, "third.bias": 0.7}


def test_parametrized_parameters_keep_their_names():
    net = known_net()
    torch.nn.utils.parametrizations.weight_norm(net.second)
    torch.nn.utils.parametrize.register_parametrization(net.third, "weight", nn.Identity())
    found = rates(net)
    assert found["third.weight"] == 0.4
    assert found["second.weight.original0"] == found["second.weight.original1"] == 0.2  # what was said of the weight
    assert len(found) == len(list(net.parameters())) == 7
    manager = GlobalOptimManager.get_instance()
    manager.override_named(net, {"second.weight.original1": {"lr": 0.25}})
    found = rates(net)
    assert (found["second.weight.original0"], found["second.weight.original1"]) == (0.2, 0.25)


class Adapted(nn.Module):
    """As PEFT's adapters hold the layer in whose place they stand."""

    def __init__(self, layer):
        super().__init__()
        self.base_layer = layer
        self.lora_a = nn.ModuleDict({"default": nn.Linear(8, 2, bias=False)})


class Kept(nn.Module):
    """As PEFT holds a layer that is trained as a whole, beside the original."""

    def __init__(self, layer):
        super().__init__()
        self.original_module = layer
        self.modules_to_save = nn.ModuleDict({"default": copy.deepcopy(layer)})


def prune(net):
    for layer in (net.first, net.second, net.third):
        l1_unstructured(layer, "weight", amount=0.5)
        l1_unstructured(layer, "bias", amount=0.5)


def spectral_norm(net):
    for layer in (net.first, net.second, net.third):
        torch.nn.utils.spectral_norm(layer)


def weight_norm(net):
    for layer in (net.first, net.second, net.third):
        torch.nn.utils.weight_norm(layer)


def parametrized_weight_norm(net):
    for layer in (net.first, net.second, net.third):
        torch.nn.utils.parametrizations.weight_norm(layer)


def adapt(net):
    net.first, net.second, net.third = map(Adapted, (net.first, net.second, net.third))


def adapt_and_prune(net):
    prune(net)
    adapt(net)


def keep(net):
    net.first, net.second, net.third = map(Kept, (net.first, net.second, net.third))


RENAME = [prune, spectral_norm, weight_norm, parametrized_weight_norm, adapt, adapt_and_prune, keep]
RENAMED = re.compile(r"\.original\d|_(orig|g|v)$|(base_layer|original_module|modules_to_save\.default)\.")


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated")
@pytest.mark.parametrize("rename", RENAME, ids=lambda f: f.__name__)
def test_hints_hold_for_parameters_that_were_renamed(rename):
    net = known_net()
    manager = GlobalOptimManager.get_instance()
    manager.override_named(net, {"third.bias": {"lr": 0.6}, "bias": {"eps": 0.5}})
    optimizer = AdamW(net.parameters(), lr=0.01)
    rename(net)
    optimizer.param_groups[0]["params"] = list(net.parameters())
    found = {**EXPECTED, "third.bias": 0.6}
    for seen in (manager.explain(optimizer), manager.explain(AdamW(net.parameters(), lr=0.01))):
        assert len(seen) == len(list(net.parameters()))
        for row in seen:
            assert row.lr == (0.01 if "lora_a" in row.name else found[RENAMED.sub("", row.name)]), row.name
            assert row.overrides.get("eps") == (0.5 if "bias" in row.name else None)


@pytest.mark.parametrize("rename", [prune, adapt, keep], ids=lambda f: f.__name__)
def test_what_a_class_declares_holds_for_a_renamed_parameter_of_a_new_model(rename):
    net = Net()
    rename(net)
    found = {RENAMED.sub("", name): lr for name, lr in rates(net).items() if "lora_a" not in name}
    assert found == {**EXPECTED, "first.weight": 0.01}


def test_a_parameter_of_an_own_name_is_called_that_only():
    class Gated(nn.Module):
        """Its names look like those of `weight_norm` and of PEFT."""

        def __init__(self):
            super().__init__()
            self.weight_v, self.bias_g, self.bias = nn.Parameter(torch.ones(2)), *map(nn.Parameter, torch.ones(2, 2))
            self.base_layer = nn.Linear(2, 2)
            self.inner = nn.ModuleDict({"base_layer": nn.Linear(2, 2, bias=False)})
            self.inner.register_parameter("weight", nn.Parameter(torch.ones(2)))

    net, manager = Gated(), GlobalOptimManager.get_instance()
    manager.override_named(net, {"weight": {"lr": 0.5}, "bias": {"lr": 0.25}, "inner.weight": {"eps": 0.5}})
    rows = manager.explain(net)
    assert {row.name for row in rows if row.overrides.get("lr") == 0.5} == {
        "base_layer.weight", "inner.base_layer.weight", "inner.weight",
    }  # fmt: skip
    assert {row.name for row in rows if row.overrides.get("lr") == 0.25} == {"bias"}
    assert {row.name for row in rows if "eps" in row.overrides} == {"inner.weight"}
    with pytest.raises(bnb.OverrideError, match="no parameter 'weight'"):
        manager.override_named(nn.ParameterDict({"weight_v": torch.ones(2)}), {"weight": {"lr": 0.5}})


def test_names_as_torch_has_them_are_names_too():
    net = Net()
    torch.nn.utils.parametrizations.weight_norm(net.second)
    compiled = torch.compile(net)
    manager = GlobalOptimManager.get_instance()
    for number, (name, _) in enumerate(compiled.named_parameters(), 1):
        manager.override_named(compiled, {name: {"lr": number / 16}})
    assert sorted(rates(compiled).values()) == [number / 16 for number in range(1, 8)]


class Fabric(nn.Module):
    """As Lightning Fabric wraps a module: twice in its own wrapper."""

    def __init__(self, original):
        super().__init__()
        self._forward_module = self._original_module = original


def in_wrappers(rank):
    manager = GlobalOptimManager.get_instance()
    said = {}
    for wrap in (lambda parallel: parallel, torch.compile, Fabric):
        net = Net()
        wrapped = wrap(nn.parallel.DistributedDataParallel(net))
        as_torch_has_it = next(name for name, p in wrapped.named_parameters() if p is net.first.weight)
        manager.override_named(wrapped, {"third.*": {"lr": 0.5}, as_torch_has_it: {"lr": 0.75}})
        said[type(wrapped).__name__] = rates(net)
        assert {row.name for row in manager.explain(wrapped)} == {name for name, _ in net.named_parameters()}
    return said


def test_patterns_need_no_prefix_of_distributed_wrappers(tmp_path):
    (said,) = run(in_wrappers, 1, tmp_path)
    assert len(said) == 3
    for found in said.values():
        assert found == {**EXPECTED, "third.weight": 0.5, "third.bias": 0.5, "first.weight": 0.75}


def test_compiled_submodules_keep_their_names():
    net = known_net()
    net.second, net.third = torch.compile(net.second), torch.compile(net.third)
    assert rates(net) == EXPECTED
    assert rates(torch.compile(net)) == EXPECTED


def sharded(rank, when):
    net = known_net() if when != "hints last" else None
    if when == "optimizer first":  # as Accelerate does: the groups get the sharded parameters afterwards
        optimizer = AdamW(net.parameters(), lr=0.01)
        fully_shard(net)
        optimizer.param_groups[0]["params"] = list(net.parameters())
    else:
        if when == "hints last":
            net = Net()
            GlobalOptimManager.get_instance().register_parameters(net)
            fully_shard(net)
            GlobalOptimManager.get_instance().override_config(net.first.weight, "lr", 0.5)
        else:
            fully_shard(net)
        net.to(torch.bfloat16)
        net.to(torch.float32)
        optimizer = AdamW(net.parameters(), lr=0.01)
    assert all(isinstance(p, DTensor) for p in net.parameters())
    net.to(torch.float64)  # torch refuses this where a parameter has a weak reference
    assert next(net.parameters()).dtype == torch.float64
    return rates(net, optimizer)


@pytest.mark.distributed
@pytest.mark.parametrize("when", ["hints first", "hints last", "optimizer first"])
def test_hints_hold_after_fully_shard(when, tmp_path):
    assert run(sharded, 2, tmp_path, when) == [EXPECTED, EXPECTED]


def sharded_from_meta(rank):
    with torch.device("meta"):
        net = known_net()
    fully_shard(net)
    net.to_empty(device="cpu")
    return rates(net)


@pytest.mark.distributed
def test_hints_hold_from_meta_to_sharded_to_real(tmp_path):
    assert run(sharded_from_meta, 2, tmp_path) == [EXPECTED, EXPECTED]


def replaced_by_another_shape(rank):
    net = nn.Linear(8, 8)
    optimizer = AdamW(net.parameters())
    net.weight.grad = torch.ones_like(net.weight)
    optimizer.step()
    other = nn.Linear(16, 8)
    fully_shard(other)
    optimizer.param_groups[0]["params"] = list(other.parameters())
    said = []
    for _ in range(2):  # the state is not given up because it was said once
        try:
            optimizer.step()
        except ValueError as error:
            said.append(str(error))
    return said, len(optimizer.state)


@pytest.mark.distributed
def test_a_shard_of_another_shape_is_an_error_as_long_as_it_is_there(tmp_path):
    message = "parameter 0 of group 0, shape (8, 8), has state and was replaced by one of shape (8, 16)"
    assert run(replaced_by_another_shape, 2, tmp_path) == [([message] * 2, 1)] * 2
