"""The examples: they run, and the same model trains the same under both frameworks."""

import re
import sys
from pathlib import Path

import pytest
from accelerate.state import AcceleratorState, GradientState, PartialState
from processes import program

ROOT = Path(__file__).parents[1]
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers", "ignore:.*LeafSpec"),
    pytest.mark.filterwarnings("ignore:.*pin_memory"),
]


@pytest.fixture(autouse=True)
def examples(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    for state in (AcceleratorState, PartialState, GradientState):
        state._reset_state()


def test_accelerate_and_lightning_train_the_same_model_with_the_same_losses():
    import accelerate_gpt
    import lightning_gpt
    from byte_gpt import standard_library_text

    text = standard_library_text()
    args = accelerate_gpt.parser().parse_args(["--cpu", "--steps", "20", "--lr", "1e-3", "--weight_decay", "0.1"])
    losses = accelerate_gpt.training_function(args, text)
    other = lightning_gpt.train("8bit", 0, 20, text, accelerator="cpu", devices=1, strategy="auto", precision="32-true")
    assert len(losses) == 20 and losses == other["losses"]


def test_plain_torch_trains(capsys):
    import plain_torch

    losses, optimizer = plain_torch.train(steps=12)
    assert losses[-1] < losses[0] - 0.5
    assert "lr=0.0005 by override_named('head.weight')" in capsys.readouterr().out
    assert optimizer.param_groups[0]["lr"] == pytest.approx(1e-4)


@pytest.mark.distributed
@pytest.mark.parametrize(("config", "processes"), [("cpu", 1), ("cpu_two_processes", 2)])
def test_the_ready_configs_for_the_cpu_run_the_example(config, processes, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    path = ROOT / "examples/accelerate_configs" / f"{config}.yaml"
    script = [ROOT / "examples/accelerate_gpt.py", "--steps", "4", "--save", tmp_path / "state"]
    command = [sys.executable, "-m", "accelerate_bnb", "launch", "--config_file", path, *script]
    found = re.findall(r"(\d) processes, loss (\d\.\d+); state of AdamW8bit takes", program(command))
    assert [(int(count), 4 < float(loss) < 6) for count, loss in found] == [(processes, True)]
    assert (tmp_path / "state" / "optimizer.bin").exists()
