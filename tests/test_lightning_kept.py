"""Optimizers and schedulers that outlive a fit: a module makes them in its __init__, LightningCLI before any fit."""

import copy
import pickle
import weakref

import bitsandbytes
import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.tuner import Tuner
from lit import QUIET, Bare, Model, bits, data, fit, same_weights, seeded
from torch.optim.lr_scheduler import StepLR
from torch.utils.data import DataLoader

import torch_bnb as bnb
from lightning_bnb import EightBitOptimizer

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*does not have many workers", "ignore:.*LeafSpec", "ignore:.*exists and is not empty"
)


class Keeps(Bare):
    """Its optimizer and its schedule are made once."""

    make = staticmethod(lambda parameters: torch.optim.AdamW(parameters, lr=0.01))

    def __init__(self, batch_size=8):
        super().__init__()
        self.batch_size = batch_size
        self.own = self.make(self.parameters())
        self.schedule = StepLR(self.own, 1, 0.5)

    def configure_optimizers(self):
        return [self.own], [self.schedule]

    def train_dataloader(self):
        return DataLoader(torch.arange(32), batch_size=self.batch_size)

    val_dataloader = train_dataloader


def steps(optimizer):
    return {int(state["step"]) for state in optimizer.state.values()}


def rate(trainer):
    return trainer.optimizers[0].param_groups[0]["lr"]


@pytest.mark.parametrize(
    "schedule",
    [
        lambda o: torch.optim.lr_scheduler.CyclicLR(o, 1e-3, 0.1, step_size_up=2),
        lambda o: torch.optim.lr_scheduler.OneCycleLR(o, 0.1, 10),
        lambda o: StepLR(o, 1, 0.5),
    ],
    ids=["CyclicLR", "OneCycleLR", "StepLR"],
)
def test_an_optimizer_built_before_the_fit_was_built_with_its_default_rate_whatever_its_scheduler_notes(schedule):
    module = Keeps()
    module.own = torch.optim.AdamW(module.parameters(), lr=0.01)
    module.schedule = schedule(module.own)
    assert fit(module, EightBitOptimizer()).optimizers[0].param_groups[0]["base_lr"] == 0.01


def trainer_of(tmp_path, *callbacks):
    return pl.Trainer(max_epochs=1, accelerator="cpu", callbacks=list(callbacks), default_root_dir=tmp_path, **QUIET)


class Rates(pl.Callback):
    def __init__(self):
        self.seen = []

    def on_train_batch_start(self, trainer, *_):
        self.seen.append(rate(trainer))


@pytest.mark.parametrize("search", ["lr_find", "scale_batch_size"])
def test_a_search_before_the_fit_leaves_the_rate_as_it_was(search, tmp_path):
    seen = []
    for callbacks in ([], [EightBitOptimizer()]):
        module, rates = Keeps(), Rates()
        trainer = trainer_of(tmp_path, *callbacks)
        options = {"num_training": 10, "update_attr": False} if search == "lr_find" else {"max_trials": 1}
        getattr(Tuner(trainer), search)(module, **options)
        trainer.callbacks.append(rates)
        trainer.fit(module)
        seen.append((rates.seen, steps(trainer.optimizers[0])))
    assert seen[0] == seen[1] and seen[1][0][0] == 0.01
    assert type(trainer.optimizers[0]) is bnb.optim.AdamW and bits(trainer, module.head.weight) == 8


def test_the_command_lines_optimizer_goes_through_a_search_and_two_fits(tmp_path):
    seen = []
    for callbacks in ([], [EightBitOptimizer()]):
        arguments = ["--optimizer=torch.optim.AdamW", "--optimizer.lr=0.01"]
        arguments += ["--lr_scheduler=StepLR", "--lr_scheduler.step_size=1"]
        defaults = {"max_epochs": 1, "accelerator": "cpu", "callbacks": callbacks, "default_root_dir": tmp_path}
        made = LightningCLI(
            Bare, args=arguments, run=False, save_config_callback=None, trainer_defaults={**QUIET, **defaults}
        )
        Tuner(made.trainer).lr_find(made.model, data(), num_training=10, update_attr=False)
        for epochs in (1, 2):
            made.trainer.fit_loop.max_epochs = epochs
            made.trainer.fit(made.model, data())
        seen.append((rate(made.trainer), steps(made.trainer.optimizers[0])))
    assert seen[0] == seen[1] == (pytest.approx(1e-4), {8})
    assert type(made.trainer.optimizers[0]) is bnb.optim.AdamW


