"""The benchmarks: what they compute, how they take turns, and that the program runs. Never how long anything takes."""

import itertools
import json
import mmap
import os
import re
import sys
import time
from functools import partial

import pytest
import torch

import torch_bnb as bnb
from benchmarks import __main__ as program
from benchmarks import cell as cells
from benchmarks import (
    machine,
    memory,
    peers,
    process,
    readme,
    shapes,
    step,
    timing,
    traffic,
)

LINUX = pytest.mark.skipif(
    not os.access("/proc/self/clear_refs", os.W_OK), reason="needs Linux, for the peak of memory"
)
ABSMAX_BYTES = 2 * 4 / 256
"""Of absmax for each element of a parameter with two states: float32, one per state and block."""


# Statistics


def test_summary_is_the_median_and_the_quartiles():
    assert timing.summary([5, 1, 2, 4, 3]) == {"median": 3, "q1": 2, "q3": 4, "count": 5}
    assert timing.summary([None, 7, None]) == {"median": 7, "q1": 7, "q3": 7, "count": 1}


def test_a_wave_that_slows_both_leaves_the_paired_ratio_alone():
    waves = [1, 1, 5, 9, 9, 2, 1]
    ours, theirs = [0.5 * wave for wave in waves], [1.0 * wave for wave in waves]
    assert timing.summary(ours)["q3"] > 2 * timing.summary(ours)["median"], "the times themselves say little"
    assert timing.paired_ratio(ours, theirs) == {"median": 0.5, "q1": 0.5, "q3": 0.5, "count": 7}


def test_the_ratio_is_of_pairs_and_not_of_medians():
    ours, theirs = [1.0, 2.0, 9.0], [2.0, 8.0, 3.0]
    assert timing.paired_ratio(ours, theirs) == timing.summary([1 / 2, 2 / 8, 9 / 3])
    assert timing.paired_ratio(ours, theirs)["median"] == 0.5 != 2.0 / 3.0


def test_rounds_without_a_partner_are_no_pairs():
    assert timing.paired_ratio([1.0, 2.0, 3.0], [2.0, None, None]) == {"median": 0.5, "q1": 0.5, "q3": 0.5, "count": 1}


def test_steps_take_turns_and_the_caches_are_prepared_before_each():
    said = []
    steps = {"a": partial(said.append, "a"), "b": partial(said.append, "b")}
    times = timing.alternate(steps, 3, before=lambda step: said.append("-"))
    assert "".join(said) == "-a-b" * 3
    assert [len(values) for values in times.values()] == [3, 3]


def test_a_slow_step_sits_out_what_is_beyond_its_budget(monkeypatch):
    clock = itertools.count()
    monkeypatch.setattr(timing.time, "perf_counter", lambda: next(clock))
    slow = partial(lambda: [next(clock) for _ in range(9)])
    times = timing.alternate({"quick": lambda: None, "slow": slow}, 8, budget=25)
    assert times == {"quick": [1] * 8, "slow": [10] * 3 + [None] * 5}
    assert timing.paired_ratio(times["quick"], times["slow"])["count"] == 3


# Bytes


@pytest.mark.parametrize(
    "rule, dtype, bits, expected",
    [
        ("adamw", torch.float32, 8, 4 + 4 + 2 + 4 + 2 + 2 * ABSMAX_BYTES),  # read p, g, codes; write p, codes; absmax
        ("adamw", torch.float32, 32, 4 + 4 + 8 + 4 + 8),
        ("adamw", torch.float32, None, 28),
        ("adamw", torch.bfloat16, 8, 2 + 2 + 2 + 2 + 2 + 2 * ABSMAX_BYTES),
        ("adamw", torch.bfloat16, None, 14),  # torch keeps state in the parameter's dtype
        ("lion", torch.float16, 8, 2 + 2 + 1 + 2 + 1 + ABSMAX_BYTES),
        ("sgd", torch.float32, 32, 20),  # with momentum
        ("ademamix", torch.float32, 32, 12 + 6 * 4),
    ],
)
def test_bytes_that_a_step_must_move(rule, dtype, bits, expected):
    assert traffic.step_bytes("1M", rule, dtype, bits) / 2**20 == expected


def test_tensors_too_small_for_8_bits_move_32_bit_state():
    assert traffic.step_bytes("1K", "adamw", torch.float32, 8) == 28 * 1024


