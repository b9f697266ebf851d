"""Hints given to the callback, the mixin and the decorator, from the argument to the parameter."""

import warnings
from functools import partial

import bitsandbytes
import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import (
    BaseFinetuning,
    BatchSizeFinder,
    LearningRateFinder,
    StochasticWeightAveraging,
    WeightAveraging,
)
from lightning.pytorch.tuner import Tuner
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lit import QUIET, Bare, Model, bits, data, fit, same_weights, seeded
from torch import nn
from torch.utils.data import DataLoader

import torch_bnb as bnb
from lightning_bnb import EightBitOptimizer, EightBitOptimizerMixin, eight_bit_optimizer, optim_overrides
from torch_bnb.overrides import registry

pytestmark = pytest.mark.filterwarnings("ignore:.*does not have many workers", "ignore:.*LeafSpec")

HEAD_32 = {"head.weight": {"optim_bits": 32}}


def held(trainer, manager, index=0):
    """By name, what every parameter of the optimizer has of its own."""
    return {row.name: row.overrides for row in manager.explain(trainer.optimizers[index]) if row.overrides}


@pytest.mark.parametrize(
    "pattern", ["head.weight", "h*.weight", "*.weight", "re:^head", "weight", nn.Linear], ids=lambda p: str(p)
)
def test_a_pattern_of_any_kind_reaches_the_head(pattern):
    module = Model()
    trainer = fit(module, EightBitOptimizer(overrides={pattern: {"optim_bits": 32}}))
    assert bits(trainer, module.head.weight) == 32


def test_patterns_are_stronger_than_modules_and_weaker_than_override_config(manager):
    @optim_overrides({"head.weight": {"lr": 0.1}, "head.bias": {"lr": 0.1}, "embed.weight": {"lr": 0.1}})
    class Hinted(Model):
        pass

    module = Hinted()
    manager.override_config(module.head.bias, "lr", 0.3)
    trainer = fit(module, EightBitOptimizer(overrides={"head.*": {"lr": 0.2}}))
    rows = manager.explain(trainer.optimizers[0])
    assert {row.name: row.lr for row in rows} == {"embed.weight": 0.1, "head.weight": 0.2, "head.bias": 0.3}
    assert rows["head.weight"].winners["lr"] == "EightBitOptimizer('head.*')"
    assert rows["head.weight"].losers["lr"] == ["optim_overrides of Hinted"]


def test_of_two_patterns_the_later_wins(manager):
    trainer = fit(Model(), EightBitOptimizer(overrides={"head.*": {"lr": 0.1}, "*.weight": {"lr": 0.2}}))
    assert held(trainer, manager)["head.weight"] == {"lr": 0.2}
    assert held(trainer, manager)["head.bias"] == {"lr": 0.1}


def test_a_pattern_that_fits_nothing_is_a_misconfiguration_or_where_asked_a_warning():
    wrong = {"haed.weight": {"optim_bits": 32}}
    message = r"^EightBitOptimizer\('haed.weight'\): Model has no parameter 'haed.weight', did you mean 'head.weight'\?"
    module = Model()
    with pytest.raises(MisconfigurationException, match=message):
        fit(module, EightBitOptimizer(overrides=wrong))
    assert "configure_optimizers" not in vars(module)
    with pytest.warns(UserWarning, match=message):
        fit(module, EightBitOptimizer(overrides=wrong, strict=False))


def test_a_pattern_that_fits_frozen_parameters_only_is_a_warning():
    class HalfFrozen(Model):
        def configure_optimizers(self):
            return torch.optim.AdamW(p for p in self.parameters() if p.requires_grad)

    module = HalfFrozen()
    module.embed.requires_grad_(False)
    patterns = {"embed.*": {"optim_bits": 8}, "*.weight": {"weight_decay": 0.1}, "head.*": {"lr": 0.1}}
    with pytest.warns(UserWarning, match="which no optimizer has") as said:
        fit(module, EightBitOptimizer(overrides=patterns))
    idle = [str(one.message) for one in said if "which no optimizer has" in str(one.message)]
    assert idle == [
        "EightBitOptimizer('embed.*') fits only embed.weight, which no optimizer has: frozen, or left out of it; it "
        "will hold once one has been given them"
    ]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            {"head.*": {"optim_bit": 32}},
            r"overrides\['head.\*'\]: unknown option 'optim_bit', did you mean 'optim_bits'",
        ),
        ({"head.*": {"optim_bits": 4}}, r"overrides\['head.\*'\]: optim_bits=4: expected 8 or 32"),
        ({"re:(": {"lr": 1.0}}, "no regular expression"),
        ({3: {"lr": 1.0}}, "expected a name, a pattern or a module type, got int"),
        ("head.*", "expected a dict of names and options, got 'head"),
    ],
)
def test_an_impossible_override_is_refused_where_it_is_written(overrides, message):
    with pytest.raises(MisconfigurationException, match=message):
        EightBitOptimizer(overrides=overrides)


