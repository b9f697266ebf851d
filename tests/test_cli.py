"""`python -m torch_bnb doctor`, `plan`, `inspect` and `convert`: what a user types, and what comes of it."""

import itertools
import json
import re
import subprocess
import sys

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import nn

import torch_bnb as bnb
from lightning_bnb import EightBitOptimizer
from torch_bnb import ops
from torch_bnb.cli import main


@pytest.fixture
def shell(capsys):
    """Runs a command line; returns (exit code, stdout, stderr)."""

    def run(*arguments):
        try:
            main([str(argument) for argument in arguments])
            code = 0
        except SystemExit as stop:
            code = stop.code
        return code, *capsys.readouterr()

    return run


def trained(cls=bnb.optim.AdamW, steps=3, **options):
    params = [torch.randn(shape).requires_grad_() for shape in [(64, 64), (50,), (5001,)]]
    optimizer = cls(params, lr=1e-3, **options)
    for _ in range(steps):
        for p in params:
            p.grad = torch.randn_like(p)
        optimizer.step()
    return optimizer


def saved(tmp_path, content, name="in.pt"):
    bnb.checkpoint.save(content, tmp_path / name)
    return tmp_path / name


def test_the_doctor_finds_everything_in_order(shell):
    code, out, err = shell("doctor")
    assert (code, err) == (0, "")
    assert re.search(rf"^torch +{re.escape(torch.__version__)}$", out, re.MULTILINE)
    assert re.search(r"^CPU kernels +(avx512|avx2|baseline), \d+ threads$", out, re.MULTILINE)
    assert all(name in out for name in bnb.optim.rules.__all__)
    code, out, _ = shell("doctor", "--json")
    assert code == 0 and json.loads(out)["a step on the CPU"].startswith("works")


def test_the_doctor_notices_kernels_that_do_nothing(shell, monkeypatch):
    monkeypatch.setattr(ops, "update_by_address", lambda *arguments, **keywords: None)
    code, out, err = shell("doctor")
    assert code == 2 and err.endswith("a step on the CPU: see above\n")
    assert "fails: Adagrad: in 8 bits it ends nan of its way from where it ends in 32 bits" in out


def test_the_doctor_notices_8_bit_steps_that_are_wrong(shell, monkeypatch):
    update, calls = ops.update_by_address, itertools.count()

    def first_steps_too_long(rule, headers, scalars, **common):  # those in 8 bits
        update(rule, headers, {**scalars, "lr": scalars["lr"] * (1.2 if next(calls) < 3 else 1)}, **common)

    monkeypatch.setattr(ops, "update_by_address", first_steps_too_long)
    code, out, _ = shell("doctor")
    assert code == 2 and "fails: Adagrad: in 8 bits it ends 0.2" in out


def test_a_bare_state_is_described(tmp_path, shell):
    optimizer = trained(optim_bits=8)
    code, out, err = shell("inspect", saved(tmp_path, optimizer.state_dict()))
    assert (code, err) == (0, "")
    assert "in the form of torch_bnb" in out and "rule: adam or adamw or lamb" in out
    assert "parameters: 3, 3 with state, 3 steps" in out and "lr=0.001" in out
    assert re.search(r"exp_avg\s+8 and 32\s+3\s+9147", out)


def test_json_says_the_same_in_numbers(tmp_path, shell):
    optimizer = trained(optim_bits=8)
    content = {"epoch": 3, "optimizers": {"g": optimizer.state_dict(), "d": trained(torch.optim.SGD).state_dict()}}
    code, out, _ = shell("inspect", saved(tmp_path, content), "--json")
    first, second = json.loads(out)
    assert code == 0
    assert (first["where"], first["form"], first["steps"]) == ("['optimizers']['g']", "torch_bnb", [3, 3])
    assert (second["where"], second["form"], second["rules"]) == ("['optimizers']['d']", "torch.optim", ["sgd"])
    assert sum(row["bytes"] for row in first["states"]) == bnb.report(optimizer).total.state
    assert sum(row["bytes_32bit"] for row in first["states"]) == 2 * 4 * (64 * 64 + 50 + 5001)


def test_states_that_cannot_be_read_are_printed_and_then_an_error(tmp_path, shell):
    content = {"good": trained().state_dict(), "other": trained(torch.optim.AdamW, amsgrad=True).state_dict()}
    code, out, err = shell("inspect", saved(tmp_path, content))
    assert code == 2 and err.endswith("in.pt: 1 of 2 states cannot be read: ['other']\n")
    assert "['good']: in the form of torch_bnb" in out and "['other']: in the form of torch.optim" in out


class Net(LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(64, 64)

    def training_step(self, batch, _):
        return self.layer(batch).square().mean()

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), lr=1e-2)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1)]