@pytest.mark.parametrize("rule", peers.RULES)
@pytest.mark.parametrize("bits", [8, 32])
def test_the_model_of_state_bytes_is_what_report_measures(rule, bits):
    params = cells.make("64K", torch.float32)
    params[0].grad = torch.randn_like(params[0])
    optimizer = peers.one(peers.OURS, bits).build(rule, params)
    optimizer.step()
    assert bnb.report(optimizer).total.state == traffic.state_bytes("64K", rule, torch.float32, bits)


def test_models_have_the_published_numbers_of_parameters():
    counts = {name: shapes.parameters(name) for name in shapes.NAMED}
    assert counts == {
        "large": 2**24,
        "small": 4_096_000,
        "gpt2": 124_439_808,
        "llama": 134_515_008,
        "vit": 86_567_656,
    }


# Peers


def test_every_rule_of_ours_is_there_and_every_optimizer_makes_a_step():
    assert {rule.lower() for rule in bnb.optim.rules.__all__} == set(peers.RULES)
    found, missing = peers.find([peers.TORCH_FUSED, peers.TORCH_FOREACH], [8, 32])
    assert not missing
    assert [peer.name for peer in found] == ["torch_bnb 8-bit", "torch_bnb 32-bit", "torch fused", "torch foreach"]
    assert set(found[2].rules) == {"adam", "adamw", "sgd", "adagrad"}
    for peer in found:
        for rule in peer.rules:
            params = cells.make("8K", torch.float32)
            before = params[0].detach().clone()
            params[0].grad = torch.randn_like(params[0])
            peer.build(rule, params).step()
            assert not torch.equal(before, params[0])


@pytest.mark.slow
@pytest.mark.parametrize("library", [peers.BITSANDBYTES, peers.TORCHAO])
def test_an_installed_library_makes_a_step_in_8_bits_of_every_rule_it_has(library):
    pytest.importorskip(library)
    peer = peers.one(library, 8)
    for rule in peer.rules:
        params = cells.make("8K", torch.bfloat16)
        params[0].grad = torch.randn_like(params[0])
        before = params[0].detach().clone()
        optimizer = peer.build(rule, params)
        for _ in range(50):  # a small rate, few digits
            optimizer.step()
        assert not torch.equal(before, params[0]), rule


