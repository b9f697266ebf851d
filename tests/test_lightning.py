"""The Lightning callback and mixin in real fits."""

import copy
import pickle
import warnings
from functools import partial

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.demos.boring_classes import BoringModel
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.model_helpers import is_overridden
from lit import Bare, Model, bits, data, fit
from torch import nn

import torch_bnb as bnb
from lightning_bnb import EightBitOptimizer, EightBitOptimizerMixin, optim_overrides
from torch_bnb.overrides import registry

pytestmark = pytest.mark.filterwarnings("ignore:.*does not have many workers", "ignore:.*LeafSpec")


def test_a_torch_optimizer_becomes_its_8_bit_twin():
    module = Model()
    trainer = fit(module, EightBitOptimizer())
    (optimizer,) = trainer.optimizers
    assert type(optimizer) is bnb.optim.AdamW
    assert optimizer.param_groups[0]["weight_decay"] == 0.05
    assert bits(trainer, module.head.weight) == 8
    assert bits(trainer, module.head.bias) == 32, "too small"
    assert optimizer.state[module.head.weight]["step"] == 4


def test_embeddings_keep_32_bits_unless_the_callback_says_otherwise():
    for embeddings_32bit, expected in ((True, 32), (False, 8), (True, 32)):
        module = Model()
        trainer = fit(module, EightBitOptimizer(embeddings_32bit=embeddings_32bit))
        assert bits(trainer, module.embed.weight) == expected


def test_a_class_decorator_keeps_the_head_at_32_bits():
    @optim_overrides({"head.weight": {"optim_bits": 32}, "embed.weight": {"optim_bits": 8}})
    class Hinted(Model):
        pass

    module = Hinted()
    trainer = fit(module, EightBitOptimizer())
    assert bits(trainer, module.embed.weight) == 8
    assert bits(trainer, module.head.weight) == 32


def test_a_plain_class_attribute_of_a_submodule_does_the_same():
    class Embedding(nn.Embedding):
        optim_overrides = {"weight": {"optim_bits": 32, "lr": 0.0}}

    module = Model()
    module.embed = Embedding(100, 64)
    before = module.embed.weight.detach().clone()
    trainer = fit(module, EightBitOptimizer())
    assert bits(trainer, module.embed.weight) == 32
    assert torch.equal(module.embed.weight, before)


def test_parameters_are_registered_at_setup_while_on_the_cpu():
    seen = []

    class Watch(pl.Callback):
        def setup(self, trainer, pl_module, stage):
            names = registry.parameter_names()
            seen.append([(names[id(p)], p.device.type) for p in pl_module.parameters()])

    fit(Model(), EightBitOptimizer(), Watch())
    assert seen == [[("embed.weight", "cpu"), ("head.weight", "cpu"), ("head.bias", "cpu")]]


def test_a_factory_takes_precedence_over_the_module_and_says_that_it_takes_its_schedule():
    class Scheduled(Model):
        def configure_optimizers(self):
            optimizer = super().configure_optimizers()
            return [optimizer], [torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)]

    callback = EightBitOptimizer(optimizer=partial(bnb.optim.Lion8bit, lr=1e-4))
    with pytest.warns(UserWarning, match=r"in place of Scheduled.configure_optimizers: .* schedulers are not used"):
        trainer = fit(Scheduled(), callback)
    assert type(trainer.optimizers[0]) is bnb.optim.Lion8bit and not trainer.lr_scheduler_configs


def test_parameters_made_in_configure_model_are_found():
    @optim_overrides({"embed.weight": {"optim_bits": 32}})
    class Lazy(Model):
        def __init__(self):
            pl.LightningModule.__init__(self)

        def configure_model(self):
            if not hasattr(self, "head"):
                self.embed, self.head = nn.Embedding(100, 64), nn.Linear(64, 100)

    module = Lazy()
    trainer = fit(module, EightBitOptimizer())
    assert bits(trainer, module.embed.weight) == 32
    assert bits(trainer, module.head.weight) == 8