def test_a_second_fit_goes_on_as_without_the_callback():
    plain, ours = seeded(Keeps), seeded(Keeps)
    for _ in range(2):
        fit(plain)
        trainer = fit(ours, EightBitOptimizer(optim_bits=32, embeddings_32bit=False))
    assert steps(trainer.optimizers[0]) == steps(plain.own) == {8}
    assert rate(trainer) == plain.own.param_groups[0]["lr"] == 0.0025
    for p, q in zip(plain.parameters(), ours.parameters(), strict=True):
        torch.testing.assert_close(p, q)


def test_fits_with_and_without_the_callback_take_turns():
    module = Keeps()
    assert steps(fit(module, EightBitOptimizer()).optimizers[0]) == {4}
    assert module.schedule.optimizer is module.own and module.own.param_groups[0]["lr"] == 0.005
    trainer = fit(module)
    assert trainer.optimizers == [module.own] and steps(module.own) == {4}, "its own state begins here"
    assert rate(trainer) == 0.0025 and module.own.state[module.head.weight]["exp_avg"].dtype == torch.float32
    trainer = fit(module, EightBitOptimizer())
    assert steps(trainer.optimizers[0]) == {8}, "what was trained last goes on"
    assert bits(trainer, module.head.weight) == 8 and rate(trainer) == 0.00125


def test_every_kind_of_optimizer_trains_alone_after_a_fit():
    for cls in (torch.optim.SGD, torch.optim.RMSprop, torch.optim.Adagrad, torch.optim.Adam):

        class Other(Keeps):
            make = staticmethod(lambda parameters, cls=cls: cls(parameters, lr=0.01))

        module = Other()
        fit(module, EightBitOptimizer())
        before = module.head.weight.detach().clone()
        assert fit(module).optimizers == [module.own] and not torch.equal(module.head.weight, before)


def test_an_optimizer_of_bitsandbytes_is_kept_too():
    class Theirs(Keeps):
        make = staticmethod(lambda parameters: bitsandbytes.optim.SGD8bit(parameters, lr=0.01, momentum=0.5))

    module = Theirs()
    before = {key: value for key, value in module.own.param_groups[0].items() if key != "params"}
    for count in (4, 8):
        trainer = fit(module, EightBitOptimizer())
        assert type(trainer.optimizers[0]) is bnb.optim.SGD and steps(trainer.optimizers[0]) == {count}
        assert trainer.optimizers[0].param_groups[0]["momentum"] == 0.5
        assert before.keys() <= module.own.param_groups[0].keys() and module.own.param_groups[0]["betas"][0] == 0.5


def test_a_fit_that_fails_gives_everything_back():
    class Fails(Keeps):
        def training_step(self, batch, index):
            raise ZeroDivisionError

    module = Fails()
    with pytest.raises(ZeroDivisionError):
        fit(module, EightBitOptimizer())
    assert module.schedule.optimizer is module.own
    for parameter in module.parameters():
        parameter.grad = torch.ones_like(parameter)
    module.own.step()
    assert steps(module.own) == {1}


def test_after_a_fit_the_module_copies_and_pickles():
    module = Keeps()
    fit(module, EightBitOptimizer())
    for made in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert same_weights(module, made) and made.schedule.optimizer is made.own
        trainer = fit(made, EightBitOptimizer(optim_bits=32))
        assert steps(trainer.optimizers[0]) == {4} and bits(trainer, made.head.weight) == 32
        assert fit(made).optimizers == [made.own]


