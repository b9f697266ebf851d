"""A run that ends before its time and goes on: as if nothing had happened, and nothing lost in silence."""

import copy
import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint, OnExceptionCheckpoint
from lit import Model, bits, fit, same_weights, seeded

import torch_bnb as bnb
from lightning_bnb import EightBitOptimizer, optim_overrides
from torch_bnb.cli import main

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*does not have many workers", "ignore:.*LeafSpec", "ignore:.*exists and is not empty"
)

HEAD_32 = {"head.weight": {"optim_bits": 32, "betas": (0.8, 0.9)}}


@optim_overrides({"head.bias": {"lr": 0.01}})
class Hinted(Model):
    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), lr=1e-3)
        return [optimizer], [torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)]


def saved(tmp_path, *callbacks, epochs=2, **options):
    """Path of the checkpoint of a run that ended early."""
    options = {"enable_checkpointing": True, "default_root_dir": tmp_path, **options}
    return fit(seeded(Hinted), *callbacks, epochs=epochs, **options).checkpoint_callback.best_model_path


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "bf16-true"])
def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(precision, tmp_path):
    options = {"precision": precision}
    whole, resumed = seeded(Hinted), seeded(Hinted)
    fit(whole, EightBitOptimizer(overrides=HEAD_32), epochs=4, **options)
    path = saved(tmp_path, EightBitOptimizer(overrides=HEAD_32), **options)
    torch.manual_seed(7)
    trainer = fit(resumed, EightBitOptimizer(overrides=HEAD_32), epochs=4, ckpt_path=path, **options)
    assert same_weights(whole, resumed)
    assert bits(trainer, resumed.head.weight) == 32


def test_everything_that_the_callback_saves_loads_with_weights_only(tmp_path):
    overrides = {"head.*": {"betas": (0.8, 0.9), "lr": 1e-4, "lr_follows_schedule": False, "optim_bits": 32}}
    path = saved(tmp_path, EightBitOptimizer(overrides=overrides))
    content = torch.load(path, weights_only=True)
    (kept,) = [state for key, state in content["callbacks"].items() if "EightBitOptimizer" in key]
    assert kept["choices"]["head.weight"] == {**overrides["head.*"], "optim_bits": 32}
    assert kept["choices"]["embed.weight"] == {"optim_bits": 32}
    assert content["optimizer_states"][0]["state"][0]["exp_avg"].dtype == torch.float32


def test_other_overrides_than_at_save_time_hold_and_are_named(tmp_path):
    path = saved(tmp_path, EightBitOptimizer(overrides=HEAD_32, embeddings_32bit=False))
    now = EightBitOptimizer(overrides={"embed.weight": {"optim_bits": 32}, "head.bias": {"lr": 0.5}})
    resumed = seeded(Hinted)
    with pytest.warns(UserWarning, match="others than at the time of the checkpoint") as said:
        trainer = fit(resumed, now, epochs=3, ckpt_path=path)
    (text,) = [str(w.message) for w in said if "others than at the time" in str(w.message)]
    assert "head.weight: betas (0.8, 0.9) -> the group's, optim_bits 32 -> 8" in text
    assert "embed.weight: optim_bits 8 -> 32" in text
    assert "head.bias: lr 0.01 -> 0.5" in text
    assert bits(trainer, resumed.head.weight) == 8 and bits(trainer, resumed.embed.weight) == 32
    assert all(state["step"] == 12 for state in trainer.optimizers[0].state.values()), "converted, not made anew"


def test_the_same_overrides_are_not_worth_a_word(tmp_path, recwarn):
    path = saved(tmp_path, EightBitOptimizer(overrides=HEAD_32))
    fit(seeded(Hinted), EightBitOptimizer(overrides=HEAD_32), epochs=3, ckpt_path=path)
    assert not [w for w in recwarn if "time of the checkpoint" in str(w.message)]


def test_converted_state_is_the_decoded_one(tmp_path):
    path = saved(tmp_path, EightBitOptimizer())
    stored = torch.load(path, weights_only=True)["optimizer_states"][0]["state"][1]
    wanted = bnb.codec.dequantize_blockwise(stored["exp_avg_codes"], stored["exp_avg_absmax"], signed=True)
    seen = {}

    class Look(pl.Callback):
        def on_train_start(self, trainer, pl_module):
            seen.update(copy.deepcopy(trainer.optimizers[0].state[pl_module.head.weight]))

    with pytest.warns(UserWarning, match="head.weight: optim_bits 8 -> 32"):
        now = EightBitOptimizer(overrides={"head.weight": {"optim_bits": 32}})
        fit(seeded(Hinted), now, Look(), epochs=3, ckpt_path=path)
    assert torch.equal(seen["exp_avg"], wanted) and seen["step"] == 8