def test_the_mixin_gives_a_module_its_optimizer():
    @optim_overrides({"embed.weight": {"optim_bits": 32}})
    class Mixed(EightBitOptimizerMixin, Bare):
        optimizer_class = bnb.optim.Adam
        optimizer_options = {"lr": 3e-4}

    class FromTorch(Mixed):
        optimizer_class = torch.optim.Adam

    for callbacks, cls in (([], Mixed), ([EightBitOptimizer()], Mixed), ([], FromTorch)):
        module = cls()
        trainer = fit(module, *callbacks)
        assert type(trainer.optimizers[0]) is bnb.optim.Adam
        assert trainer.optimizers[0].param_groups[0]["lr"] == 3e-4
        assert bits(trainer, module.embed.weight) == 32 and bits(trainer, module.head.weight) == 8


class Warmup(torch.optim.lr_scheduler.LambdaLR):
    """As many write it: a scheduler of one's own that hands over to another."""

    def __init__(self, optimizer, then):
        self.then = then
        super().__init__(optimizer, lambda step: min(1, (step + 1) / 3))

    def step(self, *_):
        super().step()
        if self.last_epoch > 2:
            self.then.step()


SCHEDULES = {
    "StepLR": lambda o: torch.optim.lr_scheduler.StepLR(o, 2, gamma=0.5),
    "LambdaLR": lambda o: torch.optim.lr_scheduler.LambdaLR(o, lambda step: (step + 1) / 10),
    "OneCycleLR": lambda o: torch.optim.lr_scheduler.OneCycleLR(o, max_lr=0.01, total_steps=10),
    "SequentialLR": lambda o: torch.optim.lr_scheduler.SequentialLR(
        o,
        [torch.optim.lr_scheduler.LinearLR(o, total_iters=2), torch.optim.lr_scheduler.CosineAnnealingLR(o, 5)],
        milestones=[2],
    ),
    "ChainedScheduler": lambda o: torch.optim.lr_scheduler.ChainedScheduler(
        [torch.optim.lr_scheduler.ConstantLR(o, 0.5, 2), torch.optim.lr_scheduler.ExponentialLR(o, 0.9)]
    ),
    "nested": lambda o: torch.optim.lr_scheduler.ChainedScheduler(
        [
            torch.optim.lr_scheduler.SequentialLR(
                o,
                [torch.optim.lr_scheduler.ConstantLR(o, 0.5, 1), torch.optim.lr_scheduler.ExponentialLR(o, 0.9)],
                milestones=[1],
            ),
            torch.optim.lr_scheduler.ExponentialLR(o, 0.9),
        ]
    ),
    "a scheduler that holds another": lambda o: Warmup(o, torch.optim.lr_scheduler.StepLR(o, 1, gamma=0.5)),
    "CyclicLR": lambda o: torch.optim.lr_scheduler.CyclicLR(o, 1e-4, 1e-3, step_size_up=2, cycle_momentum=False),
    "CosineAnnealingWarmRestarts": lambda o: torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(o, 3),
}


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.filterwarnings("error:.*optimizer.step.*", "error:.*lr_scheduler.step.*")
def test_schedules_keep_their_curves(name):
    curves = []

    class Scheduled(Model):
        def configure_optimizers(self):
            optimizer = super().configure_optimizers()
            return [optimizer], [{"scheduler": SCHEDULES[name](optimizer), "interval": "step"}]

    class Rates(pl.Callback):
        def on_train_batch_end(self, trainer, *_):
            curves[-1].append(trainer.optimizers[0].param_groups[0]["lr"])

    for callbacks in ([], [EightBitOptimizer()]):
        curves.append([])
        fit(Scheduled(), Rates(), *callbacks)
    assert curves[0] == curves[1] and len(set(curves[0])) > 1


