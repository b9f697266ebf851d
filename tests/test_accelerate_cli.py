"""``accelerate-bnb``: launch hands the section on and drops nothing, config writes what launch takes, estimate."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from accelerate.commands import launch as accelerates

from accelerate_bnb import BnbOptimizerPlugin
from accelerate_bnb.cli import launch, main

ROOT = Path(__file__).parents[1]
CONFIGS = sorted((ROOT / "examples" / "accelerate_configs").glob("*.yaml"))
CHILD = """
import os
from accelerate import Accelerator
from accelerate_bnb import BnbOptimizerPlugin
accelerator, plugin = Accelerator(), BnbOptimizerPlugin()
kind = accelerator.distributed_type.value
print("child", kind, accelerator.num_processes, plugin.optimizer, plugin.lr, plugin.overrides)
"""


@pytest.fixture(autouse=True)
def clean(monkeypatch):
    for name in [name for name in os.environ if name.startswith("ACCELERATE_")]:
        monkeypatch.delenv(name)


@pytest.fixture
def launched(monkeypatch):
    """What launch hands to Accelerate: options, the stripped file's content, variables."""
    seen = {}

    def launch_command(options):
        seen["content"] = yaml.safe_load(Path(options.config_file).read_text()) if options.config_file else None
        seen["options"], *_ = accelerates._validate_launch_command(options)
        seen["variables"] = {k: v for k, v in os.environ.items() if k.startswith("ACCELERATE_")}
        seen["plugin"] = BnbOptimizerPlugin()

    monkeypatch.setattr(launch, "launch_command", launch_command)
    return seen


def fails(capsys, *arguments):
    with pytest.raises(SystemExit) as caught:
        main(list(map(str, arguments)))
    assert caught.value.code == 2
    return capsys.readouterr().err


def run(*arguments, **variables):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HOME": "/nowhere", **variables}
    done = subprocess.run(
        [sys.executable, *map(str, arguments)], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_ready_config_is_one_that_launch_and_accelerate_take(path, launched):
    main(["launch", "--config_file", str(path), "train.py"])
    kind = launched["content"]["distributed_type"]
    assert launched["options"].use_fsdp == (kind == "FSDP")
    assert launched["options"].use_deepspeed == (kind == "DEEPSPEED")
    assert launched["options"].multi_gpu == (kind in ("MULTI_GPU", "MULTI_CPU"))
    assert launched["plugin"].optimizer == "adamw8bit" and launched["plugin"].weight_decay == 0.1
    assert ("head.*" in (launched["plugin"].overrides or {})) == (kind in ("FSDP", "DEEPSPEED"))
    assert not [name for name in os.environ if name.startswith("ACCELERATE_BNB_")], "the variables were the launch's"
    if kind == "FSDP":
        assert (
            launched["options"].fsdp_version == 2 and launched["options"].fsdp_transformer_layer_cls_to_wrap == "Block"
        )


def test_there_is_a_config_for_each_way():
    assert [path.stem for path in CONFIGS] == sorted(
        ["cpu", "cpu_two_processes", "one_gpu", "ddp", "fsdp2", "fsdp2_bf16", "zero2"]
    )


def test_a_variable_that_is_set_wins_over_the_section(monkeypatch, launched):
    monkeypatch.setenv("ACCELERATE_BNB_LR", "0.5")
    main(["launch", "--config_file", str(CONFIGS[0]), "--mixed_precision", "bf16", "train.py", "--lr", "3"])
    assert launched["plugin"].lr == 0.5 and launched["options"].mixed_precision == "bf16"
    assert launched["options"].training_script_args == ["--lr", "3"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bnb_config": {"optimiser": "lion"}}, "unknown key 'optimiser'; did you mean optimizer?"),
        ({"bnb_config": {"optimizer": "lyon"}}, "unknown optimizer 'lyon'; did you mean lion"),
        ({"fsdp_config": {"fsdp_reshard": True}}, "fsdp_config: unknown key 'fsdp_reshard'; did you mean fsdp_"),
        ({"fsdp_config": {"bnb_optimizer": "lion"}}, "fsdp_config: unknown key 'fsdp_bnb_optimizer'"),
        ({"bnb_cfg": {"optimizer": "lion"}}, "unknown section 'bnb_cfg'; did you mean bnb_config?"),
        ({"torch_bnb_config": {}}, "unknown keys (['torch_bnb_config'])"),
    ],
)
def test_a_key_that_nobody_knows_is_an_error_before_anything_starts(tmp_path, capsys, launched, change, message):
    content = {"distributed_type": "FSDP", "num_processes": 2, "mixed_precision": "no", **change}
    (tmp_path / "x.yaml").write_text(yaml.safe_dump(content))
    assert message in fails(capsys, "launch", "--config_file", tmp_path / "x.yaml", "train.py")


def test_a_file_that_is_no_yaml_is_named_with_the_line_and_what_to_quote(tmp_path, capsys, launched):
    path = tmp_path / "x.yaml"
    path.write_text("num_processes: 2\nbnb_config:\n  overrides:\n    *.weight: {lr: 0.1}\n")
    error = fails(capsys, "launch", "--config_file", path, "train.py")
    assert f"{path}, line 4: " in error and "a name that begins with * must be quoted" in error


