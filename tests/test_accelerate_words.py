"""What plugins say of a model one after the other, or side by side, and what holds."""

import gc

import pytest
import torch
from accelerate import Accelerator
from torch import nn

import torch_bnb as bnb
from accelerate_bnb import BnbAccelerator, BnbDummyOptim, BnbOptimizerPlugin, prepare

FIRST = BnbOptimizerPlugin(overrides={"head.*": {"optim_bits": 32, "lr": 1e-5}, "body.*": {"eps": 1e-6}})
SECOND = BnbOptimizerPlugin(overrides={"head.*": {"eps": 1e-4}})


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Linear(64, 64), nn.Linear(64, 64)

    def forward(self, x):
        return self.head(self.body(x))


def holds(optimizer):
    """By name, what hints say of a weight."""
    rows = bnb.optim.GlobalOptimManager.get_instance().explain(optimizer)
    return {row.name.split(".")[-2]: row.overrides for row in rows if row.name.endswith("weight")}


@pytest.fixture
def accelerator():
    return Accelerator(cpu=True)


def test_patterns_hold_until_another_plugin_makes_the_optimizer(accelerator):
    model = Model()
    before = prepare(accelerator, model, FIRST.create_optimizer(model), plugin=FIRST)
    assert holds(before[1]) == {"body": {"eps": 1e-6}, "head": {"optim_bits": 32, "lr": 1e-5}}
    assert holds(SECOND.create_optimizer(model)) == {"body": {}, "head": {"eps": 1e-4}}
    assert holds(BnbOptimizerPlugin().create_optimizer(model)) == {"body": {}, "head": {}}


def test_an_option_that_only_the_plugin_before_has_is_no_error():
    model = Model()
    sgd = BnbOptimizerPlugin(optimizer="sgd", lr=0.1, overrides={"head.*": {"momentum": 0.9}})
    assert holds(sgd.create_optimizer(model))["head"] == {"momentum": 0.9}
    assert holds(BnbOptimizerPlugin().create_optimizer(model))["head"] == {}


@pytest.mark.parametrize("wrapped", [nn.DataParallel, lambda model: torch.compile(model, backend="eager")])
def test_a_model_in_a_wrapper_is_the_same_model(wrapped, accelerator):
    model = Model()
    FIRST.create_optimizer(model)
    assert holds(SECOND.create_optimizer(wrapped(model))) == {"body": {}, "head": {"eps": 1e-4}}


def test_prepare_with_a_plugin_takes_back_what_one_said_of_an_optimizer_before(accelerator):
    model = Model()
    prepare(accelerator, model, bnb.optim.AdamW8bit(model.parameters()), plugin=FIRST)
    own = prepare(accelerator, model, bnb.optim.AdamW8bit(model.parameters()), plugin=SECOND)[1]
    assert holds(own) == {"body": {}, "head": {"eps": 1e-4}}
    made = prepare(accelerator, model, BnbDummyOptim(), plugin=FIRST)[1]
    assert holds(made) == {"body": {"eps": 1e-6}, "head": {"optim_bits": 32, "lr": 1e-5}}
    own = prepare(accelerator, model, bnb.optim.AdamW8bit(model.parameters()), plugin=SECOND)[1]
    assert holds(own) == {"body": {}, "head": {"eps": 1e-4}}


@pytest.mark.parametrize("make", [lambda: Accelerator(cpu=True), lambda: BnbAccelerator(cpu=True)])
def test_prepare_without_a_plugin_takes_nothing_back(make, monkeypatch):
    monkeypatch.setenv("ACCELERATE_BNB_OVERRIDES", '{"head.*": {"eps": 1.0}}')
    accelerator, model = make(), Model()
    take = accelerator.prepare if isinstance(accelerator, BnbAccelerator) else lambda *o: prepare(accelerator, *o)
    optimizer = FIRST.create_optimizer(model)
    take(model)
    assert holds(take(model, optimizer)[1]) == {"body": {"eps": 1e-6}, "head": {"optim_bits": 32, "lr": 1e-5}}

    model = Model()
    FIRST.register(model)
    own = take(model, bnb.optim.AdamW(model.parameters()))[1]
    assert holds(own) == {"body": {"eps": 1e-6}, "head": {"optim_bits": 32, "lr": 1e-5, "eps": 1.0}}