def test_an_own_rate_follows_a_schedule_that_began_before_the_optimizer_was_replaced(manager):
    class Scheduled(Model):
        def configure_optimizers(self):
            optimizer = super().configure_optimizers()
            return [optimizer], [torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.1)]

    module = Scheduled()
    trainer = fit(module, EightBitOptimizer())
    group = trainer.optimizers[0].param_groups[0]
    assert group["lr"] == pytest.approx(1e-4) and group["base_lr"] == 1e-3


STARTS = {
    **SCHEDULES,
    "OneCycleLR after a warm-up": lambda o: torch.optim.lr_scheduler.SequentialLR(
        o,
        [torch.optim.lr_scheduler.LinearLR(o, total_iters=2), torch.optim.lr_scheduler.OneCycleLR(o, 0.01, 10)],
        milestones=[2],
    ),
    "CyclicLR after a warm-up": lambda o: torch.optim.lr_scheduler.SequentialLR(
        o,
        [torch.optim.lr_scheduler.LinearLR(o, total_iters=2), torch.optim.lr_scheduler.CyclicLR(o, 1e-4, 1e-2, 2)],
        milestones=[2],
    ),
    "CyclicLR with momentum": lambda o: torch.optim.lr_scheduler.CyclicLR(o, 1e-4, 1e-2, step_size_up=2),
    "LinearLR": lambda o: torch.optim.lr_scheduler.LinearLR(o, 0.1, total_iters=3),
    "PolynomialLR": lambda o: torch.optim.lr_scheduler.PolynomialLR(o, 5),
    "MultiplicativeLR": lambda o: torch.optim.lr_scheduler.MultiplicativeLR(o, lambda step: 0.5),
    "MultiStepLR": lambda o: torch.optim.lr_scheduler.MultiStepLR(o, [1, 3]),
    "SWALR": lambda o: torch.optim.swa_utils.SWALR(o, swa_lr=0.05, anneal_epochs=3),
}


class OwnRates(pl.Callback):
    """The rates in force, at every step."""

    def __init__(self):
        self.seen = []

    def on_train_batch_end(self, trainer, *_):
        rows = bnb.optim.GlobalOptimManager.get_instance().explain(trainer.optimizers[0])
        self.seen.append([row.lr for row in rows])


@pytest.mark.parametrize("tensor", [False, True], ids=["float", "tensor"])
@pytest.mark.parametrize("name", STARTS)
def test_own_rates_are_those_of_a_module_that_returns_the_8_bit_optimizer(name, tensor):
    """Also in groups with a rate of their own, whatever the scheduler has done to it by then."""

    @optim_overrides({"embed.weight": {"lr": 1e-4}, "head.bias": {"lr": 1e-5}})
    class Scheduled(Bare):
        def configure_optimizers(self):
            rate = torch.tensor(1e-3, dtype=torch.float64) if tensor and self.cls is torch.optim.AdamW else 1e-3
            groups = [{"params": self.embed.parameters(), "lr": 2e-3}, {"params": self.head.parameters()}]
            optimizer = self.cls(groups, lr=rate)
            return [optimizer], [{"scheduler": STARTS[name](optimizer), "interval": "step"}]

    seen = []
    for cls in (bnb.optim.AdamW, torch.optim.AdamW):
        module, rates = Scheduled(), OwnRates()
        module.cls = cls
        fit(module, EightBitOptimizer(summary=False), rates)
        seen.append(rates.seen)
    assert len(seen[0]) == 4 and len({tuple(row) for row in seen[0]}) > 1
    for one, other in zip(*seen, strict=True):
        assert one == pytest.approx(other, rel=1e-6)
    assert "noting" not in torch.optim.Optimizer.add_param_group.__qualname__


def scheduled(form):
    """A form that has a scheduler."""

    def make(optimizer):
        return form(optimizer, torch.optim.lr_scheduler.StepLR(optimizer, 1))

    return make