def test_a_library_that_is_not_there_is_left_out_with_a_reason(monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    found, missing = peers.find([peers.BITSANDBYTES], [8])
    assert [peer.name for peer in found] == ["torch_bnb 8-bit"]
    assert missing == {"bitsandbytes": "not installed: no module named 'bitsandbytes'"}


def test_a_peer_that_fails_is_left_out_with_its_reason_and_the_others_are_measured():
    def broken(params, **options):
        raise RuntimeError("no kernel\nfor this")

    cell = cells.Cell("8K", "adamw", "fp32", 1)
    outcome = cells.measure(cell, [*peers.find([], [8])[0], peers.Peer("other", 8, {"adamw": broken})], 2, 1.0)
    assert [row["optimizer"] for row in outcome.rows] == ["torch_bnb 8-bit"]
    what = "other 8-bit: 8K adamw fp32, 1 thread"
    assert outcome.left_out == [{"what": what, "why": "RuntimeError: no kernel"}]


def test_a_cell_that_does_not_fit_into_memory_is_left_out(monkeypatch):
    monkeypatch.setattr(cells, "memory", lambda key: 10**6)
    outcome = cells.measure(cells.Cell("1M", "adamw", "fp32", 1), peers.find([], [8])[0], 2, 1.0)
    assert not outcome.rows
    assert outcome.left_out[0]["why"] == "needs 0.0 GB of memory, 0.0 GB are available"


# The program


def run(*arguments):
    return program.main([*map(str, arguments)])


def test_step_writes_its_result_and_a_picture(tmp_path, capsys):
    out = tmp_path / "cpu-{machine}-step.json"
    status = run("step", "--shapes", "8K", "64K", "--rules", "adamw", "lion", "--dtypes", "fp32", "--threads", 1,
                 "--repeats", 2, "--peers", "torch-fused", "--out", out)  # fmt: skip
    assert status == 0
    (path,) = tmp_path.glob("*.json")
    assert path.name == f"cpu-{machine.slug(machine.describe())}-step.json"
    assert path.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    result = json.loads(path.read_text())
    assert result["complete"] and not result["left_out"] and result["benchmark"] == "step"
    assert {"cpu", "cpus", "memory", "torch", "load average", "instruction sets"} <= result["machine"].keys()
    assert result["settings"]["repeats"] == 2 and result["settings"]["cache"] == "cold"
    assert len(result["rows"]) == 2 * 3 + 2 * 2, "Lion is not in torch"
    for row in result["rows"]:
        assert len(row["seconds"]) == row["time"]["count"] == 2
        assert row["time"]["q1"] <= row["time"]["median"] <= row["time"]["q3"]
        assert row["ns per parameter"] == pytest.approx(1e9 * row["time"]["median"] / row["parameters"])
        moved = row["bytes per parameter"] * row["parameters"] / row["time"]["median"]
        assert row["share of copy bandwidth"] == pytest.approx(moved / row["copy bandwidth"])
    eight, _, fused = result["rows"][:3]
    pairs = [a / b for a, b in zip(eight["seconds"], fused["seconds"], strict=True)]
    assert eight["against"]["torch fused"]["median"] == pytest.approx(sum(pairs) / 2, rel=0.01)
    shown = capsys.readouterr().out
    assert "64K, lion, fp32, 1" in shown and "torch fused" in shown and "8-bit / it" in shown


def test_scaling_covers_sizes_and_threads(tmp_path, capsys):
    out = tmp_path / "scaling.json"
    assert run("scaling", "--shapes", "8K", "64K", "--threads", 1, "--repeats", 2, "--cache", "warm", "--out", out) == 0
    rows = json.loads(out.read_text())["rows"]
    assert [(row["parameters"], row["optimizer"]) for row in rows] == [
        (count, name) for count in (8192, 65536) for name in ("torch_bnb 8-bit", "torch fused")
    ]
    assert out.with_suffix(".png").exists() and "1.00x" in capsys.readouterr().out


def test_first_step_runs_in_processes_of_its_own(tmp_path):
    out = tmp_path / "first.json"
    command = ["first-step", "--shapes", "8K", "--threads", 1, "--repeats", 1, "--peers", "--out", out]
    assert run(*command) == 0
    (row,) = json.loads(out.read_text())["rows"]
    assert row["ratio"]["count"] == 1
    assert row["ratio"] == timing.summary(process["first"] / process["later"] for process in row["processes"])


@LINUX
def test_memory_shows_that_a_step_makes_no_copy_of_a_tensor(tmp_path):
    out = tmp_path / "memory.json"
    command = [
        "memory",
        "--shapes",
        "4M",
        "--dtypes",
        "bf16",
        "--bits",
        8,
        "--threads",
        1,
        "--repeats",
        1,
        "--limit",
        60,
    ]
    assert run(*command, "--peers", "torch-foreach", "--out", out) == 0
    ours, foreach = json.loads(out.read_text())["rows"]
    assert ours["reported"] == ours["planned"] == 2 + ABSMAX_BYTES
    assert ours["stayed"]["median"] == pytest.approx(ours["planned"], abs=0.1)
    assert ours["temporary"]["median"] < 0.1
    assert foreach["temporary"]["median"] > 1, "torch's foreach makes some, so they can be seen"


def test_an_interrupt_keeps_what_has_been_measured(tmp_path, monkeypatch, capsys):
    measure = step.measure

    def interrupted(cell, *rest):
        if cell.shapes == "64K":
            raise KeyboardInterrupt
        return measure(cell, *rest)

    monkeypatch.setattr(step, "measure", interrupted)
    out = tmp_path / "step.json"
    shared = ["--dtypes", "fp32", "--threads", 1, "--repeats", 2, "--bits", 8, "--peers", "--out", out]
    assert run("step", "--shapes", "8K", "64K", *shared) == 130
    result = json.loads(out.read_text())
    assert not result["complete"] and [row["shapes"] for row in result["rows"]] == ["8K"]
    assert "Interrupted" in capsys.readouterr().out


@pytest.mark.parametrize(
    "option, value, allowed",
    [
        ("--shapes", "huge", "expected one of large, small, gpt2, llama, vit, or one tensor's size such as 16M"),
        ("--rules", "adamx", "choose from .*adamw"),
        ("--threads", "0", f"a whole number from 1 to {machine.cpus()}, the CPUs of this machine"),
        ("--repeats", "few", "a whole number of at least 1"),
        ("--budget", "nan", "expected seconds, a number above 0"),
        ("--bits", "4", "choose from .*8.*32"),
        ("--peers", "apex", "choose from .*torch-fused"),
    ],
)
def test_a_wrong_option_is_named_with_its_value_and_what_is_allowed(option, value, allowed, capsys):
    with pytest.raises(SystemExit):
        run("step", option, value)
    error = capsys.readouterr().err
    assert f"argument {option}:" in error and value in error
    assert re.search(allowed, error)


# Processes


def test_a_new_process_returns_what_its_function_returned():
    assert process.call("builtins:dict", {"a": [1, 2]}, limit=60) == {"a": [1, 2]}


def test_a_failing_process_says_why():
    with pytest.raises(process.Failed, match="JSONDecodeError: Expecting property name"):
        process.call("json:loads", {"s": "{"}, limit=60)


def test_a_process_beyond_its_limit_is_stopped_with_all_that_it_started(tmp_path):
    alive = tmp_path / "alive"
    command = ["sh", "-c", f"(sleep 1; touch {alive}) & sleep 60"]
    with pytest.raises(process.Failed, match=r"stopped after its limit of 0\.7 s"):
        process.call("subprocess:check_call", {"args": command}, limit=0.7)
    time.sleep(1.2)
    assert not alive.exists()


@LINUX
def test_resident_memory_grows_with_what_is_allocated():
    size, page = 2**24, b"1" * mmap.PAGESIZE
    before = memory.resident()
    with mmap.mmap(-1, size) as held:  # pages of its own: an allocator may hand out what is resident already
        for _ in range(size // mmap.PAGESIZE):
            held.write(page)
        after = memory.resident()
    assert size * 0.9 < after["VmRSS"] - before["VmRSS"] < size * 1.5
    assert after["VmHWM"] >= after["VmRSS"]


# The README's table


def result(complete=True):
    """A result of `step`, made up: ours 2 ms, a peer 1 ms that has no Lion, and another 100 ms."""

    def row(rule, optimizer, seconds, **against):
        ratios = {name.replace("_", " "): timing.summary([ratio]) for name, ratio in against.items()}
        place = {"title": "one tensor of 16M", "rule": rule, "dtype": "bf16", "threads": 2}
        return {**place, "optimizer": optimizer, "time": timing.summary([seconds]), "against": ratios}

    rows = [
        row("adamw", "torch_bnb 8-bit", 0.002, torch_fused=2.0, other=0.02),
        row("adamw", "torch fused", 0.001),
        row("adamw", "other", 0.1),
        row("lion", "torch_bnb 8-bit", 0.003, other=0.25),
        row("lion", "other", 0.012),
    ]
    about = {"cpu": "CPU", "cpus": 2, "torch instruction set": "AVX2", "torch": "2.13.0", "peers": {"other": "1.0"}}
    return {"complete": complete, "rows": rows, "machine": about, "settings": {"repeats": 30, "cache": "cold"}}


MARKED = "Before\n<!-- {} of r/cpu.json, written by benchmarks/readme.py -->\nstale\n<!-- /{} -->\nafter\n"


@pytest.fixture
def root(tmp_path):
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / "cpu.json").write_text(json.dumps(result()))
    return tmp_path


def test_the_speed_table_is_written_from_a_result(root):
    text = readme.written(MARKED.format("speed", "speed"), root)
    assert "| ms per step | torch_bnb 8-bit | torch fused | other |" in text
    assert "| adamw, one tensor of 16M, bf16, 2 threads | **2.00** | 1.00 (0.50x) | 100 (50x) |" in text
    assert "| lion, one tensor of 16M, bf16, 2 threads | **3.00** | - | 12.0 (4.0x) |" in text
    assert "torch 2.13.0, other 1.0" in text and "(r/cpu.png)" in text
    assert text.startswith("Before\n") and text.endswith("after\n") and "stale" not in text
    assert readme.written(text, root) == text


def test_a_mark_that_cannot_be_followed_is_an_error(root):
    with pytest.raises(SystemExit, match="'sped'; expected one of demo, speed"):
        readme.written(MARKED.format("sped", "sped"), root)
    with pytest.raises(SystemExit, match="has a mark of a table that does not read"):
        readme.written(MARKED.format("speed", "demo"), root)


def test_an_interrupted_result_is_not_published(root):
    (root / "r" / "cpu.json").write_text(json.dumps(result(complete=False)))
    with pytest.raises(SystemExit, match="interrupted"):
        readme.written(MARKED.format("speed", "speed"), root)


# The machine


@pytest.mark.parametrize(
    "cpu, name",
    [
        ("AMD EPYC 7B13 64-Core Processor", "amd-epyc-7b13-x4"),
        ("Intel(R) Xeon(R) Platinum 8375C CPU @ 2.90GHz", "intel-xeon-platinum-8375c-x4"),
        ("aarch64", "aarch64-x4"),
    ],
)
def test_a_result_is_named_by_its_processor(cpu, name):
    assert machine.slug({"cpu": cpu, "cpus": 4}) == name


def test_the_description_names_no_host_and_no_path():
    text = json.dumps(machine.describe())
    assert os.uname().nodename not in text and "/home" not in text and os.getcwd() not in text