def fit(folder, callbacks, epochs, ckpt_path=None):
    trainer = Trainer(
        max_epochs=epochs, callbacks=callbacks, default_root_dir=folder, logger=False, accelerator="cpu",
        enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
    )  # fmt: skip
    torch.manual_seed(0)
    net = Net()
    trainer.fit(net, torch.utils.data.DataLoader(torch.randn(8, 64), batch_size=2), ckpt_path=ckpt_path)
    return net, trainer


def test_a_lightning_checkpoint_goes_to_torch_and_is_resumed_by_torchs_optimizer(tmp_path, shell):
    _, trainer = fit(tmp_path, [EightBitOptimizer()], 1)
    trainer.save_checkpoint(tmp_path / "eight.ckpt")
    code, out, _ = shell("inspect", tmp_path / "eight.ckpt")
    assert code == 0 and "['optimizer_states'][0]: in the form of torch_bnb" in out
    arguments = ("convert", tmp_path / "eight.ckpt", tmp_path / "plain.ckpt", "--to", "torch", "--rule", "adamw")
    code, out, err = shell(*arguments)
    assert (code, out) == (0, f"{tmp_path / 'plain.ckpt'}: 1 optimizer state for torch.optim\n"), err
    before, after = (bnb.checkpoint.load(tmp_path / name) for name in ("eight.ckpt", "plain.ckpt"))
    assert before.keys() == after.keys() and before["lr_schedulers"] == after["lr_schedulers"]
    _, resumed = fit(tmp_path, [], 2, tmp_path / "plain.ckpt")
    (optimizer,) = resumed.optimizers
    assert type(optimizer) is torch.optim.AdamW
    assert all(state["step"] == 8 for state in optimizer.state.values())


@pytest.mark.parametrize("to", ["torch_bnb", "torch", "bitsandbytes"])
def test_everything_else_in_the_file_stays(tmp_path, shell, to):
    weights = nn.Linear(4, 4).state_dict()
    content = {"model": weights, "note": ("a", [1, 2]), "states": [trained(optim_bits=8).state_dict()]}
    code, *_ = shell("convert", saved(tmp_path, content), tmp_path / "out.pt", "--to", to, "--rule", "adamw")
    assert code == 0
    result = bnb.checkpoint.load(tmp_path / "out.pt")
    assert type(result["model"]) is type(weights) and all(torch.equal(result["model"][k], weights[k]) for k in weights)
    assert result["note"] == content["note"]


def test_bits_can_be_chosen(tmp_path, shell):
    source = saved(tmp_path, trained(torch.optim.AdamW).state_dict())
    for bits, key in ((8, "exp_avg_codes"), (32, "exp_avg")):
        target = tmp_path / f"{bits}.pt"
        assert shell("convert", source, target, "--to", "torch_bnb", "--optim-bits", bits)[0] == 0
        assert key in bnb.checkpoint.load(target)["state"][0]


def test_an_existing_file_is_replaced_only_by_force(tmp_path, shell):
    source, target = saved(tmp_path, trained().state_dict()), saved(tmp_path, {"old": 1}, "out.pt")
    code, out, err = shell("convert", source, target, "--to", "bitsandbytes")
    assert (code, out, err) == (2, "", f"python -m torch_bnb convert: {target} exists; --force replaces it\n")
    assert bnb.checkpoint.load(target) == {"old": 1}
    assert shell("convert", source, target, "--to", "bitsandbytes", "--force")[0] == 0
    assert "state" in bnb.checkpoint.load(target)


def test_an_ambiguous_rule_is_asked_for(tmp_path, shell):
    source = saved(tmp_path, {"opt": trained().state_dict()})
    code, _, err = shell("convert", source, tmp_path / "out.pt", "--to", "torch")
    assert code == 2
    assert err.endswith("in.pt: ['opt']: torch_bnb: the state may be of adam or adamw; say which by --rule\n")
    assert not (tmp_path / "out.pt").exists()


def test_what_stays_behind_is_said(tmp_path, shell):
    source = saved(tmp_path, trained(percentile_clipping=50, maximize=True).state_dict())
    code, _, err = shell("convert", source, tmp_path / "out.pt", "--to", "bitsandbytes", "--rule", "adamw")
    assert code == 0
    assert err.splitlines() == [
        "warning: bitsandbytes' file has no place for 'grad_norms', the history of percentile_clipping; "
        "it stays behind",
        "warning: bitsandbytes' file has no place for maximize=True; it stays behind",
        "warning: bitsandbytes' file has no place for percentile_clipping=50; it stays behind",
    ]


def cut(path):
    path.write_bytes(path.read_bytes()[:1000])


def text(path):
    path.write_text("hello")


def folder(path):
    path.unlink()
    path.mkdir()