FORMS = {
    "optimizer": lambda o: o,
    "list": lambda o: [o],
    "tuple": lambda o: (o,),
    "dict": lambda o: {"optimizer": o},
    "two lists": lambda o: ([o], []),
    "lists of both": scheduled(lambda o, s: ([o], [s])),
    "list and one scheduler": scheduled(lambda o, s: ([o], s)),
    "lists with a config": scheduled(lambda o, s: ([o], [{"scheduler": s, "interval": "epoch"}])),
    "dict with a scheduler": scheduled(lambda o, s: {"optimizer": o, "lr_scheduler": s}),
    "dict with a config": scheduled(lambda o, s: {"optimizer": o, "lr_scheduler": {"scheduler": s}}),
    "dict with a monitor": lambda o: {
        "optimizer": o,
        "lr_scheduler": torch.optim.lr_scheduler.ReduceLROnPlateau(o),
        "monitor": "loss",
    },
    "tuple of dicts with a scheduler": scheduled(lambda o, s: ({"optimizer": o, "lr_scheduler": s},)),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_that_configure_optimizers_returns(form):
    class Formed(Model):
        def configure_optimizers(self):
            return FORMS[form](super().configure_optimizers())

    trainer = fit(Formed(), EightBitOptimizer())
    assert type(trainer.optimizers[0]) is bnb.optim.AdamW
    assert all(config.scheduler.optimizer is trainer.optimizers[0] for config in trainer.lr_scheduler_configs)
    assert len(trainer.lr_scheduler_configs) == ("both" in form or "scheduler" in form or "with a" in form)


def test_a_module_without_an_optimizer_trains_nothing():
    class No(Bare):
        def configure_optimizers(self):
            return None

    module = No()
    before = module.head.weight.detach().clone()
    with pytest.warns(UserWarning, match="this fit will run with no optimizer"):
        fit(module, EightBitOptimizer())
    assert torch.equal(module.head.weight, before)


def test_two_optimizers_with_manual_optimization():
    class Two(BoringModel):
        def __init__(self):
            super().__init__()
            self.other = nn.Linear(32, 2)
            self.automatic_optimization = False

        def training_step(self, batch, _):
            for optimizer, layer in zip(self.optimizers(), (self.layer, self.other), strict=True):
                optimizer.zero_grad()
                self.manual_backward(layer(batch).square().mean())
                optimizer.step()

        def configure_optimizers(self):
            return [
                torch.optim.SGD(self.layer.parameters(), lr=0.1, momentum=0.9),
                torch.optim.Adam(self.other.parameters(), lr=0.1),
            ]

    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = pl.Trainer(max_steps=4, accelerator="cpu", callbacks=[EightBitOptimizer()], **quiet)
    trainer.fit(Two())
    assert [type(o) for o in trainer.optimizers] == [bnb.optim.SGD, bnb.optim.Adam]


def test_the_module_is_as_before_after_the_fit_and_can_be_fitted_again():
    module, callback = Model(), EightBitOptimizer()
    for _ in range(2):
        trainer = fit(module, callback)
        assert "configure_optimizers" not in vars(module)
        assert type(trainer.optimizers[0]) is bnb.optim.AdamW


def test_the_module_is_restored_after_an_exception():
    class Fails(Model):
        def training_step(self, batch, index):
            raise ZeroDivisionError

    module, callback = Fails(), EightBitOptimizer()
    own = module.configure_optimizers = partial(Model.configure_optimizers, module)
    with pytest.raises(ZeroDivisionError):
        fit(module, callback)
    assert vars(module)["configure_optimizers"] is own


def test_validation_alone_changes_nothing():
    module = Model()
    quiet = {"logger": False, "enable_progress_bar": False, "enable_checkpointing": False}
    pl.Trainer(accelerator="cpu", callbacks=[EightBitOptimizer()], **quiet).validate(module, data(), verbose=False)
    assert "configure_optimizers" not in vars(module)


def small_rate(module):
    return torch.optim.AdamW(module.parameters(), lr=1e-5)


@pytest.mark.parametrize("own", [False, True], ids=["of the class", "of the instance"])
def test_copies_and_pickles_from_the_middle_of_a_fit_are_the_callbacks_no_more(own):
    class Second(EightBitOptimizer):
        """Two callbacks wrap the module twice."""

    class Copies(pl.Callback):
        def on_train_start(self, trainer, pl_module):
            self.copies = [copy.deepcopy(pl_module), pickle.loads(pickle.dumps(pl_module))]
            self.optimizers = [copied.configure_optimizers() for copied in self.copies]
            assert is_overridden("configure_optimizers", pl_module)

    copies, module = Copies(), Model()
    if own:
        module.configure_optimizers = partial(small_rate, module)
    fit(module, EightBitOptimizer(), Second(), copies)
    assert type(fit(module).optimizers[0]) is torch.optim.AdamW
    for copied, during in zip(copies.copies, copies.optimizers, strict=True):
        for optimizer in (during, *fit(copied).optimizers):
            assert type(optimizer) is torch.optim.AdamW and optimizer.defaults["lr"] == (1e-5 if own else 1e-3)
            assert optimizer.param_groups[0]["params"][0] is copied.embed.weight
        (ours,) = fit(copied, EightBitOptimizer()).optimizers
        assert type(ours) is bnb.optim.AdamW and ours.param_groups[0]["params"][0] is copied.embed.weight


def test_a_hint_for_a_missing_parameter_is_a_misconfiguration():
    @optim_overrides({"embde.weight": {"optim_bits": 32}})
    class Wrong(Model):
        pass

    with pytest.raises(MisconfigurationException, match=r"no parameter 'embde.weight', did you mean 'embed.weight'\?"):
        fit(Wrong(), EightBitOptimizer())


def test_a_misspelt_option_is_a_misconfiguration():
    module = Model()
    module.optim_overrides = {"embed.weight": {"optim_bit": 32}}
    with pytest.raises(MisconfigurationException, match="unknown option 'optim_bit', did you mean 'optim_bits'"):
        fit(module, EightBitOptimizer())


def test_an_option_without_a_twin_is_a_misconfiguration():
    class Amsgrad(Bare):
        def configure_optimizers(self):
            return torch.optim.AdamW(self.parameters(), amsgrad=True)

    with pytest.raises(MisconfigurationException, match=r"AdamW\(amsgrad=True\) has no 8-bit twin in torch_bnb"):
        fit(Amsgrad(), EightBitOptimizer())
    with pytest.raises(MisconfigurationException, match="optim_bits=4: expected 8 or 32"):
        EightBitOptimizer(optim_bits=4)


@pytest.mark.parametrize(("decoupled", "cls"), [(True, bnb.optim.AdamW), (False, bnb.optim.Adam)])
def test_adam_with_decoupled_decay_becomes_adamw(decoupled, cls):
    class Decoupled(Bare):
        def configure_optimizers(self):
            return torch.optim.Adam(self.parameters(), weight_decay=0.1, decoupled_weight_decay=decoupled)

    class Both(Bare):
        def configure_optimizers(self):
            groups = [{"params": [p], "decoupled_weight_decay": p.dim() > 1} for p in self.parameters()]
            return torch.optim.Adam(groups, weight_decay=0.1)

    assert type(fit(Decoupled(), EightBitOptimizer()).optimizers[0]) is cls
    with pytest.raises(MisconfigurationException, match="that differs among groups has no 8-bit twin"):
        fit(Both(), EightBitOptimizer())


def test_other_optimizers_are_left_alone():
    class Other(Bare):
        def configure_optimizers(self):
            return torch.optim.Adamax(self.parameters())

    with pytest.warns(UserWarning, match=r"Adamax has no 8-bit twin \(Adam, AdamW, .*; no hint holds for it"):
        assert type(fit(Other(), EightBitOptimizer()).optimizers[0]) is torch.optim.Adamax
    with pytest.warns(UserWarning, match=r"AdamW is not replaced \(replace_torch_optimizers=False\) and stays"):
        trainer = fit(Model(), EightBitOptimizer(replace_torch_optimizers=False))
    assert type(trainer.optimizers[0]) is torch.optim.AdamW


def test_overrides_that_no_optimizer_heeds_are_an_error_or_where_asked_a_warning():
    class Other(Bare):
        def configure_optimizers(self):
            return torch.optim.Adamax(self.parameters())

    overrides = {"*bias": {"lr": 1e-4}}
    with pytest.raises(
        MisconfigurationException, match=r"overrides hold for optimizers of torch_bnb only.*Adamax; stri"
    ):
        fit(Other(), EightBitOptimizer(overrides=overrides))
    with pytest.warns(UserWarning, match="Adamax has no 8-bit twin.*; no hint holds for it"):
        fit(Other(), EightBitOptimizer(overrides=overrides, strict=False))


class SharpnessAware(torch.optim.Optimizer):
    """As many write it: a wrapper over the groups of an optimizer that it makes."""

    def __init__(self, parameters, cls, **options):
        super().__init__(parameters, options)
        self.base_optimizer = cls(self.param_groups, **options)

    def step(self, closure=None):
        return self.base_optimizer.step(closure)


def test_hints_hold_for_an_optimizer_of_ours_within_another():
    class Wrapped(Bare):
        cls = bnb.optim.AdamW8bit

        def configure_optimizers(self):
            return SharpnessAware(self.parameters(), self.cls, lr=1e-3)

    class Forgot(Wrapped):
        cls = bnb.optim.AdamW

    module, callback = Wrapped(), EightBitOptimizer(overrides={"embed.weight": {"optim_bits": 8}})
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="EightBitOptimizer")
        (optimizer,) = fit(module, callback).optimizers
    assert all("exp_avg_codes" in optimizer.base_optimizer.state[layer.weight] for layer in (module.embed, module.head))
    with pytest.warns(UserWarning, match="all state of AdamW stays in 32 bits, .*; set optim_bits=8"):
        fit(Forgot(), EightBitOptimizer())


