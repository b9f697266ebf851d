"""The benchmarks of a GPU, as far as they can be tested without one. Never how long anything takes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import gpu, gpu_log, instructions, peers, readme

LISTING = """
        /*0000*/                   VOTE.ANY P0, !P0 ;                          /* 0x1 */
        /*0010*/              @!P0 BRA 0x50 ;                                  /* 0x2 */
        /*0020*/                   LDG.E.CONSTANT R4, desc[UR4][R6.64] ;       /* 0x3 */
        /*0030*/              @!P2 BRA 0x50 ;                                  /* 0x4 */
        /*0040*/              @!P1 CALL.REL.NOINC 0x80 ;                       /* 0x5 */
        /*0050*/                   FFMA R4, R6, R8, RZ ;                       /* 0x6 */
        /*0060*/                   SHFL.IDX PT, R1, R2, R3, 0x1f ;             /* 0x7 */
        /*0070*/                   EXIT ;                                      /* 0x8 */
        /*0080*/                   FMUL R1, R1, R1 ;                           /* 0x9 */
"""


def test_rare_paths_of_a_gpus_instructions_are_left_out():
    path = instructions.usual_path(LISTING)
    assert [instructions.kind_of(text) for text in path] == ["exchange", "other", "float", "exchange", "other"]


def test_the_gpus_benchmark_runs_dry(tmp_path):
    """On a CPU it measures nothing of worth, but it is not dead on arrival."""
    command = ["-m", "benchmarks.gpu", "--device", "cpu", "--quick", "--rules", "adamw", "--out", str(tmp_path)]
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "gpu-bench.json").read_text())
    assert result["copy_bytes_per_second"] > 0
    names = {"torch_bnb 8-bit", "torch_bnb 32-bit", "torch fused", "torch_bnb paged 8-bit"}
    assert names == {row["optimizer"] for row in result["cells"]}
    assert all(row["share_of_copy"] > 0 and row["seconds"]["count"] == 3 for row in result["cells"])


RESULTS = Path(__file__).parents[1] / "benchmarks" / "results"


def test_the_result_that_was_made_of_a_log_is_made_of_it():
    log = RESULTS / "cuda-nvidia-h200.log"
    assert json.loads(log.with_suffix(".json").read_text()) == gpu_log.result_of(log.read_text())
    with pytest.raises(SystemExit, match="'256M fp32 adamw': expected SHAPES DTYPE RULE"):
        gpu_log.result_of("256M fp32 adamw")


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("rule", ["adamw", "lion"])
def test_a_logs_bytes_are_those_that_optimizers_have(rule, dtype):
    shapes = [(64, 64), (300,), (5000,)]
    found, _ = peers.find([peers.TORCH_FUSED, peers.BITSANDBYTES], [8, 32])
    for peer in (peer for peer in found if rule in peer.rules):
        params = [torch.randn(shape).to(gpu.DTYPES[dtype]).requires_grad_() for shape in shapes]
        for p in params:
            p.grad = torch.randn_like(p)
        optimizer = peer.build(rule, params)
        optimizer.step()
        numels = [p.numel() for p in params]
        state = gpu_log.bytes_of_state(peer.name, rule, dtype, numels)
        ours = 2 * state + 3 * gpu.DTYPES[dtype].itemsize * sum(numels)
        if peer.name == "bitsandbytes 8-bit":  # whose code maps count as state
            ours += 2 * sum(numel >= 4096 for numel in numels) * gpu_log.MOMENTS[rule] * 256 * 4
        assert gpu.floor_in_bytes(optimizer, params) == ours, peer.name


def test_a_gpus_table_says_what_the_host_and_the_bus_took_and_what_failed():
    def row(optimizer, device, host, **more):
        times = {"seconds": {"median": device}, "host_seconds": {"median": host}}
        return {"shapes": "16M", "rule": "adamw", "dtype": "fp32", "optimizer": optimizer, **times, **more}

    cells = [
        row("ours", 0.001, 0.0005, floor_bytes=2e9),
        row("small", 0.001, 0.003, floor_bytes=2e9),
        row("paged", 0.1, 0.2, floor_bytes=2e9, bus_bytes=5e9),
        {**row("other", 0, 0), "error": "no memory"},
    ]
    text = readme.gpu_table({"device": "GPU", "torch": "2", "copy_bytes_per_second": 4e12, "cells": cells}, "")
    assert "| 16M, adamw, fp32 | 1.00 (2.00) | 1.00, host 3.00 | 100 (0.050 each way) | fails |" in text
    assert text.endswith("GPU, torch 2; a copy moves 4.00 TB/s.")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
@pytest.mark.parametrize(("program", "name"), [("tests/on_gpu.py", "gpu"), ("-mbenchmarks.gpu", "gpu-bench")])
def test_without_a_gpu_its_commands_say_so_at_once(program, name, tmp_path):
    done = subprocess.run(
        [sys.executable, program, "--out", str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1 and f"make {name} needs a CUDA device" in done.stderr
    assert "Traceback" not in done.stderr and not list(tmp_path.iterdir())