def test_an_option_that_the_rule_lacks_is_a_misconfiguration():
    with pytest.raises(MisconfigurationException, match=r"AdamW has no option 'momentum'"):
        fit(Model(), EightBitOptimizer(overrides={"head.*": {"momentum": 0.5}}))


def test_an_optimizer_that_is_no_function_is_refused():
    with pytest.raises(MisconfigurationException, match="optimizer='AdamW8bit': expected a function"):
        EightBitOptimizer(optimizer="AdamW8bit")
    with pytest.raises(MisconfigurationException, match="optimizer=an instance of SGD: expected a function"):
        EightBitOptimizer(optimizer=torch.optim.SGD(Model().parameters()))


def test_patterns_find_what_configure_model_makes():
    class Lazy(Model):
        def __init__(self):
            pl.LightningModule.__init__(self)

        def configure_model(self):
            if not hasattr(self, "head"):
                self.embed, self.head = nn.Embedding(100, 64), nn.Linear(64, 100)

    module = Lazy()
    trainer = fit(module, EightBitOptimizer(overrides=HEAD_32))
    assert bits(trainer, module.head.weight) == 32


def unlogged(self, batch, _):
    """torch.compile cannot trace ``self.log`` everywhere."""
    return nn.functional.cross_entropy(self.head(self.embed(batch)), batch)


def test_patterns_reach_compiled_modules():
    class Model(Bare):
        training_step = unlogged

        def configure_optimizers(self):
            return torch.optim.AdamW(self.parameters())

    module = Model()
    module.head = torch.compile(module.head, backend="eager")
    trainer = fit(module, EightBitOptimizer(overrides=HEAD_32))
    assert bits(trainer, module.head.weight) == 32
    module = Model()
    trainer = fit(torch.compile(module, backend="eager"), EightBitOptimizer(overrides=HEAD_32))
    assert bits(trainer, module.head.weight) == 32


def test_a_second_fit_has_its_own_patterns(manager):
    module = Model()
    trainer = fit(module, EightBitOptimizer(overrides={"head.weight": {"lr": 0.1}}))
    assert held(trainer, manager)["head.weight"] == {"lr": 0.1}
    trainer = fit(module, EightBitOptimizer(overrides={"head.bias": {"lr": 0.2}}))
    assert "head.weight" not in held(trainer, manager) and held(trainer, manager)["head.bias"] == {"lr": 0.2}


def test_two_optimizers_have_each_their_own(manager):
    class Two(Bare):
        automatic_optimization = False

        def training_step(self, batch, _):
            loss = nn.functional.cross_entropy(self.head(self.embed(batch)), batch)
            for optimizer in self.optimizers():
                optimizer.zero_grad()
            self.manual_backward(loss)
            for optimizer in self.optimizers():
                optimizer.step()

        def configure_optimizers(self):
            return [
                torch.optim.SGD(self.embed.parameters(), lr=0.1, momentum=0.9),
                torch.optim.Adam(self.head.parameters(), lr=0.1),
            ]

    overrides = {"head.*": {"betas": (0.5, 0.9)}, "embed.*": {"momentum": 0.5, "optim_bits": 8}}
    module = Two()
    trainer = fit(module, EightBitOptimizer(overrides=overrides))
    assert held(trainer, manager, 0) == {"embed.weight": {"momentum": 0.5, "optim_bits": 8}}
    assert held(trainer, manager, 1)["head.bias"] == {"betas": (0.5, 0.9)}
    assert "momentum_buffer_codes" in trainer.optimizers[0].state[module.embed.weight]
    assert bits(trainer, module.head.weight, 1) == 8