def test_state_that_stays_in_32_bits_is_a_warning():
    class Forgot(Bare):
        def configure_optimizers(self):
            return bnb.optim.AdamW(self.parameters())

    with pytest.warns(UserWarning, match="all state of AdamW stays in 32 bits, 0.10 MiB; set optim_bits=8"):
        fit(Forgot(), EightBitOptimizer())
    with pytest.warns(UserWarning, match="AdamW8bit stays in 32 bits, .*; trainable parameters are below"):
        fit(Forgot(), EightBitOptimizer(partial(bnb.optim.AdamW8bit, min_8bit_size=10**6)))
    with pytest.warns(UserWarning, match="all state of AdamW stays in 32 bits, .*; parameters in float64 keep 32-bit"):
        fit(Model(), EightBitOptimizer(), precision="64-true")


@pytest.mark.parametrize(
    ("torch_optimizer", "twin"),
    [
        (partial(torch.optim.RMSprop, lr=1e-3, momentum=0.9, centered=True), bnb.optim.RMSprop),
        (partial(torch.optim.Adagrad, lr=1e-2, initial_accumulator_value=0.1), bnb.optim.Adagrad),
        (partial(torch.optim.SGD, lr=1e-2, momentum=0.9, nesterov=True), bnb.optim.SGD),
    ],
    ids=["RMSprop", "Adagrad", "SGD"],
)
def test_every_twin_has_the_options_of_its_original(torch_optimizer, twin):
    class Other(Bare):
        def configure_optimizers(self):
            return torch_optimizer(self.parameters())

    (optimizer,) = fit(Other(), EightBitOptimizer()).optimizers
    assert type(optimizer) is twin
    for key, value in torch_optimizer.keywords.items():
        assert optimizer.param_groups[0][key] == value
