"""The CUDA kernels compile for every kind of GPU that torch is built for, and stay in registers. Needs nvcc, no GPU."""

import json
import os
import re
import subprocess
import sys
from collections import Counter
from itertools import product
from pathlib import Path

import pytest
import torch
from cases import CASES

ROOT = Path(__file__).parents[1]
ARCHITECTURES = ("75", "80", "90", "100")
MOST_REGISTERS = {"plain": {1: 72, 2: 72, 3: 80}, "any": {1: 96, 2: 128, 3: 128}}
"""By form of the parameters and states of the rule. A multiprocessor has 65536: with 72 it holds 28 warps of a step."""


@pytest.fixture(scope="module")
def setup():
    """What setup.py says of the build, without building."""
    program = (
        "import json, runpy, setuptools; setuptools.setup = lambda **_: None; m = runpy.run_path('setup.py'); "
        "print(json.dumps([m['find_cuda'](), m['NVCC_FLAGS']]))"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    home, flags = json.loads(done.stdout.splitlines()[-1])
    if home is None:
        pytest.skip("there is no nvcc here, so the CUDA kernels cannot be compiled")
    return Path(home) / "bin/nvcc", flags


def compile_rules(setup, architectures, target):
    nvcc, flags = setup
    for architecture in architectures:
        flags = [*flags, "-gencode", f"arch=compute_{architecture},code=sm_{architecture}"]
    command = [
        nvcc,
        *flags,
        "-Xptxas",
        "-v",
        "-Werror",
        "all-warnings",
        "-c",
        ROOT / "csrc/cuda/rules.cu",
        "-o",
        target,
    ]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stderr


KERNEL = re.compile(
    r"Compiling entry function '(?P<name>\w+)' for 'sm_(?P<architecture>\d+)'.*?"
    r"(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes spill loads.*?"
    r"Used (?P<registers>\d+) registers",
    re.DOTALL,
)


def assert_in_registers(report, architectures):
    kernels = [match.groupdict() for match in KERNEL.finditer(report)]
    seen = Counter()
    for kernel in kernels:
        rule = next(rule for rule in CASES if f"{len(rule)}{rule}".casefold() in kernel["name"].casefold())
        pass_ = "measure" if "7measure" in kernel["name"] else "step"
        form = "any" if "AnyForm" in kernel["name"] else "plain"
        seen[(pass_, rule, form, kernel["architecture"])] += 1
        assert (kernel["stack"], kernel["stores"], kernel["loads"]) == ("0", "0", "0"), kernel
        assert int(kernel["registers"]) <= MOST_REGISTERS[form][len(CASES[rule].optimizer.states)], kernel
    expected = {"any": 1, "plain": 4}  # of two dtypes, with states in 8 bits and in 32
    passes = product(("step", "measure"), CASES, expected, architectures)
    assert seen == {(p, rule, form, a): expected[form] for p, rule, form, a in passes}


def test_every_rule_compiles_and_stays_in_registers(setup, tmp_path):
    assert_in_registers(compile_rules(setup, ["90"], tmp_path / "rules.o"), ["90"])


@pytest.mark.slow
def test_every_rule_stays_in_registers_on_every_architecture(setup, tmp_path):
    assert_in_registers(compile_rules(setup, ARCHITECTURES, tmp_path / "rules.o"), ARCHITECTURES)


@pytest.mark.slow
def test_the_extension_builds_with_cuda_and_loads_in_this_torch(setup, tmp_path):
    environment = {**os.environ, "TORCH_BNB_CUDA": "1", "TORCH_CUDA_ARCH_LIST": "7.5;8.0;9.0;10.0"}
    environment["NVCC_APPEND_FLAGS"] = "-Werror all-warnings"
    command = [sys.executable, "setup.py", "build_ext", f"--build-lib={tmp_path}", f"--build-temp={tmp_path / 'temp'}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (library,) = tmp_path.rglob("_C*.so")
    program = (
        f"import torch; torch.ops.load_library({str(library)!r}); "
        "print(*(torch._C._dispatch_has_kernel_for_dispatch_key(f'torch_bnb::{rule}{form}', 'CUDA') "
        f"for rule in {list(CASES)} for form in ('', '.on_device')))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["True"] * 2 * len(CASES), done.stderr


def test_this_build_has_what_it_was_asked_for(setup):
    """With nvcc at hand, the extension that the tests run has the CUDA kernels, unless it was told to do without."""
    if os.environ.get("TORCH_BNB_CUDA") == "0":
        pytest.skip("built with TORCH_BNB_CUDA=0")
    from torch_bnb import _C  # noqa: F401

    assert all(torch._C._dispatch_has_kernel_for_dispatch_key(f"torch_bnb::{rule}", "CUDA") for rule in CASES)
