"""What reaches the loggers: the quality of the states, and rates of single parameters."""

import pytest
import torch
from lightning.pytorch.callbacks import Callback, LearningRateMonitor
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lit import QUIET, Bare, Model, bits, csv_columns, data, fit
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import torch_bnb as bnb
from lightning_bnb import EightBitOptimizer, OptimizerStateMonitor

pytestmark = pytest.mark.filterwarnings("ignore:.*does not have many workers", "ignore:.*LeafSpec")


def tensorboard_columns(logger):
    """The same, read from TensorBoard's event file."""
    logger.finalize("success")
    events = EventAccumulator(logger.log_dir).Reload()
    return {key: [(e.step, e.value) for e in events.Scalars(key)] for key in events.Tags()["scalars"]}


def test_the_quality_of_the_states_reaches_csv_and_tensorboard(tmp_path):
    loggers = [CSVLogger(tmp_path / "csv"), TensorBoardLogger(tmp_path / "tb")]
    monitor = OptimizerStateMonitor(every_n_steps=3, per_parameter=True)
    trainer = fit(Model(), EightBitOptimizer(), monitor, epochs=2, logger=loggers)
    written, seen = csv_columns(loggers[0]), tensorboard_columns(loggers[1])
    for columns in (written, seen):
        assert [step for step, _ in columns["optimizer_state/state_bytes"]] == [0, 3, 6]
        state = columns["optimizer_state/state_bytes"]
        assert [value for _, value in state] == [0, *[bnb.report(trainer.optimizers[0]).total.state] * 2]
        for where in ("group0", "worst", "head.weight"):
            values = [value for _, value in columns[f"optimizer_state/{where}/quantization_error"]]
            assert all(0 < value < 0.02 for value in values) and len(values) == 3
            assert all(0 <= value <= 1 for _, value in columns[f"optimizer_state/{where}/unmoved_codes"])
            assert all(value > 0 for _, value in columns[f"optimizer_state/{where}/update_to_weight"])
        assert {value for _, value in columns["optimizer_state/embed.weight/quantization_error"]} == {0.0}, "32 bits"
    assert written.keys() <= seen.keys() | {"epoch"}
    assert monitor.measurements["optimizer_state"].worst("quantization_error")[0] == "head.weight"


def test_the_measured_gradients_are_the_clipped_ones(tmp_path):
    class Plain(Bare):
        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=1.0)

    module, monitor = Plain(), OptimizerStateMonitor(every_n_steps=1)
    norm = torch.linalg.vector_norm(torch.cat([p.detach().flatten() for p in module.parameters()]))
    options = {"gradient_clip_val": 1e-3, "max_steps": 1, "logger": CSVLogger(tmp_path)}
    fit(module, EightBitOptimizer(), monitor, **options)
    found = monitor.measurements["optimizer_state"].total
    assert found.update_to_weight == pytest.approx(1e-3 / float(norm), rel=1e-2)


def test_the_monitor_does_not_change_the_training(tmp_path):
    modules = []
    for callbacks in ([], [OptimizerStateMonitor(every_n_steps=1)]):
        torch.manual_seed(0)
        modules.append(Model())
        fit(modules[-1], EightBitOptimizer(), *callbacks, logger=CSVLogger(tmp_path))
    assert torch.equal(modules[0].head.weight, modules[1].head.weight)


def test_accumulated_batches_count_as_one_step_and_nothing_stays_on_the_optimizer(tmp_path):
    logger = CSVLogger(tmp_path)
    monitor = OptimizerStateMonitor(every_n_steps=1)
    trainer = fit(Model(), EightBitOptimizer(), monitor, accumulate_grad_batches=2, logger=logger)
    assert len(csv_columns(logger)["optimizer_state/state_bytes"]) == trainer.global_step == 2
    assert not trainer.optimizers[0]._optimizer_step_pre_hooks


def test_two_optimizers_have_keys_of_their_own(tmp_path):
    class Two(Bare):
        automatic_optimization = False

        def training_step(self, batch, index):
            loss = torch.nn.functional.cross_entropy(self.head(self.embed(batch)), batch)
            self.manual_backward(loss)
            for optimizer in self.optimizers():
                optimizer.step()
                optimizer.zero_grad()

        def configure_optimizers(self):
            return [torch.optim.Adam(self.embed.parameters()), torch.optim.Adam(self.head.parameters())]

    logger = CSVLogger(tmp_path)
    fit(Two(), EightBitOptimizer(), OptimizerStateMonitor(), logger=logger)
    columns = csv_columns(logger)
    assert "optimizer_state/group0/update_to_weight" in columns
    assert "optimizer_state-1/group0/update_to_weight" in columns


def test_what_cannot_be_monitored_is_said(tmp_path):
    with pytest.raises(MisconfigurationException, match="every_n_steps=0: expected 1 or more"):
        OptimizerStateMonitor(every_n_steps=0)
    with pytest.raises(MisconfigurationException, match="the Trainer has no logger"):
        fit(Model(), EightBitOptimizer(), OptimizerStateMonitor())
    with pytest.warns(UserWarning, match="AdamW is none of torch_bnb"):
        fit(Model(), OptimizerStateMonitor(), logger=CSVLogger(tmp_path))