@pytest.mark.parametrize("options", [{}, {"optimizer": "adamw"}, {"optimizer": "adamw", "lr": 1e-3}], ids=str)
@pytest.mark.parametrize("of_the_accelerator", [True, False])
def test_a_plugin_that_was_given_takes_back_whatever_it_says(of_the_accelerator, options):
    model, plugin = Model(), BnbOptimizerPlugin(**options)
    FIRST.create_optimizer(model)
    if of_the_accelerator:
        accelerator = BnbAccelerator(cpu=True, bnb_plugin=plugin)
        optimizer = accelerator.prepare(model, bnb.optim.AdamW8bit(model.parameters()))[1]
        assert accelerator.bnb_plugin is plugin
    else:
        optimizer = prepare(Accelerator(cpu=True), model, bnb.optim.AdamW8bit(model.parameters()), plugin=plugin)[1]
    assert holds(optimizer) == {"body": {}, "head": {}}


def test_one_plugin_says_its_patterns_once_however_often_it_registers(accelerator, manager):
    model = Model()
    optimizer = FIRST.create_optimizer(model)
    manager.override_named(model, {"head.*": {"lr": 0.5}})
    optimizer = prepare(accelerator, model, optimizer, plugin=FIRST)[1]
    FIRST.register(model)
    assert holds(optimizer)["head"] == {"optim_bits": 32, "lr": 0.5}


def test_plugins_that_train_two_parts_of_a_model_both_hold(accelerator):
    model = Model()
    body = FIRST.create_optimizer(model, model.body.parameters())
    head = SECOND.create_optimizer(model, [{"params": model.head.parameters()}])
    both = {"body": {"eps": 1e-6}, "head": {"optim_bits": 32, "lr": 1e-5, "eps": 1e-4}}
    for plugin in (FIRST, SECOND, None):
        prepare(accelerator, model, body, head, plugin=plugin)
        assert holds(body) | holds(head) == both
    prepare(accelerator, model, plugin=FIRST)
    assert holds(body) | holds(head) == both


def test_a_part_that_gets_another_plugins_optimizer_loses_what_its_own_said():
    model = Model()
    body = FIRST.create_optimizer(model, model.body.named_parameters())
    head = SECOND.create_optimizer(model, [{"params": model.head.parameters()}])
    again = BnbOptimizerPlugin(overrides={"body.*": {"weight_decay": 0.5}})
    body = again.create_optimizer(model, model.body.parameters())
    assert holds(body) | holds(head) == {"body": {"weight_decay": 0.5}, "head": {"eps": 1e-4}}


def test_an_optimizer_that_cannot_be_made_takes_nothing_back():
    net = Model()
    plugin = BnbOptimizerPlugin(optimizer="adamw8bit", overrides={"head.*": {"optim_bits": 32}})
    optimizer = plugin.create_optimizer(net)
    before = [place.bits for place in optimizer.configurations()]
    with pytest.raises(TypeError, match="unexpected option 'nonsense'"):
        BnbOptimizerPlugin(optimizer="sgd8bit").create_optimizer(net, nonsense=1)
    assert [place.bits for place in optimizer.configurations()] == before


def test_the_accelerators_own_plugin_speaks_where_prepare_is_given_none():
    prepared = []

    class Counting(BnbAccelerator):
        def prepare(self, *objects, **options):
            prepared.append(len(objects))
            return super().prepare(*objects, **options)

    accelerator = Counting(cpu=True, bnb_plugin=BnbOptimizerPlugin(optimizer="lion8bit"))
    _, optimizer = prepare(accelerator, Model(), BnbDummyOptim())
    assert optimizer.optimizer.rule == "lion" and prepared == [2]


def test_a_plugin_whose_optimizer_is_gone_is_an_earlier_one():
    model = Model()
    FIRST.create_optimizer(model, model.body.parameters())
    gc.collect()
    head = SECOND.create_optimizer(model, model.head.parameters())
    assert holds(head) == {"head": {"eps": 1e-4}}
