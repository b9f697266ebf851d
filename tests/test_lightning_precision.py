"""Every precision that Lightning has, with clipping and accumulation; a GradScaler that skips a step."""

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.plugins import MixedPrecision
from lit import QUIET, Bare, Model, bits, csv_columns, fit, seeded
from torch.utils.data import DataLoader

from lightning_bnb import EightBitOptimizer, OptimizerStateMonitor

pytestmark = pytest.mark.filterwarnings("ignore:.*does not have many workers", "ignore:.*LeafSpec")

OVERRIDES = {"embed.weight": {"optim_bits": 8}}


@pytest.mark.parametrize(
    ("precision", "dtype"),
    [
        ("32-true", torch.float32),
        ("bf16-mixed", torch.float32),
        ("bf16-true", torch.bfloat16),
        ("16-true", torch.float16),
        ("64-true", torch.float64),
    ],
)
def test_a_precision_trains_and_keeps_its_dtypes(precision, dtype):
    module = Model()
    before = module.head.weight.detach().clone()
    trainer = fit(module, EightBitOptimizer(overrides=OVERRIDES), precision=precision, gradient_clip_val=1.0)
    assert trainer.precision == precision and module.head.weight.dtype == dtype
    assert not torch.equal(module.head.weight.to(before.dtype), before)
    assert module.head.weight.isfinite().all()
    assert bits(trainer, module.head.weight) == (32 if precision == "64-true" else 8)
    absmax = [t for s in trainer.optimizers[0].state.values() for k, t in s.items() if k.endswith("absmax")]
    assert all(t.dtype == torch.float32 for t in absmax)


def scaled(scale, **options):
    return MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=scale, **options))


class Overflows(Model):
    """Its second batch has a gradient that is no number."""

    def training_step(self, batch, index):
        loss = super().training_step(batch, index)
        return loss * torch.inf if index == 1 else loss


def test_a_grad_scaler_skips_the_step_that_overflows(tmp_path):
    module, plugin, logger = seeded(Overflows), scaled(2.0**10), pl.loggers.CSVLogger(tmp_path)
    options = {"plugins": plugin, "gradient_clip_val": 1.0, "logger": logger}
    trainer = fit(module, EightBitOptimizer(), OptimizerStateMonitor(every_n_steps=1), **options)
    moved = [value for _, value in csv_columns(logger)["optimizer_state/group0/update_to_weight"]]
    assert len(moved) == 3 and all(0 < value < 0.1 for value in moved), "a step that is not made is not measured"
    assert trainer.optimizers[0].state[module.head.weight]["step"] == 3, "of 4 batches"
    assert plugin.scaler.get_scale() == 2.0**9
    assert all(p.isfinite().all() for p in module.parameters())
    assert bits(trainer, module.head.weight) == 8


@pytest.mark.parametrize("clip", [{}, {"gradient_clip_val": 1e-2}])
def test_a_grad_scaler_does_not_change_the_result(clip):
    modules = []
    for scale in (1.0, 2.0**10):  # powers of two scale without rounding, as long as nothing overflows
        modules.append(seeded(Model))
        fit(modules[-1], EightBitOptimizer(), plugins=scaled(scale, growth_interval=10**6), **clip)
    torch.testing.assert_close(modules[0].head.weight, modules[1].head.weight, rtol=0, atol=1e-5)


class Recorder(pl.Callback):
    """Norms of the gradients that a step used."""

    def __init__(self):
        self.norms, self.largest = [], []

    def on_train_batch_end(self, trainer, pl_module, *_):
        grads = [p.grad.float() for p in pl_module.parameters()]
        self.norms.append(float(torch.linalg.vector_norm(torch.stack([g.norm() for g in grads]))))
        self.largest.append(max(float(g.abs().max()) for g in grads))


@pytest.mark.parametrize("algorithm", ["norm", "value"])
def test_clipping_reaches_the_step_and_is_that_of_a_32_bit_training(algorithm):
    records = []
    clip = {"gradient_clip_val": 1e-3, "gradient_clip_algorithm": algorithm}
    for callbacks in ([], [EightBitOptimizer(optim_bits=8)]):
        record = Recorder()
        records.append(record)
        fit(seeded(Model), record, *callbacks, **clip)
    for record in records:
        values = record.norms if algorithm == "norm" else record.largest
        assert values == pytest.approx([1e-3] * 4, rel=1e-3)
    assert records[0].norms == pytest.approx(records[1].norms, rel=1e-2)


def test_clipping_matters_to_the_weights():
    class Descends(Bare):
        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=1.0)

    module, start = seeded(Descends), seeded(Descends)
    fit(module, EightBitOptimizer(), gradient_clip_val=1e-3)
    pairs = zip(module.parameters(), start.parameters(), strict=True)
    moved = sum((p - q).detach().square().sum() for p, q in pairs) ** 0.5
    assert 0 < moved <= 4e-3 * 1.01


def test_accumulated_batches_are_one_step_of_their_mean():
    class Descends(Bare):
        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=1.0, momentum=0.9)

    halves, whole = seeded(Descends), seeded(Descends)
    trainer = fit(halves, EightBitOptimizer(), accumulate_grad_batches=2)
    assert trainer.global_step == 2
    assert all(state["step"] == 2 for state in trainer.optimizers[0].state.values())
    batches = DataLoader(torch.arange(32), batch_size=16)
    pl.Trainer(max_epochs=1, accelerator="cpu", callbacks=[EightBitOptimizer()], **QUIET).fit(whole, batches)
    for p, q in zip(halves.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=1e-4)
