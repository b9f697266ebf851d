"""The demo, shortened: what it must show."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_the_demo_prints_a_table_and_writes_a_picture(tmp_path):
    command = [sys.executable, "examples/lightning_gpt.py", "--steps", "20", "--out", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "val loss" in done.stdout and "8-bit AdamW" in done.stdout
    assert (tmp_path / "demo.png").read_bytes().startswith(b"\x89PNG")
    fp32, eight = json.loads((tmp_path / "demo.json").read_text())["runs"]
    assert fp32["state bytes"] == 8 * fp32["parameters"]
    assert 2 < eight["state bytes"] / eight["parameters"] < 3, "8 bits but for the embeddings and the small tensors"
    assert fp32["losses"][0] == eight["losses"][0], "the same model and data"
    assert abs(fp32["training loss"] - eight["training loss"]) < 0.02