class Scheduled(Model):
    def configure_optimizers(self):
        optimizer = super().configure_optimizers()
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)
        return [optimizer], [{"scheduler": scheduler, "interval": self.interval, "name": self.name}]


@pytest.mark.parametrize("interval", ["step", "epoch"])
@pytest.mark.parametrize("name", [None, "rate"])
def test_own_rates_stand_beside_those_of_the_learning_rate_monitor(interval, name, tmp_path):
    module, logger = Scheduled(), CSVLogger(tmp_path)
    module.interval, module.name = interval, name
    callback = EightBitOptimizer(overrides={"head.weight": {"lr": 0.5}, "head.bias": {"lr_scale": 3.0}})
    fit(module, callback, LearningRateMonitor(), epochs=2, logger=logger, log_every_n_steps=2)
    columns = csv_columns(logger)
    key = name or "lr-AdamW"
    assert len(columns[key]) == (4 if interval == "step" else 2)
    assert columns[f"{key}/head.weight"] == [(s, pytest.approx(500 * lr)) for s, lr in columns[key]]
    assert columns[f"{key}/head.bias"] == [(s, pytest.approx(3 * lr)) for s, lr in columns[key]]
    assert f"{key}/embed.weight" not in columns, "it has the group's"


@pytest.mark.parametrize("logging_interval", ["step", "epoch"])
def test_the_monitors_own_interval_holds_for_optimizers_without_a_schedule(logging_interval, tmp_path):
    logger = CSVLogger(tmp_path)
    callback = EightBitOptimizer(overrides={"head.weight": {"lr": 0.5}})
    fit(Model(), callback, LearningRateMonitor(logging_interval), epochs=2, logger=logger, log_every_n_steps=1)
    columns = csv_columns(logger)
    assert columns["lr-AdamW/head.weight"] == [(step, 0.5) for step, _ in columns["lr-AdamW"]]
    assert len(columns["lr-AdamW"]) == (8 if logging_interval == "step" else 2)


def test_a_callback_of_the_same_name_is_none_of_lightnings(tmp_path):
    theirs = type("LearningRateMonitor", (Callback,), {"__module__": "users_own"})()
    logger = CSVLogger(tmp_path)
    callback = EightBitOptimizer(overrides={"head.weight": {"lr": 0.5}})
    fit(Model(), callback, theirs, logger=logger, log_every_n_steps=1)
    assert set(csv_columns(logger)) == {"epoch", "loss"}


def test_without_a_learning_rate_monitor_no_rates_are_logged(tmp_path):
    logger = CSVLogger(tmp_path)
    fit(Model(), EightBitOptimizer(overrides={"head.weight": {"lr": 0.5}}), logger=logger, log_every_n_steps=1)
    assert set(csv_columns(logger)) == {"epoch", "loss"}


def test_names_are_those_of_the_monitor_also_for_two_optimizers_of_a_kind(tmp_path):
    class Two(Bare):
        automatic_optimization = False

        def training_step(self, batch, _):
            self.optimizers()

        def configure_optimizers(self):
            return [torch.optim.Adam(self.embed.parameters()), torch.optim.Adam(self.head.parameters())]

    logger = CSVLogger(tmp_path)
    overrides = {"head.bias": {"lr": 0.5}, "embed.weight": {"lr": 0.25}}
    fit(Two(), EightBitOptimizer(overrides=overrides), LearningRateMonitor("step"), logger=logger, log_every_n_steps=1)
    columns = csv_columns(logger)
    assert columns["lr-Adam"] and columns["lr-Adam-1"]
    assert columns["lr-Adam/embed.weight"][0][1] == 0.25 and columns["lr-Adam-1/head.bias"][0][1] == 0.5


def test_a_trainer_of_pytorch_lightning_does_the_same(tmp_path):
    import pytorch_lightning

    class Old(pytorch_lightning.LightningModule):
        training_step, configure_optimizers = Model.training_step, Model.configure_optimizers

        def __init__(self):
            super().__init__()
            self.embed, self.head = torch.nn.Embedding(100, 64), torch.nn.Linear(64, 100)

    logger = pytorch_lightning.loggers.CSVLogger(tmp_path)
    callbacks = [
        EightBitOptimizer(overrides={"head.weight": {"lr": 0.5}}),
        pytorch_lightning.callbacks.LearningRateMonitor(),
    ]
    options = {**QUIET, "logger": logger, "max_epochs": 1, "accelerator": "cpu", "log_every_n_steps": 2}
    trainer = pytorch_lightning.Trainer(callbacks=callbacks, **options)
    module = Old()
    trainer.fit(module, data())
    assert bits(trainer, module.head.weight) == 8
    columns = csv_columns(logger)
    assert columns["lr-AdamW/head.weight"] == [(step, 0.5) for step, _ in columns["lr-AdamW"]]