@pytest.mark.parametrize("what", ["validate", "test", "predict"])
def test_what_does_not_train_changes_nothing(what):
    class Tested(Model):
        test_step = Model.validation_step

        def predict_step(self, batch, _):
            return self.head(self.embed(batch))

    module = Tested()
    trainer = pl.Trainer(accelerator="cpu", callbacks=[EightBitOptimizer(overrides={"nothing": {"lr": 1.0}})], **QUIET)
    getattr(trainer, what)(module, data())
    assert "configure_optimizers" not in vars(module) and registry.parameter_names() == {}


# Lightning's own callbacks and its tuner ------------------------------------------------------------------------------


def test_the_tuner_searches_with_the_optimizer_that_will_train(tmp_path):
    class Tuned(Model):
        def __init__(self):
            super().__init__()
            self.lr, self.batch_size, self.seen = 1e-3, 2, []

        def configure_optimizers(self):
            return torch.optim.AdamW(self.parameters(), lr=self.lr)

        def train_dataloader(self):
            return DataLoader(torch.arange(400) % 100, batch_size=self.batch_size)

        val_dataloader = train_dataloader

        def on_train_batch_start(self, *_):
            self.seen.append(type(self.trainer.optimizers[0]))

    module, callback = Tuned(), EightBitOptimizer(overrides=HEAD_32)
    before = [p.detach().clone() for p in module.parameters()]
    trainer = pl.Trainer(
        max_epochs=1, accelerator="cpu", callbacks=[callback], default_root_dir=tmp_path, **{**QUIET, "logger": False}
    )
    finder = Tuner(trainer).lr_find(module, num_training=20, update_attr=True)
    assert set(module.seen) == {bnb.optim.AdamW} and len(finder.results["lr"]) > 10
    assert all(torch.equal(p, q) for p, q in zip(module.parameters(), before, strict=True))
    assert "configure_optimizers" not in vars(module)
    size = Tuner(trainer).scale_batch_size(module, max_trials=2, steps_per_trial=1, init_val=4)
    assert size >= 8 and set(module.seen) == {bnb.optim.AdamW}
    assert "configure_optimizers" not in vars(module)
    trainer.fit(module)
    assert bits(trainer, module.head.weight) == 32
    assert trainer.optimizers[0].param_groups[0]["lr"] == finder.suggestion()


@pytest.mark.parametrize("by", ["callback", "tuner"])
def test_an_own_rate_moves_with_a_rate_that_is_found_for_a_built_optimizer_only(by, tmp_path, manager):
    class Tuned(Model):
        def __init__(self):
            super().__init__()
            self.lr, self.started = 1e-3, []

        def configure_optimizers(self):
            return torch.optim.AdamW(self.parameters(), lr=self.lr)

        def train_dataloader(self):
            return DataLoader(torch.arange(400) % 100, batch_size=2)

        def on_train_start(self):
            rows = manager.explain(self.trainer.optimizers[0])
            self.started.append((rows["embed.weight"].lr, rows["head.weight"].lr))

    callbacks = [EightBitOptimizer(overrides={"head.weight": {"lr": 1e-4}})]
    if by == "callback":
        callbacks.append(LearningRateFinder(num_training_steps=20, early_stop_threshold=None))
    module = Tuned()
    trainer = pl.Trainer(
        max_steps=30, accelerator="cpu", callbacks=callbacks, default_root_dir=tmp_path, **{**QUIET, "logger": False}
    )
    if by == "tuner":
        Tuner(trainer).lr_find(module, num_training=20, early_stop_threshold=None)
    trainer.fit(module)
    rate, own = module.started[-1]
    assert rate == pytest.approx(module.lr) and rate != 1e-3
    assert own == pytest.approx(1e-4 * (rate / 1e-3 if by == "callback" else 1))


