"""The examples that others do not run."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"


def torchrun(processes, *arguments):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, *map(str, arguments)], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.distributed
def test_the_fsdp2_example_resumes_on_another_number_of_processes(tmp_path):
    torchrun(2, EXAMPLES / "fsdp2.py", "--save", tmp_path / "saved", "--steps", 3)
    assert "every bit the same: True" in torchrun(3, EXAMPLES / "fsdp2.py", "--resume", tmp_path / "saved")
