"""Strategies in real processes: trained, saved, resumed, and compared with a run that nothing interrupted."""

import csv
import importlib
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import lit_run
import pytest
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lit import Bare, Model, fit, same_weights, seeded

import torch_bnb as bnb
from lightning_bnb import EightBitOptimizer, strategies

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*does not have many workers", "ignore:.*LeafSpec", "ignore:.*exists and is not empty"
)

SCRIPT = Path(lit_run.__file__)


def run(strategy, devices, folder, *checkpoint):
    """Runs the script in processes of its own."""
    command = [sys.executable, str(SCRIPT), strategy, str(devices), str(folder), *map(str, checkpoint)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def found(folder, part, rank=0):
    return torch.load(folder / part / f"found{rank}.pt", weights_only=False)


def same(one, other):
    """Whether two findings have the same weights, states and explanations, bit for bit."""
    assert one["weights"].keys() == other["weights"].keys() and one["state"].keys() == other["state"].keys()
    for name, weight in one["weights"].items():
        assert torch.equal(weight, other["weights"][name]), name
    for name, state in one["state"].items():
        assert state.keys() == other["state"][name].keys(), name
        for key, value in state.items():
            assert value.dtype == other["state"][name][key].dtype
            # Of sharded parameters absmax has a row for each row of codes; the numbers are the same.
            assert torch.equal(value.flatten(), other["state"][name][key].flatten()), (name, key)
    assert one["explained"] == other["explained"]
    return True


def log_of(folder, part):
    """The metrics that rank 0 logged, without the bytes, which are a process's own."""
    (path,) = (folder / part).glob("**/metrics.csv")
    with path.open() as file:
        rows = list(csv.DictReader(file))
    return [{k: v for k, v in row.items() if "bytes" not in k} for row in rows]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The same training by one process, in this one."""
    folder = tmp_path_factory.mktemp("alone")
    lit_run.main("auto", 1, folder)
    return folder


def checked(folder, alone, world):
    """What holds for every strategy: resuming changes nothing, and all processes agree."""
    ended = found(folder, "whole")
    assert ended["world"] == world
    assert same(ended["end"], found(folder, "resumed")["end"])
    assert same(found(folder, "part")["end"], found(folder, "resumed")["start"])
    for rank in range(1, world):
        assert same(ended["end"], found(folder, "whole", rank)["end"])
    one = found(alone, "whole")["end"]
    assert ended["end"]["explained"] == one["explained"]
    state = ended["end"]["state"]
    assert state["head.weight"]["exp_avg_codes"].dtype == state["embed.weight"]["exp_avg_codes"].dtype == torch.uint8
    assert state["head.bias"]["exp_avg"].dtype == torch.float32
    return ended["end"], one


def test_one_device(alone):
    ended, _ = checked(alone, alone, world=1)
    assert len(ended["explained"]) == len(ended["state"]) == 3


@pytest.mark.distributed
def test_ddp(alone, tmp_path):
    output = run("ddp", 2, tmp_path)
    ended, one = checked(tmp_path, alone, world=2)
    assert same(ended, one), "two equal gradients have themselves as their mean"
    assert output.count("EightBitOptimizer: AdamW, 3 parameters") == 3, "one table for each fit, by rank 0"


@pytest.mark.distributed
def test_processes_that_disagree_are_told_before_the_first_step(tmp_path):
    message = r"the processes disagree about head\.weight: betas=\(0\.[58], 0\.95\) and betas=\(0\.[58], 0\.95\)"
    with pytest.raises(AssertionError, match=rf"MisconfigurationException: EightBitOptimizer: AdamW: {message}"):
        run("ddp-disagreeing", 2, tmp_path)


@pytest.mark.slow
@pytest.mark.distributed
def test_ddp_spawn(alone, tmp_path):
    run("ddp_spawn", 2, tmp_path)
    for rank in range(2):
        assert same(found(tmp_path, "part", rank)["end"], found(tmp_path, "resumed", rank)["start"])
        assert same(found(tmp_path, "resumed", rank)["end"], found(alone, "whole")["end"])
        assert found(tmp_path, "resumed", rank)["world"] == 2


@pytest.fixture(scope="module")
def sharded(tmp_path_factory):
    """Folders of FSDP2 runs by two processes, by the kind of checkpoint; made when first asked for."""
    made = {}

    def folder(kind):
        if kind not in made:
            made[kind] = tmp_path_factory.mktemp(kind)
            run(f"fsdp2-{kind}", 2, made[kind])
        return made[kind]

    return folder


def checkpoint_in(folder):
    (path,) = (folder / "part").glob("**/*.ckpt")
    return path


@pytest.mark.distributed
@pytest.mark.parametrize("kind", ["full", "sharded"])
def test_fsdp2(kind, sharded, alone):
    ended, one = checked(sharded(kind), alone, world=2)
    assert same(ended, one), "rows of whole blocks are coded alike however they are spread"
    for measured, expected in zip(log_of(sharded(kind), "whole"), log_of(alone, "whole"), strict=True):
        for key, value in expected.items():
            assert float(measured[key] or 0) == pytest.approx(float(value or 0), rel=1e-5), key
    assert checkpoint_in(sharded(kind)).is_dir() == (kind == "sharded")


SLOW = pytest.mark.slow


@pytest.mark.distributed
@pytest.mark.parametrize(
    ("kind", "processes"),
    [("full", 1), ("sharded", 3), pytest.param("full", 3, marks=SLOW), pytest.param("sharded", 1, marks=SLOW)],
)
def test_fsdp2_resumes_on_another_number_of_processes(kind, processes, sharded, alone, tmp_path):
    run(f"fsdp2-{kind}", processes, tmp_path, checkpoint_in(sharded(kind)))
    resumed = found(tmp_path, "resumed")
    assert resumed["world"] == processes
    assert same(resumed["start"], found(sharded(kind), "part")["end"])
    wanted = found(alone, "whole")["end"]
    if processes == 1:
        assert same(resumed["end"], wanted)
    for name, weight in resumed["end"]["weights"].items():  # the mean of three equal gradients is rounded
        torch.testing.assert_close(weight, wanted["weights"][name], rtol=0, atol=1e-4)


@pytest.mark.distributed
def test_a_full_checkpoint_of_fsdp2_goes_on_without_it(sharded, alone, tmp_path):
    lit_run.main("auto", 1, tmp_path, checkpoint_in(sharded("full")))
    assert same(found(tmp_path, "resumed")["end"], found(alone, "whole")["end"])


@pytest.mark.distributed
def test_fsdp1(tmp_path):
    run("fsdp1", 2, tmp_path)
    for rank in range(2):
        assert same(found(tmp_path, "whole", rank)["end"], found(tmp_path, "resumed", rank)["end"])
        start, ended = found(tmp_path, "resumed", rank)["start"]["state"], found(tmp_path, "part", rank)["end"]["state"]
        assert start.keys() == ended.keys()
        kept = {key for state in ended.values() for key in state if key.endswith("codes")}
        read = {key for state in start.values() for key in state}
        assert kept == {"exp_avg_codes", "exp_avg_sq_codes"}
        assert read == {"exp_avg", "exp_avg_sq", "step"}, "as floats of the parameter's shape, coded again at the step"


# Strategies that cannot run here: what the callback does about them ---------------------------------------------------


both_packages = pytest.mark.parametrize("package", ["lightning.pytorch", "pytorch_lightning"])


def pretend(name, package="lightning.pytorch"):
    """A strategy of a class whose library or devices are not there."""
    return object.__new__(getattr(importlib.import_module(f"{package}.strategies"), name))


@both_packages
def test_fsdp1_gets_the_state_in_its_portable_form(package):
    parameter = torch.nn.Parameter(torch.zeros(64, 64))
    ours, theirs = bnb.optim.AdamW8bit([parameter]), torch.optim.Adamax([parameter])
    strategies.prepare(pretend("SingleDeviceStrategy", package), [ours])
    assert getattr(ours, "checkpoint_format", "native") == "native"
    strategies.prepare(pretend("FSDPStrategy", package), [ours, theirs])
    assert ours.checkpoint_format == "portable" and not hasattr(theirs, "checkpoint_format")


class Groups(Bare):
    def configure_optimizers(self):
        groups = bnb.param_groups(self, overrides={"head.weight": {"optim_bits": 32, "lr": 0.5}}, weight_decay=0.1)
        return bnb.optim.AdamW(groups, lr=1e-3, optim_bits=8)


class Hinted(Bare):
    def configure_optimizers(self):
        return bnb.optim.AdamW(self.parameters(), lr=1e-3, weight_decay=0.1, optim_bits=8)


NO_DECAY = {"weight_decay": 0.0}


def configured(module, callback, strategy):
    """What configure_optimizers returns in a fit under a strategy."""
    trainer = SimpleNamespace(strategy=strategy)
    callback.setup(trainer, module, "fit")
    try:
        return module.configure_optimizers()
    finally:
        callback.teardown(trainer, module, "fit")


@both_packages
def test_deepspeed_refuses_hints_about_single_parameters_and_says_what_to_do(package, manager):
    deepspeed = pretend("DeepSpeedStrategy", package)
    message = r"DeepSpeedStrategy flattens .* \(head.bias: \['lr'\]\)\. Give the optimizer bnb.param_groups"
    with pytest.raises(MisconfigurationException, match=message):
        configured(Model(), EightBitOptimizer(overrides={"head.bias": {"lr": 0.1}}), deepspeed)
    with pytest.raises(MisconfigurationException, match=r"embed.weight: \['optim_bits'\]"):
        configured(Model(), EightBitOptimizer(embeddings_32bit=True), deepspeed)
    manager.initialize()
    optimizer = configured(Model(), EightBitOptimizer(), deepspeed)
    assert all(row.bits == 8 for row in manager.explain(optimizer) if row.name.endswith("weight"))


def test_deepspeed_takes_hints_as_groups(manager):
    optimizer = configured(Groups(), EightBitOptimizer(), pretend("DeepSpeedStrategy"))
    rows = manager.explain(optimizer)
    assert rows["head.weight"].bits == 32 and rows["head.weight"].lr == 0.5 and not rows["head.weight"].overrides
    # The callback's patterns stand in the groups too, because they are known before the groups are made.
    callback = EightBitOptimizer(overrides={"head.bias": {"lr": 0.25}})
    rows = manager.explain(configured(Groups(), callback, pretend("DeepSpeedStrategy")))
    assert rows["head.bias"].lr == 0.25 and not rows["head.bias"].overrides


def test_groups_train_as_hints_do():
    hinted = seeded(Hinted)
    grouped = seeded(Groups)
    fit(hinted, EightBitOptimizer(overrides={"head.weight": {"optim_bits": 32, "lr": 0.5}, "head.bias": NO_DECAY}))
    fit(grouped, EightBitOptimizer())
    assert same_weights(hinted, grouped)
