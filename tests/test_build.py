"""setup.py says in a sentence what it lacks."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def setup(code, **environment):
    program = f"import sys; {code}; sys.argv = ['setup.py', '--name']; import runpy; runpy.run_path('setup.py')"
    env = {key: value for key, value in os.environ.items() if key not in ("CUDA_HOME", "TORCH_BNB_CUDA")}
    return subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**env, **environment},
        check=False,
    )


def test_a_build_without_torch_says_so():
    done = setup("sys.modules['torch'] = None")
    assert done.returncode != 0 and "Traceback" not in done.stderr
    assert "install torch >= 2.10 first, then `pip install --no-build-isolation .`" in done.stderr


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"TORCH_BNB_CUDA": "yes"}, "TORCH_BNB_CUDA=yes: expected 0"),
        ({"TORCH_BNB_CUDA": "1", "PATH": "/nowhere"}, "TORCH_BNB_CUDA=1, but no CUDA toolkit was found"),
    ],
)
def test_the_cuda_switch_is_explicit(environment, message):
    done = setup("pass", **environment)
    assert done.returncode != 0 and message in done.stderr and "Traceback" not in done.stderr


def test_a_cpu_build_needs_no_switch():
    done = setup("pass", TORCH_BNB_CUDA="0")
    assert done.stdout.split()[-1] == "torch-bnb", done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"PYTHON": "no-such-python"}, "torch-bnb needs Python 3.10 to 3.13: there is no no-such-python"),
        ({"CXX": "no-such-compiler"}, "torch-bnb needs a C++ compiler: there is no no-such-compiler"),
    ],
)
def test_make_says_at_once_what_is_missing(arguments, message):
    environment = {**os.environ, **arguments}
    command = ["make", "tools", *(f"{key}={value}" for key, value in arguments.items())]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode != 0 and message in done.stderr
