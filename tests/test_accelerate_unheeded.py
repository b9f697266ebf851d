"""What prepare warns of: optimizers that train, but maybe not as their user thinks."""

import warnings

import pytest
import torch
from accelerate import Accelerator
from torch import nn
from torch.optim.lr_scheduler import OneCycleLR

import torch_bnb as bnb
from accelerate_bnb import BnbAccelerator, BnbDummyOptim, BnbOptimizerPlugin, prepare

INSTEAD = "build it with plugin.create_optimizer(model), or give a BnbDummyOptim() in its place"


class Model(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Embedding(100, 64), nn.Linear(64, 100))


def said(optimizer, **how):
    """The warnings of preparing an optimizer that a function makes of a model."""
    model = Model()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        prepare(Accelerator(cpu=True), model, optimizer(model), **how)
    assert all(warning.filename == __file__ for warning in caught)
    return [str(warning.message) for warning in caught]


def own(cls, *args, **options):
    return lambda model: getattr(bnb.optim, cls)(model.parameters(), *args, **options)


@pytest.mark.parametrize(
    ("optimizer", "plugin", "message"),
    [
        (
            own("AdamW8bit"),
            {"optimizer": "lion8bit"},
            "AdamW8bit trains as it was built, not what the plugin says (Lion8bit)",
        ),
        (
            own("AdamW8bit", lr=1e-3),
            {"optimizer": "lion8bit", "lr": 0.01},
            "AdamW8bit with lr=0.001 trains as it was built, not what the plugin says (Lion8bit, lr=0.01)",
        ),
        (
            own("SGD", lr=0.5, momentum=0.9, optim_bits=8),
            {"betas": [0.8, 0.9], "weight_decay": 0.1},
            "SGD with weight_decay=0.0 trains as it was built, "
            "not what the plugin says (betas=(0.8, 0.9), weight_decay=0.1)",
        ),
        (
            lambda model: bnb.optim.AdamW8bit(
                [{"params": model[0].parameters(), "lr": 0.1}, {"params": model[1].parameters()}]
            ),
            {"lr": 0.01},
            "AdamW8bit with lr=0.1 and 0.001 trains as it was built, not what the plugin says (lr=0.01)",
        ),
        (
            own("AdamW8bit"),
            {"optimizer": "adamw32bit"},
            "AdamW8bit with optim_bits=8 trains as it was built, not what the plugin says (AdamW32bit, optim_bits=32)",
        ),
    ],
)
def test_a_built_optimizer_beside_a_plugin_that_says_something_else(optimizer, plugin, message):
    assert said(optimizer, plugin=BnbOptimizerPlugin(**plugin)) == [f"prepare: {message}; {INSTEAD}"]


def test_the_environment_says_it_too_and_other_plugins_optimizers_are_as_built(monkeypatch):
    lion = BnbOptimizerPlugin(optimizer="lion8bit", lr=0.1)
    (message,) = said(lion.create_optimizer, plugin=BnbOptimizerPlugin(lr=0.2))
    assert message.startswith("prepare: Lion8bit with lr=0.1 trains as it was built, not what the plugin says (lr=0.2)")
    monkeypatch.setenv("ACCELERATE_BNB_OPTIMIZER", "lion8bit")
    (message,) = said(own("AdamW8bit"))
    assert message.startswith("prepare: AdamW8bit trains as it was built, not what the plugin says (Lion8bit)")
    adamw = BnbOptimizerPlugin(optimizer="adamw8bit", lr=0.1)
    assert said(adamw.create_optimizer) == []


@pytest.mark.parametrize(
    ("optimizer", "plugin"),
    [
        (own("AdamW8bit", lr=0.1, weight_decay=0.0), {"lr": 0.1, "weight_decay": 0.0, "optimizer": "adamw"}),
        (own("AdamW", optim_bits=8), {"optimizer": "adamw8bit", "overrides": {"*": {"lr": 0.1}}}),
        (own("Lion8bit"), {"overrides": {"*": {"lr": 0.1}}}),
        (
            lambda model: bnb.optim.AdamW8bit(
                [{"params": [p], "weight_decay": p.ndim / 10} for p in model.parameters()]
            ),
            {"weight_decay": 0.1},
        ),
        (own("AdamW32bit"), {}),
        (own("AdamW"), {"optim_bits": 32}),
        (own("PagedLion8bit"), {"optimizer": "lion8bit", "paged": True}),
    ],
)
def test_what_is_as_the_plugin_says_is_no_warning(optimizer, plugin):
    assert said(optimizer, plugin=BnbOptimizerPlugin(**plugin)) == []


