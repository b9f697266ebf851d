"""Time per step on a GPU, beside the bandwidth of a copy and the peers that are installed.

    python -m benchmarks.gpu --out results/gpu

Times are of device events around a step, with cold caches and the launches waiting; what the host takes to launch a
step is timed apart. Writes gpu-bench.json after every cell, and gpu-bench.png where matplotlib is installed.
``--device cpu --quick`` only shows that the program runs.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile, record_function

from benchmarks.peers import BITSANDBYTES, BITSANDBYTES_PAGED, OURS, TORCH_FUSED, TORCHAO, Peer, find, in_host_memory
from benchmarks.timing import summary

MIB = 1024**2
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def llama_7b(elements: int) -> list[tuple[int, ...]]:
    """The shapes of a Llama with 7B parameters (arXiv 2302.13971), as many of its blocks as fit into `elements`."""
    width, hidden, vocabulary = 4096, 11008, 32000
    block = [(width, width)] * 4 + [(hidden, width), (hidden, width), (width, hidden), (width,), (width,)]
    ends = [(vocabulary, width), (width,), (vocabulary, width)]
    size = 4 * width**2 + 3 * width * hidden
    count = min(32, max(1, (elements - 2 * vocabulary * width) // size))
    return [*ends, *block * count]


def shapes_of(quick: bool, memory: int) -> dict[str, list[tuple[int, ...]]]:
    """What is stepped, by name; `memory`: bytes that there are."""
    if quick:
        return {"64K": [(1024, 64)], "20 small": [(16, 16)] * 20}
    fits = memory // 20  # two parameters' worth of float32, their gradients, and 8 bytes of state
    sizes = {f"{m}M": [(m, MIB)] for m in (16, 64, 256, 1024) if m * MIB <= fits}
    small = {"1000 small": [(64, 64)] * 1000, "10000 small": [(64, 64)] * 10000}
    return {**sizes, **small, "7B-shaped": llama_7b(min(fits, 3 * 1024 * MIB))}


class Clock:
    """Seconds of steps: of the device by its events, of the host by its clock. Without a GPU they are the same."""

    MOST_FILLS = 400
    """The device takes about a thousand launches ahead; more would make the host wait."""

    PATIENCE = 2.0
    """Seconds that the repeats of one optimizer on one set of shapes may take, unless three take longer."""

    def __init__(self, device: torch.device) -> None:
        self.cuda = device.type == "cuda"
        self.cold = torch.empty(256 * MIB if self.cuda else MIB, dtype=torch.uint8, device=device)
        self.fill = min(self.of_device(lambda: self.cold.fill_(1), 1) for _ in range(3))

    def of_host(self, step: Callable[[], Any]) -> float:
        """What one step takes until it returns, the device idle before it."""
        if self.cuda:
            torch.cuda.synchronize()
        start = time.perf_counter()
        step()
        return time.perf_counter() - start

    def of_device(self, step: Callable[[], Any], fills: int) -> float:
        """Of one step on cold caches: before it a buffer larger than those is written, `fills` times."""
        for _ in range(fills):
            self.cold.fill_(1)
        if not self.cuda:
            return self.of_host(step)
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        step()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / 1000

    def measure(self, step: Callable[[], Any], repeats: int) -> tuple[dict[str, float], dict[str, float]]:
        """Median and quartiles of the device and of the host, after three steps that do not count.

        Of slow steps there are fewer than `repeats`, at least three. The device is kept at filling the buffer until the
        host has launched the step, so that its time has no gaps in which it waits for launches.
        """
        warm = [self.of_host(step) for _ in range(3)][-1]
        fills = min(self.MOST_FILLS, 1 + int(1.5 * warm / self.fill)) if self.cuda else 1
        count = max(3, min(repeats, int(self.PATIENCE / (2 * warm))))
        times = [(self.of_device(step, fills), self.of_host(step)) for _ in range(count)]
        device, host = (summary(column) for column in zip(*times, strict=True))
        return device, host


def copy_bandwidth(clock: Clock, device: torch.device, size: int, repeats: int) -> float:
    """Bytes a second, read and written, of a copy of `size` bytes on the device; the median."""
    source, target = (torch.empty(size, dtype=torch.uint8, device=device) for _ in range(2))
    found, _ = clock.measure(partial(target.copy_, source), repeats)
    return 2 * size / found["median"]


def bus_bandwidth(clock: Clock, device: torch.device, size: int, repeats: int) -> float:
    """Bytes a second of a copy of `size` bytes from page-locked host memory to the device; the median."""
    source = torch.empty(size, dtype=torch.uint8, pin_memory=clock.cuda)
    target = torch.empty(size, dtype=torch.uint8, device=device)
    found, _ = clock.measure(partial(target.copy_, source, non_blocking=True), repeats)
    return size / found["median"]


def bytes_on_the_bus(optimizer: torch.optim.Optimizer) -> int:
    """What of the state crosses the bus at a step, in each direction."""
    state = [t for entry in optimizer.state.values() for t in entry.values() if isinstance(t, torch.Tensor)]
    return sum(t.nbytes for t in state if t.device.type == "cpu" and t.dim() > 0)


def floor_in_bytes(optimizer: torch.optim.Optimizer, params: list[torch.Tensor]) -> int:
    """What a step must move: parameters and state read and written, gradients read."""
    state = [t for entry in optimizer.state.values() for t in entry.values() if isinstance(t, torch.Tensor)]
    read_and_written = sum(t.nbytes for t in [*params, *state])
    return 2 * read_and_written + sum(p.grad.nbytes for p in params)


def calls_of_a_step(step: Callable[[], Any]) -> dict[str, int]:
    """Launches, and calls that wait for the device, of one step; the profiler waits once more when it stops."""
    activities = [ProfilerActivity.CPU, ProfilerActivity.CUDA]
    with profile(activities=activities) as profiler, record_function("the whole step"):
        step()
    events = profiler.events()
    host = next(e.time_range for e in events if e.name == "the whole step" and e.device_type == DeviceType.CPU)
    names = [event.name for event in events if event.time_range.start <= host.end or event.name.startswith("Memcpy")]
    waits = ("cudaDeviceSynchronize", "cudaStreamSynchronize", "cudaEventSynchronize", "cudaMemcpy")
    return {
        "launches": sum(name in ("cudaLaunchKernel", "cuLaunchKernel", "cudaLaunchKernelExC") for name in names),
        "waits": sum(name in waits for name in names),
        "copies": sum(name.startswith("Memcpy") for name in names),
    }


def cell(peer: Peer, rule: str, shapes: list, dtype: torch.dtype, clock: Clock, repeats: int, device: Any) -> dict:
    """One optimizer on one set of shapes."""
    torch.manual_seed(0)
    params = [torch.randn(shape, device=device).to(dtype).requires_grad_() for shape in shapes]
    for p in params:
        p.grad = torch.randn_like(p) * 1e-2
    optimizer = peer.build(rule, params)
    found, host = clock.measure(optimizer.step, repeats)
    moved = floor_in_bytes(optimizer, params)
    calls = calls_of_a_step(optimizer.step) if clock.cuda else {}
    row = {"seconds": found, "host_seconds": host, "floor_bytes": moved, **calls}
    crossing = bytes_on_the_bus(optimizer) if clock.cuda else 0
    return {**row, "bus_bytes": crossing} if crossing else row


def run(args: argparse.Namespace, out: Path) -> dict[str, Any]:
    """Every cell; the result is written after each."""
    device = torch.device(args.device)
    cuda = device.type == "cuda"
    clock = Clock(device)
    memory = torch.cuda.mem_get_info()[0] if cuda else 2**30
    repeats = 3 if args.quick else args.repeats
    libraries = [TORCH_FUSED, BITSANDBYTES, BITSANDBYTES_PAGED, TORCHAO] if cuda else [TORCH_FUSED]
    peers, missing = find(libraries, [8, 32])
    peers.append(in_host_memory())
    if unknown := set(args.peers or ()) - {peer.name for peer in peers}:
        known = ", ".join(peer.name for peer in peers)
        raise SystemExit(f"--peers {', '.join(sorted(unknown))}: expected some of {known}; left out: {missing}")
    peers = [peer for peer in peers if not args.peers or peer.name in args.peers]
    largest = (1 if args.quick else 2048) * MIB
    result: dict[str, Any] = {
        "device": torch.cuda.get_device_name() if cuda else "cpu, a dry run",
        "torch": torch.__version__,
        "left_out": missing,
        "copies": [copy_bandwidth(clock, device, largest, repeats)],
        "bus_bytes_per_second": bus_bandwidth(clock, device, largest // 4, repeats),
        "cells": [],
    }
    every = shapes_of(args.quick, memory)
    if unknown := set(args.shapes or ()) - set(every):
        raise SystemExit(f"--shapes {', '.join(sorted(unknown))}: expected some of {', '.join(every)}")
    names = [name for name in every if not args.shapes or name in args.shapes]
    for rule, name, dtype in product(args.rules, names, DTYPES):
        for peer in (peer for peer in peers if rule in peer.rules):
            row = {"shapes": name, "dtype": dtype, "rule": rule, "optimizer": peer.name}
            try:
                row |= cell(peer, rule, every[name], DTYPES[dtype], clock, repeats, device)
                said = f"{row['seconds']['median'] * 1000:.3f} ms, host {row['host_seconds']['median'] * 1000:.3f} ms"
            except (RuntimeError, NotImplementedError, ValueError) as error:  # a peer that cannot, or no memory
                said = row["error"] = f"{type(error).__name__}: {error}"[:300]
            print(f"{name} {dtype} {rule} {peer.name}: {said}", flush=True)
            if cuda:
                torch.cuda.empty_cache()
            result["cells"].append(row)
            save(result, out)
    result["copies"].append(copy_bandwidth(clock, device, largest, repeats))
    save(result, out)
    return result


def save(result: dict[str, Any], out: Path) -> None:
    """Writes what there is, with shares of the bandwidth: the copy's, or the bus's (one direction) where it is used."""
    result["copy_bytes_per_second"] = statistics.mean(result["copies"])
    for row in (row for row in result["cells"] if "error" not in row):
        if "bus_bytes" in row:
            row["share_of_bus"] = row["bus_bytes"] / row["seconds"]["median"] / result["bus_bytes_per_second"]
        else:
            row["share_of_copy"] = row["floor_bytes"] / row["seconds"]["median"] / result["copy_bytes_per_second"]
    (out / "gpu-bench.json").write_text(json.dumps(result, indent=2) + "\n")


def draw(result: dict[str, Any], path: Path) -> None:
    """For AdamW, by shapes: what a step takes the device, how fast bytes move that must, and what it takes the host."""
    from matplotlib import pyplot

    rows = [row for row in result["cells"] if row["rule"] == "adamw" and not row.keys() & {"bus_bytes", "error"}]
    if not rows:
        return
    names, optimizers = (list(dict.fromkeys(row[key] for row in rows)) for key in ("shapes", "optimizer"))
    figure, axes = pyplot.subplots(3, len(DTYPES), figsize=(12, 9), sharex=True, sharey="row", layout="constrained")
    width = 0.8 / max(1, len(optimizers))
    for column, dtype in enumerate(DTYPES):
        device, speed, host = axes[:, column]
        for index, optimizer in enumerate(optimizers):
            own = [row for row in rows if row["optimizer"] == optimizer and row["dtype"] == dtype]
            places = [names.index(row["shapes"]) + (index - len(optimizers) / 2 + 0.5) * width for row in own]
            seconds = [row["seconds"]["median"] for row in own]
            device.bar(places, [1000 * s for s in seconds], width, label=optimizer)
            speed.bar(places, [row["floor_bytes"] / s / 1e12 for row, s in zip(own, seconds, strict=True)], width)
            host.bar(places, [1000 * row["host_seconds"]["median"] for row in own], width)
        if copy := result.get("copy_bytes_per_second"):
            speed.axhline(copy / 1e12, color="gray", linestyle="--")
            speed.annotate("a copy", (0, copy / 1e12), va="bottom")
        device.set_title(f"AdamW, {dtype}: {result['device']}")
        device.set_yscale("log")
        host.set_yscale("log")
        host.set_xticks(range(len(names)), names, rotation=30)
    for axis, text in zip(axes[:, 0], ("ms of the device", "TB/s, of what must move", "ms of the host"), strict=True):
        axis.set_ylabel(text)
    axes[0, 0].legend()
    figure.savefig(path, dpi=120)


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--rules", nargs="+", default=["adamw", "lion", "sgd"])
    parser.add_argument("--shapes", nargs="+", metavar="NAME", help="some of them: 16M, '1000 small', 7B-shaped, ...")
    parser.add_argument(
        "--peers", nargs="+", metavar="NAME", help="some of them: 'torch_bnb 8-bit', 'torch fused', ..."
    )
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args()
    if args.device.startswith("cuda") and not torch.cuda.is_available():
        print(f"make gpu-bench needs a CUDA device; torch {torch.__version__} sees none", file=sys.stderr)
        return 1
    args.out.mkdir(parents=True, exist_ok=True)
    result = run(args, args.out)
    failed = [row for row in result["cells"] if row["optimizer"].startswith(OURS) and "error" in row]
    for row in failed:
        print(f"failed: {row}", file=sys.stderr)
    try:
        draw(result, args.out / "gpu-bench.png")
    except ImportError as error:
        print(f"no picture: {error}")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
