"""LightningCLI: the callback and its hints from YAML and the command line, and what is refused before training."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lit import QUIET, Bare, Model, bits, data

import torch_bnb as bnb
from lightning_bnb import EightBitOptimizer, OptimizerStateMonitor

pytestmark = pytest.mark.filterwarnings("ignore:.*does not have many workers", "ignore:.*LeafSpec")

ROOT = Path(__file__).parents[1]
EXAMPLE = ROOT / "examples" / "lightning_cli"
PAGE = (ROOT / "examples" / "README.md").read_text()
CONFIG = """
trainer:
  callbacks:
    - class_path: lightning_bnb.EightBitOptimizer
      init_args:
        overrides:
          "*.embed*.weight": {optim_bits: 8, lr: 1e-4}
          head.bias: {betas: [0.9, 0.98], lr_scale: 0.5}
        strict: true
        summary: false
optimizer: {class_path: torch_bnb.optim.AdamW, init_args: {lr: 0.01, optim_bits: 8, betas: [0.8, 0.9]}}
lr_scheduler: {class_path: torch.optim.lr_scheduler.StepLR, init_args: {step_size: 1, gamma: 0.5}}
"""


def cli(*arguments, model=Bare):
    return LightningCLI(
        model,
        args=list(arguments),
        run=False,
        save_config_callback=None,
        trainer_defaults={"max_epochs": 1, "accelerator": "cpu", **QUIET},
    )


def trained(made):
    made.trainer.fit(made.model, data())
    return made.trainer


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(CONFIG)
    return f"--config={path}"


def test_a_yaml_file_configures_callback_hints_optimizer_and_schedule(config, manager):
    made = cli(config)
    trainer = trained(made)
    (callback,) = [c for c in trainer.callbacks if isinstance(c, EightBitOptimizer)]
    assert callback.overrides["head.bias"] == {"betas": (0.9, 0.98), "lr_scale": 0.5}
    rows = manager.explain(trainer.optimizers[0])
    assert type(trainer.optimizers[0]) is bnb.optim.AdamW
    assert rows["embed.weight"].lr == pytest.approx(0.5e-4), "after a step of the schedule"
    assert rows["head.bias"].overrides == {"betas": (0.9, 0.98), "lr_scale": 0.5}
    assert bits(trainer, made.model.embed.weight) == 8 and bits(trainer, made.model.head.weight) == 8


def test_the_command_line_configures_the_same(manager):
    made = cli(
        "--optimizer=torch_bnb.optim.AdamW8bit",
        "--optimizer.lr=0.5",
        "--trainer.callbacks+=lightning_bnb.EightBitOptimizer",
        '--trainer.callbacks.overrides={"head.weight": {"optim_bits": 32}}',
        "--trainer.callbacks+=lightning_bnb.OptimizerStateMonitor",
        "--trainer.callbacks.every_n_steps=7",
    )
    monitors = [c for c in made.trainer.callbacks if isinstance(c, OptimizerStateMonitor)]
    assert [m.every_n_steps for m in monitors] == [7]
    made.trainer.callbacks.remove(monitors[0])
    trainer = trained(made)
    assert bits(trainer, made.model.head.weight) == 32 and trainer.optimizers[0].param_groups[0]["lr"] == 0.5


def test_the_callbacks_own_optimizer_comes_from_yaml_too(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(
        """
trainer:
  callbacks:
    - class_path: lightning_bnb.EightBitOptimizer
      init_args: {optimizer: {class_path: torch_bnb.optim.Lion8bit, init_args: {lr: 1e-3}}, summary: false}
"""
    )
    trainer = trained(cli(f"--config={path}", model=Model))
    assert type(trainer.optimizers[0]) is bnb.optim.Lion8bit and trainer.optimizers[0].param_groups[0]["lr"] == 1e-3


def test_a_torch_optimizer_from_the_command_line_is_replaced():
    made = cli(
        "--optimizer=torch.optim.AdamW", "--optimizer.lr=0.5", "--trainer.callbacks+=lightning_bnb.EightBitOptimizer"
    )
    assert type(trained(made).optimizers[0]) is bnb.optim.AdamW


def test_a_hint_that_the_prebuilt_optimizer_cannot_honour_is_a_misconfiguration(config):
    made = cli(config, '--trainer.callbacks.overrides={"head.bias": {"momentum": 0.5}}')
    with pytest.raises(MisconfigurationException, match="AdamW has no option 'momentum'"):
        trained(made)
    assert [type(o) for o in made.trainer.optimizers] == []


@pytest.mark.parametrize(
    ("typo", "said"),
    [
        (("optim_bits: 8, lr: 1e-4", "optim_bit: 8"), "optim_bit"),
        (("optim_bits: 8, lr: 1e-4", "lr: much"), "much"),
        (("strict: true", "stricct: true"), "stricct"),
        (("lr: 0.01, optim_bits: 8", "lr: 0.01, optim_bit: 8"), "optim_bit"),
        (("betas: [0.8, 0.9]", "betas: 0.8"), "betas"),
        (("lightning_bnb.EightBitOptimizer", "lightning_bnb.EightBitOptimiser"), "EightBitOptimiser"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_typo_is_refused_when_the_file_is_read(typo, said, tmp_path, capsys):
    assert CONFIG.count(typo[0]) == 1
    path = tmp_path / "config.yaml"
    path.write_text(CONFIG.replace(*typo))
    with pytest.raises(SystemExit) as exit:
        cli(f"--config={path}")
    assert exit.value.code == 2 and said in capsys.readouterr().err


def test_a_printed_config_gives_the_same_again(config, tmp_path, capsys):
    with pytest.raises(SystemExit):
        cli(config, "--print_config")
    printed = tmp_path / "printed.yaml"
    printed.write_text(capsys.readouterr().out)
    (callback,) = yaml.safe_load(printed.read_text())["trainer"]["callbacks"]
    assert callback["init_args"]["overrides"]["*.embed*.weight"] == {"optim_bits": 8, "lr": 1e-4}
    with pytest.raises(SystemExit):
        cli(f"--config={printed}", "--print_config")
    assert capsys.readouterr().out == printed.read_text()
    trainer = trained(cli(f"--config={printed}"))
    assert trainer.optimizers[0].param_groups[0]["betas"] == (0.8, 0.9)


def test_the_example_runs_as_it_is(tmp_path):
    command = [sys.executable, str(EXAMPLE / "main.py"), "fit", "--config", str(EXAMPLE / "config.yaml")]
    shorter = ["--trainer.limit_train_batches=40", "--trainer.limit_val_batches=1"]
    done = subprocess.run([*command, *shorter], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "optim_bits=32 by EightBitOptimizer('*.token.weight')" in done.stdout
    said = re.search(
        r"^EightBitOptimizer: state .*measured.*$", PAGE.partition("## lightning_cli")[2], flags=re.MULTILINE
    )
    assert said[0] in done.stdout
    (metrics,) = (tmp_path / "results").glob("lightning_cli/**/metrics.csv")
    keys = {"lr-AdamW", "lr-AdamW/gpt.token.weight", "optimizer_state/worst/quantization_error", "val_loss"}
    assert keys <= {*metrics.read_text().splitlines()[0].split(",")}
    (saved,) = (tmp_path / "results").glob("lightning_cli/**/config.yaml")
    assert yaml.safe_load(saved.read_text())["optimizer"]["init_args"]["lr"] == 1e-3