FAILURES = [
    (lambda path: path.unlink(), "No such file"),
    (cut, "in.pt: it is damaged or no checkpoint"),
    (text, "in.pt: it is no checkpoint of torch.save, whose files do not begin with b'h'"),
    (folder, "in.pt is a folder; expected a file of torch.save, as optimizer.bin in one of Accelerate's"),
    (lambda path: torch.save({"weights": torch.zeros(3)}, path), "in.pt: there is no optimizer state in it"),
    (lambda path: torch.save({"model": nn.Linear(2, 2)}, path), "it refers to torch.nn.modules.linear.Linear"),
]


@pytest.mark.parametrize("command", [("inspect",), ("convert", "--to", "torch", "--rule", "adamw")], ids=lambda c: c[0])
@pytest.mark.parametrize(("damage", "message"), FAILURES, ids=[message for _, message in FAILURES])
def test_a_failure_is_one_line_and_code_2(tmp_path, shell, command, damage, message):
    source = saved(tmp_path, trained().state_dict())
    damage(source)
    target = [tmp_path / "out.pt"] if command[0] == "convert" else []
    code, out, err = shell(command[0], source, *target, *command[1:])
    assert (code, out, err.count("\n")) == (2, "", 1) and message in err
    assert not (tmp_path / "out.pt").exists()


def test_impossible_conversions_are_named(tmp_path, shell):
    ademamix = saved(tmp_path, trained(bnb.optim.AdEMAMix).state_dict())
    said = shell("convert", ademamix, tmp_path / "out.pt", "--to", "torch")[2]
    assert said.endswith("torch.optim has no ademamix, only adam, adamw, sgd, rmsprop, adagrad\n")
    said = shell("convert", ademamix, tmp_path / "out.pt", "--to", "torchao", "--rule", "adamw")[2]
    assert "unknown state ['exp_avg_slow'] for adamw" in said
    momentum = saved(tmp_path, trained(bnb.optim.RMSprop, momentum=0.9).state_dict())
    said = shell("convert", momentum, tmp_path / "out.pt", "--to", "bitsandbytes")[2]
    assert "bitsandbytes' rmsprop has no place for ['momentum_buffer'] of parameter 0" in said


def test_what_cannot_be_read_is_still_described():
    state_dict = trained(torch.optim.AdamW, amsgrad=True).state_dict()
    (found,) = bnb.checkpoint.describe([state_dict])
    assert found.form == "torch.optim" and "amsgrad=True" in found.problem
    (found,) = bnb.checkpoint.describe({"state": {0: {"momentum": torch.zeros(3)}}, "param_groups": [{"params": [0]}]})
    assert (found.form, found.parameters, found.states) == ("unknown", 1, ())


def command(*arguments, cwd):
    return subprocess.run(
        [sys.executable, "-m", "torch_bnb", *arguments], capture_output=True, text=True, cwd=cwd, check=False
    )


def test_the_command_plans_a_model_by_name(tmp_path):
    (tmp_path / "mine.py").write_text(
        "from torch import nn\ndef make():\n    return nn.Linear(4096, 4096, bias=False)\n"
    )
    (tmp_path / "hints.yaml").write_text("weight: {optim_bits: 32}\n")
    shown = command("plan", "mine:make", cwd=tmp_path)
    assert shown.returncode == 0, shown.stderr
    assert "weight" in shown.stdout and "32.50 MiB" in shown.stdout and "128.00 MiB" in shown.stdout
    hinted = command("plan", "mine:make", "--overrides", "hints.yaml", "--optimizer", "Lion", "--json", cwd=tmp_path)
    assert json.loads(hinted.stdout)["total"]["state"] == 4 * 4096 * 4096
    fixed = command("plan", "mine:make", "--optimizer", "lion-32bit", "--json", cwd=tmp_path)
    assert json.loads(fixed.stdout)["total"]["state"] == 4 * 4096 * 4096


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("mine",), "'mine': expected package.module:factory"),
        (("no.such:thing",), "'no.such:thing': No module named 'no'"),
        (("builtins:dict",), "'builtins:dict' made a dict, expected an nn.Module"),
        (("torch.nn:Identity", "--option", "momentum"), "--option momentum: expected KEY=VALUE"),
        (("mine:make", "--option", "block_grid=row"), "AdamW: block_grid='row': expected 'flat' or 'rows'"),
        (("mine:make", "--optimizer", "adamx"), "unknown optimizer 'adamx'; did you mean adam"),
        (
            ("mine:make", "--optimizer", "Adam8bit", "--optim-bits", "32"),
            "Adam8bit: optim_bits=32: expected 8; use Adam",
        ),
        (("torch.nn:Identity", "--overrides", "none.yaml"), "No such file or directory: 'none.yaml'"),
    ],
)
def test_the_command_says_what_is_wrong(tmp_path, arguments, message):
    (tmp_path / "mine.py").write_text("from torch import nn\ndef make():\n    return nn.Linear(64, 64)\n")
    done = command("plan", *arguments, cwd=tmp_path)
    assert done.returncode == 2 and message in done.stderr and "Traceback" not in done.stderr