def test_a_module_that_builds_our_optimizer_without_a_callback_registers_itself(manager):
    class Plain(Bare):
        optim_overrides = {"head.weight": {"lr": 0.5}}
        registers = False

        def configure_optimizers(self):
            if self.registers:
                manager.register_parameters(self)
            return bnb.optim.AdamW8bit(self.parameters(), min_8bit_size=0)

    @optim_overrides({"head.weight": {"lr": 0.25}})
    class Decorated(Plain):
        pass

    class Registered(Plain):
        registers = True

    def shown(module):
        return {row.name: (row.bits, row.lr) for row in manager.explain(fit(module).optimizers[0])}

    assert shown(Plain()) == {f"group 0, parameter {i}": (8, 1e-3) for i in range(3)}
    assert shown(Decorated()) == {"embed.weight": (8, 1e-3), "head.weight": (8, 0.25), "head.bias": (8, 1e-3)}
    assert shown(Registered()) == {"embed.weight": (32, 1e-3), "head.weight": (8, 0.5), "head.bias": (8, 1e-3)}


def test_the_finders_that_are_callbacks_leave_the_training_alone(tmp_path):
    class Tuned(Model):
        def __init__(self):
            super().__init__()
            self.lr, self.batch_size = 1e-3, 2

        def configure_optimizers(self):
            return torch.optim.AdamW(self.parameters(), lr=self.lr)

        def train_dataloader(self):
            return DataLoader(torch.arange(100), batch_size=self.batch_size)

        val_dataloader = train_dataloader

    module = Tuned()
    finders = [BatchSizeFinder(steps_per_trial=1, max_trials=2), LearningRateFinder(num_training_steps=40)]
    options = {**QUIET, "max_epochs": 1, "accelerator": "cpu", "default_root_dir": tmp_path}
    trainer = pl.Trainer(callbacks=[*finders, EightBitOptimizer(overrides=HEAD_32)], **options)
    trainer.fit(module)
    assert type(trainer.optimizers[0]) is bnb.optim.AdamW and bits(trainer, module.head.weight) == 32
    assert trainer.optimizers[0].param_groups[0]["lr"] == module.lr != 1e-3
    assert trainer.optimizers[0].state[module.head.weight]["step"] == trainer.global_step > 0
    assert "configure_optimizers" not in vars(module)


class Unfreeze(BaseFinetuning):
    """Trains the head for an epoch, then the embedding too, in a group of its own."""

    def freeze_before_training(self, pl_module):
        self.freeze(pl_module.embed)

    def finetune_function(self, pl_module, epoch, optimizer):
        if epoch == 1:
            self.unfreeze_and_add_param_group(pl_module.embed, optimizer, lr=0.01)
        elif epoch > 1:
            self.make_trainable(pl_module.embed)  # of a resumed run, Lightning restores the groups, not the freezing


class OnlyTrainable(Bare):
    def configure_optimizers(self):
        return torch.optim.AdamW([p for p in self.parameters() if p.requires_grad], lr=1e-3)


@pytest.mark.parametrize("order", [1, -1])
def test_finetuning_adds_a_group_whose_hints_hold(order, tmp_path, manager):
    module = seeded(OnlyTrainable)
    overrides = {"embed.weight": {"optim_bits": 8, "weight_decay": 0.5}}
    callbacks = [Unfreeze(), EightBitOptimizer(overrides=overrides)][::order]
    with pytest.warns(UserWarning, match="fits only embed.weight, .* it will hold once one has been given them"):
        trainer = fit(module, *callbacks, epochs=3)
    assert len(trainer.optimizers[0].param_groups) == 2
    assert bits(trainer, module.embed.weight) == 8
    assert trainer.optimizers[0].state[module.embed.weight]["step"] == 8
    assert held(trainer, manager)["embed.weight"] == {"optim_bits": 8, "weight_decay": 0.5}


def test_finetuning_resumes_with_the_added_group(tmp_path):
    def run(module, epochs, **options):
        return fit(module, Unfreeze(), EightBitOptimizer(), epochs=epochs, default_root_dir=tmp_path, **options)

    whole, resumed = seeded(OnlyTrainable), seeded(OnlyTrainable)
    run(whole, 3)
    trainer = run(seeded(OnlyTrainable), 2, enable_checkpointing=True)
    run(resumed, 3, ckpt_path=trainer.checkpoint_callback.best_model_path)
    assert same_weights(whole, resumed)


