"""The examples run, and their page says what they print."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from processes import program

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "examples" / "README.md").read_text()


def test_every_command_names_a_file():
    commands = re.findall(r"^python (examples/\S+\.py)", PAGE, flags=re.MULTILINE)
    assert len(commands) >= 7 and all((ROOT / path).exists() for path in commands)


@pytest.mark.slow
def test_the_digits_example_prints_what_its_page_says(tmp_path):
    command = [sys.executable, str(ROOT / "examples" / "lightning_vit.py"), "--epochs", "1"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (section,) = [part for part in PAGE.split("\n## ") if part.startswith("lightning_vit.py")]
    blocks = re.findall(r"^```(\w*)\n(.*?)^```", section, flags=re.DOTALL | re.MULTILINE)
    (said,) = [text.splitlines() for language, text in blocks if not language]
    same_everywhere = [line for line in said if line.startswith("EightBitOptimizer")]
    assert len(same_everywhere) == 3 and set(same_everywhere) <= set(done.stdout.splitlines())
    per_parameter = [line.partition(", ")[2] for line in said if "bytes of optimizer state" in line]
    assert len(per_parameter) == 2 and all(text in done.stdout for text in per_parameter)


def torchrun(processes, *arguments):
    """What the program printed."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", processes]
    return program([*launcher, *arguments])


@pytest.mark.distributed
def test_the_fsdp2_example_resumes_on_another_number_of_processes(tmp_path):
    torchrun(2, ROOT / "examples" / "fsdp2.py", "--save", tmp_path / "saved", "--steps", 3)
    assert "every bit the same: True" in torchrun(3, ROOT / "examples" / "fsdp2.py", "--resume", tmp_path / "saved")