def test_another_fit_may_ask_for_other_bits():
    module = Keeps()
    module.own.add_param_group({"params": [torch.nn.Parameter(torch.zeros(64, 64))], "optim_bits": 8})
    module.schedule = StepLR(module.own, 1)
    for asked in (8, 32, 8):
        trainer = fit(module, EightBitOptimizer(optim_bits=asked))
        assert bits(trainer, module.head.weight) == asked and trainer.optimizers[0].param_groups[1]["optim_bits"] == 8
    assert steps(trainer.optimizers[0]) == {12}


def test_what_is_loaded_into_a_kept_optimizer_is_what_trains_next():
    module = Keeps()
    fit(module)
    saved = copy.deepcopy(module.own.state_dict())
    for _ in range(2):
        fit(module, EightBitOptimizer())
    module.own.load_state_dict(saved)
    assert steps(fit(module, EightBitOptimizer()).optimizers[0]) == {8}


def test_an_optimizer_that_nobody_keeps_is_freed_at_once():
    class Makes(Model):
        def configure_optimizers(self):
            optimizer = super().configure_optimizers()
            self.seen = weakref.ref(optimizer)
            return [optimizer], [StepLR(optimizer, 1)]

        def on_train_start(self):
            assert self.seen() is None

    trainer = fit(Makes(), EightBitOptimizer())
    assert trainer.lr_scheduler_configs[0].scheduler.optimizer is trainer.optimizers[0]


# What the module does with its own reference during a fit -------------------------------------------------------------


def test_a_step_of_the_replaced_optimizer_is_an_error_that_says_what_to_step():
    class Manual(Keeps):
        automatic_optimization = False

        def training_step(self, batch, index):
            self.own.zero_grad()
            self.manual_backward(super().training_step(batch, index))
            self.own.step()

    module = Manual()
    message = "the AdamW that configure_optimizers returned is replaced during the fit.* Step the one that self.opt"
    with pytest.raises(RuntimeError, match=message):
        fit(module, EightBitOptimizer())
    fit(module)
    assert steps(module.own) == {4}


def test_rates_set_through_the_modules_own_reference_hold_after_a_resume_too(tmp_path):
    class Sets(Keeps):
        def on_train_batch_start(self, *_):
            self.own.param_groups[0]["lr"] = 1e-3

        def configure_optimizers(self):
            return self.own

    trainer = fit(Keeps(), EightBitOptimizer(), default_root_dir=tmp_path)
    trainer.lr_scheduler_configs.clear()
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    for ckpt_path in (None, tmp_path / "a.ckpt"):
        assert rate(fit(Sets(), EightBitOptimizer(), epochs=2, ckpt_path=ckpt_path)) == 1e-3


def test_a_group_added_through_the_modules_own_reference_trains(manager):
    class Adds(Keeps):
        def __init__(self):
            super().__init__()
            self.late = torch.nn.Linear(64, 64)

        def configure_optimizers(self):
            return self.own

        def training_step(self, batch, index):
            if len(self.own.param_groups) == 1:
                self.own.add_param_group({"params": self.late.parameters(), "lr": 0.5})
            return super().training_step(batch, index) + self.late.weight.square().mean()

    module = Adds()
    trainer = fit(module, EightBitOptimizer(overrides={"late.bias": {"lr": 0.1}}))
    assert bits(trainer, module.late.weight) == 8 and trainer.optimizers[0].param_groups[1]["lr"] == 0.5
    module.own.add_param_group({"params": [torch.nn.Parameter(torch.zeros(4))]})
    assert len(fit(module, EightBitOptimizer()).optimizers[0].param_groups) == 3
    fit(module)


def test_hooks_on_a_kept_optimizer_run_whenever_they_were_registered():
    calls = []

    class Hooked(Keeps):
        def on_train_start(self):
            self.own.register_step_post_hook(lambda optimizer, *_: calls.append(type(optimizer)))

    module = Hooked()
    handle = module.own.register_step_post_hook(lambda *_: calls.append("removed"))
    fit(module, EightBitOptimizer(), max_steps=1)
    assert calls == ["removed", bnb.optim.AdamW]
    handle.remove()
    fit(module, EightBitOptimizer(), max_steps=2)
    assert calls[2:] == [bnb.optim.AdamW] * 4