@pytest.mark.parametrize(
    "averaging",
    [WeightAveraging, partial(StochasticWeightAveraging, swa_lrs=1e-3, swa_epoch_start=1)],
    ids=["WeightAveraging", "StochasticWeightAveraging"],
)
@pytest.mark.parametrize("order", [1, -1])
def test_weight_averaging_averages_what_the_8_bit_optimizer_trains(averaging, order):
    module = seeded(Model)
    callbacks = [averaging(), EightBitOptimizer(overrides=HEAD_32)][::order]
    trainer = fit(module, *callbacks, epochs=3)
    assert type(trainer.optimizers[0]) is bnb.optim.AdamW and bits(trainer, module.head.weight) == 32
    plain = seeded(Model)
    fit(plain, EightBitOptimizer(overrides=HEAD_32), epochs=3)
    distance = (module.head.weight - plain.head.weight).abs().max()
    assert 0 < distance < 0.05, "an average of the same training"


# Optimizers of bitsandbytes -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        (partial(bitsandbytes.optim.AdamW8bit, lr=1e-2, betas=(0.8, 0.9)), bnb.optim.AdamW),
        (partial(bitsandbytes.optim.Adam, lr=1e-2), bnb.optim.Adam),
        (partial(bitsandbytes.optim.Adam8bit, lr=1e-2, weight_decay=0.1), bnb.optim.AdamW),
        (partial(bitsandbytes.optim.SGD8bit, lr=1e-2, momentum=0.9), bnb.optim.SGD),
        (partial(bitsandbytes.optim.RMSprop8bit, lr=1e-2, alpha=0.9), bnb.optim.RMSprop),
        (partial(bitsandbytes.optim.Adagrad8bit, lr=1e-2), bnb.optim.Adagrad),
        (partial(bitsandbytes.optim.Lion8bit, lr=1e-2), bnb.optim.Lion),
        (partial(bitsandbytes.optim.PagedAdamW32bit, lr=1e-2), bnb.optim.PagedAdamW),
    ],
    ids=lambda value: value.func.__name__ if isinstance(value, partial) else "",
)
def test_optimizers_of_bitsandbytes_become_ours(theirs, ours):
    class Theirs(Bare):
        def configure_optimizers(self):
            optimizer = theirs(self.parameters())
            return [optimizer], [torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)]

    trainer = fit(Theirs(), EightBitOptimizer())
    (optimizer,) = trainer.optimizers
    (group,) = optimizer.param_groups
    assert type(optimizer) is ours and group["optim_bits"] == 8 and group["lr"] == 5e-3
    for key, value in theirs.keywords.items():
        assert key == "lr" or group[key] == value


def test_what_bitsandbytes_manager_was_told_goes_along(manager):
    theirs = bitsandbytes.optim.GlobalOptimManager.get_instance()

    class Theirs(Bare):
        def configure_optimizers(self):
            theirs.register_parameters(self.parameters())
            theirs.override_config(self.head.weight, "optim_bits", 32)
            return bitsandbytes.optim.AdamW8bit(self.parameters())

    try:
        module = Theirs()
        trainer = fit(module, EightBitOptimizer())
        assert bits(trainer, module.head.weight) == 32
    finally:
        theirs.initialize()


def test_hooks_on_a_replaced_optimizer_still_run():
    calls = []

    class Hooked(Model):
        def configure_optimizers(self):
            optimizer = super().configure_optimizers()
            optimizer.register_step_post_hook(lambda *_: calls.append(type(_[0])))
            return optimizer

    fit(Hooked(), EightBitOptimizer())
    assert calls == [bnb.optim.AdamW] * 4


# The mixin and the decorator ------------------------------------------------------------------------------------------


class Mixed(EightBitOptimizerMixin, Bare):
    pass


def test_arguments_of_init_configure_the_mixin(manager):
    class Mixed(EightBitOptimizerMixin, pl.LightningModule):
        training_step = Bare.training_step

        def __init__(self, **optimizer):
            super().__init__(**optimizer)
            self.embed, self.head = nn.Embedding(100, 64), nn.Linear(64, 100)

    module = Mixed(
        optimizer_class=bnb.optim.Lion, optimizer_options={"lr": 1e-4, "weight_decay": 0.1}, overrides=HEAD_32
    )
    trainer = fit(module)
    assert type(trainer.optimizers[0]) is bnb.optim.Lion
    assert trainer.optimizers[0].param_groups[0]["weight_decay"] == 0.1
    assert bits(trainer, module.head.weight) == 32
    assert type(fit(Mixed()).optimizers[0]) is bnb.optim.AdamW