@pytest.mark.parametrize("name", ["adam", "adamw"])
@pytest.mark.parametrize("give", [lambda it: (BnbAccelerator(cpu=True, bnb_plugin=it), None), lambda it: (None, it)])
def test_the_default_by_its_name_is_said_as_any_other(name, give):
    accelerator, plugin = give(BnbOptimizerPlugin(optimizer=name))
    model, accelerator = Model(), accelerator or Accelerator(cpu=True)
    with pytest.warns(UserWarning, match=r"Lion8bit trains as it was built, not what the plugin says \(Adam.?\)"):
        prepare(accelerator, model, bnb.optim.Lion8bit(model.parameters()), plugin=plugin)
    with pytest.warns(UserWarning, match="SGD is none of torch_bnb and trains as it is, not what the plugin says"):
        prepare(accelerator, model, torch.optim.SGD(model.parameters(), lr=0.1), plugin=plugin)


def test_settings_that_need_the_plugins_optimizer_are_no_error_beside_it(monkeypatch):
    monkeypatch.setenv("ACCELERATE_BNB_BETAS", "0.9,0.99,0.999")
    plugin, model = BnbOptimizerPlugin(optimizer="ademamix8bit"), Model()
    accelerator = BnbAccelerator(cpu=True, bnb_plugin=plugin)
    assert accelerator.prepare(model, BnbDummyOptim())[1].optimizer.rule == "ademamix"


def test_a_scheduler_that_has_begun_is_no_other_rate():
    def scheduled(model):
        optimizer = bnb.optim.AdamW8bit(model.parameters(), lr=0.1, betas=(0.8, 0.9))
        OneCycleLR(optimizer, max_lr=0.1, total_steps=10)
        return optimizer

    assert said(scheduled, plugin=BnbOptimizerPlugin(lr=0.1, betas=(0.8, 0.9))) == []


def test_what_a_plugin_made_is_as_it_says_whatever_options_it_got():
    plugin = BnbOptimizerPlugin(optimizer="adamw", lr=0.1)

    def made(model):
        return plugin.create_optimizer(model, lr=0.2, optim_bits=32)

    assert said(made, plugin=plugin) == said(made) == said(lambda _: BnbDummyOptim(lr=0.3, optim_bits=32)) == []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = Model()
        BnbAccelerator(cpu=True, bnb_plugin=plugin).prepare(model, made(model))


def test_optimizers_of_two_plugins_beside_each_other_are_as_they_say():
    first = BnbOptimizerPlugin(optimizer="lion8bit", lr=0.1, embeddings_32bit=False)
    second = BnbOptimizerPlugin(optimizer="adamw8bit", lr=0.2)
    model = Model()
    optimizers = [
        first.create_optimizer(model, model[0].parameters()),
        second.create_optimizer(model, model[1].parameters()),
    ]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        _, *prepared = prepare(Accelerator(cpu=True), model, *optimizers, plugin=second)
    assert [str(warning.message) for warning in caught] == []
    assert [one.optimizer for one in prepared] == optimizers


def test_a_warning_names_the_users_line():
    accelerator, model = BnbAccelerator(cpu=True, bnb_plugin=BnbOptimizerPlugin(lr=0.1)), Model()
    with pytest.warns(UserWarning) as caught:
        accelerator.prepare(model, own("AdamW")(model))
    assert [warning.filename for warning in caught] == [__file__, __file__]


def test_state_that_could_be_in_8_bits_and_is_not():
    name = "prepare: all state of AdamW stays in 32 bits, 100.78 KiB"
    assert said(own("AdamW")) == [f"{name}; set optim_bits=8, or build AdamW32bit if that is meant"]
    plugin = BnbOptimizerPlugin(overrides={"*.weight": {"optim_bits": 32}})
    assert said(plugin.create_optimizer) == [f"{name}; hints keep it there"]
    small = BnbOptimizerPlugin(min_8bit_size=10**6)
    assert said(small.create_optimizer) == said(own("SGD", lr=0.1)) == []
    assert said(lambda model: torch.optim.SGD(model.parameters(), lr=0.1)) == []