def test_a_checkpoint_of_torchs_optimizer_goes_on_in_8_bits(tmp_path):
    path = saved(tmp_path)
    resumed = seeded(Hinted)
    trainer = fit(resumed, EightBitOptimizer(), epochs=3, ckpt_path=path)
    assert bits(trainer, resumed.head.weight) == 8
    assert trainer.optimizers[0].state[resumed.head.weight]["step"] == 12


def test_the_way_back_to_torchs_optimizer_is_a_conversion(tmp_path):
    path, plain = saved(tmp_path, EightBitOptimizer()), str(tmp_path / "plain.ckpt")
    with pytest.raises(KeyError, match="exp_avg"):
        fit(seeded(Hinted), epochs=3, ckpt_path=path)
    main(["convert", path, plain, "--to", "torch", "--rule", "adamw"])
    (optimizer,) = fit(seeded(Hinted), epochs=3, ckpt_path=plain).optimizers
    assert type(optimizer) is torch.optim.AdamW and all(state["step"] == 12 for state in optimizer.state.values())


def test_a_checkpoint_written_after_the_fit_knows_the_choices_too(tmp_path):
    trainer = fit(seeded(Hinted), EightBitOptimizer(overrides=HEAD_32), default_root_dir=tmp_path)
    trainer.save_checkpoint(tmp_path / "late.ckpt")
    content = torch.load(tmp_path / "late.ckpt", weights_only=True)
    (kept,) = content["callbacks"].values()
    assert kept["choices"]["head.weight"]["optim_bits"] == 32


class Fails(pl.Callback):
    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == 3:
            raise ZeroDivisionError


@pytest.mark.parametrize("writer", [partial(ModelCheckpoint, save_on_exception=True), OnExceptionCheckpoint])
def test_a_checkpoint_written_on_an_exception_knows_the_choices_too(writer, tmp_path):
    callbacks = [EightBitOptimizer(overrides=HEAD_32), Fails(), writer(tmp_path)]
    with pytest.raises(ZeroDivisionError):
        fit(seeded(Hinted), *callbacks, enable_checkpointing=True)
    (path,) = tmp_path.glob("*.ckpt")
    with pytest.warns(UserWarning, match="head.weight: betas .* optim_bits 32 -> 8"):
        fit(seeded(Hinted), EightBitOptimizer(), epochs=2, ckpt_path=path)


def test_a_fit_that_an_impossible_hint_ends_says_so_and_gives_the_module_back(manager):
    class Late(pl.Callback):
        def on_train_batch_end(self, trainer, module, *_):
            manager.override_config(module.head.weight, "momentum", 0.5)

    module = seeded(Hinted)
    with pytest.raises(bnb.OverrideError, match="momentum") as raised:
        fit(module, EightBitOptimizer(), Late())
    assert raised.value.__context__ is None and "configure_optimizers" not in vars(module)


# A run that is killed -------------------------------------------------------------------------------------------------


class Stream:
    """Batches by number, endless, and its place in a checkpoint: Lightning keeps it for loaders that have a state."""

    def __init__(self):
        self.next = 0

    def __iter__(self):
        return self

    def __next__(self):
        generator = torch.Generator().manual_seed(self.next)
        self.next += 1
        return torch.randint(100, (8,), generator=generator)

    def __len__(self):
        return 16

    def state_dict(self):
        return {"next": self.next}

    def load_state_dict(self, state):
        self.next = state["next"]


class Kill(pl.Callback):
    """Ends the process as a power cut does."""

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == 13:
            os.kill(os.getpid(), signal.SIGKILL)


def train(folder, kill, ckpt_path=None):
    """20 steps in two epochs, with a checkpoint at every fifth step."""
    module = seeded(Hinted)
    checkpoint = ModelCheckpoint(folder, every_n_train_steps=5, save_top_k=-1, filename="{step}")
    callbacks = [EightBitOptimizer(overrides=HEAD_32), checkpoint, *([Kill()] if kill else [])]
    trainer = pl.Trainer(
        max_steps=20,
        accelerator="cpu",
        callbacks=callbacks,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, Stream(), ckpt_path=ckpt_path, weights_only=True)
    return module


def test_a_run_that_is_killed_in_mid_epoch_resumes_bit_for_bit(tmp_path):
    whole = train(tmp_path / "whole", kill=False)
    command = [sys.executable, __file__, str(tmp_path / "killed")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    checkpoints = sorted(path.name for path in (tmp_path / "killed").iterdir())
    assert checkpoints == ["step=10.ckpt", "step=5.ckpt"]
    resumed = train(tmp_path / "killed", kill=False, ckpt_path=tmp_path / "killed" / "step=10.ckpt")
    assert same_weights(whole, resumed)


if __name__ == "__main__":
    torch.set_num_threads(1)
    train(Path(sys.argv[1]), kill=True)