def test_the_callback_configures_the_mixin():
    module = Mixed()
    trainer = fit(module, EightBitOptimizer(overrides=HEAD_32))
    assert bits(trainer, module.head.weight) == 32 and bits(trainer, module.embed.weight) == 32
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="EightBitOptimizer")  # 32 is what was asked for
        trainer = fit(module, EightBitOptimizer(optim_bits=32))
        assert trainer.optimizers[0].param_groups[0]["optim_bits"] == 32
        trainer = fit(module, EightBitOptimizer(optimizer=partial(bnb.optim.SGD8bit, lr=0.1, momentum=0.5)))
    assert type(trainer.optimizers[0]) is bnb.optim.SGD8bit


def test_the_decorator_does_what_the_mixin_does():
    @eight_bit_optimizer(bnb.optim.Adam, lr=2e-3, overrides=HEAD_32)
    class Decorated(Bare):
        pass

    for callbacks in ([], [EightBitOptimizer()]):
        module = Decorated()
        trainer = fit(module, *callbacks)
        assert type(trainer.optimizers[0]) is bnb.optim.Adam
        assert trainer.optimizers[0].param_groups[0]["lr"] == 2e-3
        assert bits(trainer, module.head.weight) == 32


def test_an_optimizer_that_is_none_or_has_no_twin_is_named_by_mixin_and_decorator():
    with pytest.raises(TypeError, match=r"optimizer_class='adamw': expected a class of optimizers, such as"):
        Mixed(optimizer_class="adamw").configure_optimizers()
    with pytest.raises(TypeError, match="optimizer_class=functools"):
        eight_bit_optimizer(partial(torch.optim.SGD, lr=0.1))
    with pytest.raises(TypeError, match=r"decorate with parentheses, @eight_bit_optimizer\(\)"):
        eight_bit_optimizer(Bare)
    with pytest.warns(UserWarning, match="NAdam has no 8-bit twin .* and stays as it is, .*; no hint holds for it"):
        Mixed(optimizer_class=torch.optim.NAdam).configure_optimizers()


def test_a_mixin_that_would_not_be_heard_is_refused():
    with pytest.raises(TypeError, match=r"Late: LightningModule stands before .* class Late\(EightBitOptimizerMixin, "):

        class Late(pl.LightningModule, EightBitOptimizerMixin):
            pass

    class Own(pl.LightningModule, EightBitOptimizerMixin):  # it does without the mixin's
        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    assert Own.configure_optimizers is not EightBitOptimizerMixin.configure_optimizers
    with pytest.raises(TypeError, match=r"Wrong.overrides: hints that a class declares are its optim_overrides"):

        class Wrong(EightBitOptimizerMixin, pl.LightningModule):
            overrides = HEAD_32


def test_the_decorated_class_is_the_same_and_its_hyperparameters_are_saved(tmp_path):
    class Plain(Bare):
        def __init__(self, width=64, lr=1e-3):
            super().__init__()
            self.save_hyperparameters()
            self.optimizer_options = {"lr": lr}

    decorated = eight_bit_optimizer()(Plain)
    assert decorated is Plain
    trainer = fit(decorated(width=3, lr=0.5), default_root_dir=tmp_path)
    assert trainer.optimizers[0].param_groups[0]["lr"] == 0.5
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    loaded = decorated.load_from_checkpoint(tmp_path / "last.ckpt", lr=0.25, weights_only=True)
    assert loaded.hparams == {"width": 3, "lr": 0.25}
    assert fit(loaded).optimizers[0].param_groups[0]["lr"] == 0.25


def test_a_wrong_hint_on_the_mixin_is_a_misconfiguration():
    with pytest.raises(MisconfigurationException, match="no parameter 'haed'"):
        fit(Mixed(overrides={"haed": {"lr": 0.1}}))
    with pytest.raises(TypeError, match="Model has a configure_optimizers"):
        eight_bit_optimizer()(Model)
    with pytest.raises(
        TypeError, match=r"decorates a LightningModule class of lightning.pytorch, got <class 'torch\.nn"
    ):
        eight_bit_optimizer()(nn.Linear)