def test_a_section_that_accelerate_does_not_know_is_named_with_the_users_file(tmp_path, capsys):
    path = tmp_path / "two.yaml"
    path.write_text("compute_environment: LOCAL_MACHINE\ndistributed_type: MULTI_CPU\ntorch_cfg: {optimizer: lion}\n")
    error = fails(capsys, "launch", "--config_file", path, "train.py")
    assert f"The config file at {path} had unknown keys (['torch_cfg'])" in error


def test_help_lists_every_command(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    said = capsys.readouterr().out
    assert all(f"    {command} " in said for command in ("launch", "config", "estimate"))


@pytest.mark.distributed
def test_plain_accelerate_launch_takes_a_file_by_its_variable(tmp_path):
    (tmp_path / "child.py").write_text(CHILD)
    (tmp_path / "bnb.yaml").write_text("optimizer: lion8bit\nlr: 1e-4\noverrides:\n  '*.bias': {lr: 1e-5}\n")
    output = run(
        *("-m", "accelerate.commands.launch", "--cpu", "--num_processes", "1", tmp_path / "child.py"),
        ACCELERATE_BNB_CONFIG_FILE=str(tmp_path / "bnb.yaml"),
        ACCELERATE_BNB_LR="2e-4",
    )
    assert output.splitlines() == ["child NO 1 lion8bit 0.0002 {'*.bias': {'lr': 1e-05}}"]


@pytest.mark.parametrize(
    ("answers", "kind", "section"),
    [
        ([], "NO", {"optimizer": "AdamW8bit", "lr": 0.001, "weight_decay": 0.01, "embeddings_32bit": True}),
        (
            ["gpu", "4", "fsdp2", "bf16", "lyon", "lion8bit", "fast", "1e-4", "0.5", "no", ""],
            "FSDP",
            {"optimizer": "Lion8bit", "lr": 1e-4, "weight_decay": 0.5, "embeddings_32bit": False},
        ),
        (
            ["gpu", "2", "zero2", "", "adagrad", "", "", "", ""],
            "DEEPSPEED",
            {"optimizer": "Adagrad", "lr": 0.01, "weight_decay": 0.0, "embeddings_32bit": True},
        ),
        (
            ["cpu", "2", "", "sgd", "0.1", "", ""],
            "MULTI_CPU",
            {"optimizer": "SGD", "lr": 0.1, "weight_decay": 0.0, "embeddings_32bit": True},
        ),
    ],
)
def test_config_writes_what_launch_takes(tmp_path, monkeypatch, capsys, launched, answers, kind, section):
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(answers)))
    file = tmp_path / "x.yaml"
    main(["config", "--config_file", str(file)])
    said = capsys.readouterr().out
    assert ("did you mean lion" in said) == ("lyon" in answers)
    content = yaml.safe_load(file.read_text())
    assert content["bnb_config"] == section
    main(["launch", "--config_file", str(file), "train.py"])
    assert launched["content"]["distributed_type"] == kind and launched["plugin"].lr == section["lr"]
    assert f"{file} exists; --force replaces it" in fails(capsys, "config", "--config_file", file)


def test_config_asks_for_a_file_of_hints(tmp_path, monkeypatch, capsys):
    (tmp_path / "hints.yaml").write_text('"head.*": {optim_bits: 32}\n')
    answers = ["cpu", "1", "no", "adamw8bit", "", "", "", "nowhere.yaml", str(tmp_path / "hints.yaml")]
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(answers)))
    main(["config", "--config_file", str(tmp_path / "x.yaml")])
    assert "No such file or directory: 'nowhere.yaml'" in capsys.readouterr().out
    plugin = BnbOptimizerPlugin(config_file=str(tmp_path / "x.yaml"))
    assert plugin.overrides == {"head.*": {"optim_bits": 32}}


def test_estimate_prints_the_table_of_a_factory_or_of_a_transformers_config(tmp_path, capsys, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    main(["estimate", "byte_gpt:ByteGPT", "--optimizer", "lion8bit", "--overrides", '{"head.*": {"optim_bits": 32}}'])
    text = capsys.readouterr().out
    assert "ByteGPT, planned for Lion8bit" in text and "embeddings_32bit=False" in text
    main(["estimate", "byte_gpt:ByteGPT", "--embeddings_32bit", "no", "--json"])
    memory = json.loads(capsys.readouterr().out)
    assert memory["embedding_bytes"] == 0 and memory["total"]["planned"] < memory["total"]["state_32bit"] / 3.8
    config = {"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "n_embd": 64, "n_layer": 1, "n_head": 2}
    (tmp_path / "config.json").write_text(json.dumps(config))
    main(["estimate", str(tmp_path)])
    assert "transformer.wte.weight" in capsys.readouterr().out
    assert "expected package.module:factory" in fails(capsys, "estimate", "byte_gpt:")
    assert "--lr='fast': expected a number" in fails(capsys, "estimate", "byte_gpt:ByteGPT", "--lr", "fast")
