"""Time per step on a GPU, beside the bandwidth of a copy and the peers that are installed.

    python -m benchmarks.gpu --out results/gpu

Times are of device events around a step; before each, a buffer larger than the cache is written. Writes gpu.json, and
gpu.png where matplotlib is installed. ``--device cpu --quick`` only shows that the program runs.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
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
    """Seconds of steps: by device events on a GPU, where nothing else would be seen, else by the host's clock."""

    def __init__(self, device: torch.device) -> None:
        self.cuda = device.type == "cuda"
        self.cold = torch.empty(256 * MIB if self.cuda else MIB, dtype=torch.uint8, device=device)

    def once(self, step: Callable[[], Any]) -> float:
        """Of one step on cold caches."""
        self.cold.fill_(1)
        if not self.cuda:
            start = time.perf_counter()
            step()
            return time.perf_counter() - start
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        step()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / 1000

    def measure(self, step: Callable[[], Any], repeats: int) -> dict[str, float]:
        """Median and quartiles, after three steps that do not count."""
        for _ in range(3):
            step()
        return summary(self.once(step) for _ in range(repeats))


def copy_bandwidth(clock: Clock, device: torch.device, size: int, repeats: int) -> float:
    """Bytes a second, read and written, of a copy of `size` bytes on the device; the median."""
    source, target = (torch.empty(size, dtype=torch.uint8, device=device) for _ in range(2))
    return 2 * size / clock.measure(partial(target.copy_, source), repeats)["median"]


def bus_bandwidth(clock: Clock, device: torch.device, size: int, repeats: int) -> float:
    """Bytes a second of a copy of `size` bytes from page-locked host memory to the device; the median."""
    source = torch.empty(size, dtype=torch.uint8, pin_memory=clock.cuda)
    target = torch.empty(size, dtype=torch.uint8, device=device)
    return size / clock.measure(partial(target.copy_, source, non_blocking=True), repeats)["median"]


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
    found = clock.measure(optimizer.step, repeats)
    moved = floor_in_bytes(optimizer, params)
    calls = calls_of_a_step(optimizer.step) if clock.cuda else {}
    row = {"seconds": found, "floor_bytes": moved, "bytes_per_second": moved / found["median"], **calls}
    return {**row, "bus_bytes": bytes_on_the_bus(optimizer)} if clock.cuda else row


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
    copies = [copy_bandwidth(clock, device, (1 if args.quick else 2048) * MIB, repeats)]
    result: dict[str, Any] = {
        "device": torch.cuda.get_device_name() if cuda else "cpu, a dry run",
        "torch": torch.__version__,
        "left_out": missing,
        "bus_bytes_per_second": bus_bandwidth(clock, device, (1 if args.quick else 512) * MIB, repeats),
        "cells": [],
    }
    every = shapes_of(args.quick, memory)
    if unknown := set(args.shapes or ()) - set(every):
        raise SystemExit(f"--shapes {', '.join(sorted(unknown))}: expected some of {', '.join(every)}")
    for name, shapes in every.items():
        if args.shapes and name not in args.shapes:
            continue
        for dtype_name, dtype in DTYPES.items():
            for rule in args.rules:
                for peer in (peer for peer in peers if rule in peer.rules):
                    row = {"shapes": name, "dtype": dtype_name, "rule": rule, "optimizer": peer.name}
                    try:
                        row |= cell(peer, rule, shapes, dtype, clock, repeats, device)
                        print(
                            f"{name} {dtype_name} {rule} {peer.name}: {row['seconds']['median'] * 1000:.3f} ms",
                            flush=True,
                        )
                    except (RuntimeError, NotImplementedError, ValueError) as error:  # a peer that cannot, or no memory
                        row["error"] = f"{type(error).__name__}: {error}"[:300]
                        print(f"{name} {dtype_name} {rule} {peer.name}: {row['error']}", flush=True)
                    if cuda:
                        torch.cuda.empty_cache()
                    result["cells"].append(row)
                    (out / "gpu-bench.json").write_text(json.dumps(result, indent=2) + "\n")
    copies.append(copy_bandwidth(clock, device, (1 if args.quick else 2048) * MIB, repeats))
    result["copy_bytes_per_second"] = statistics.mean(copies)
    for row in result["cells"]:
        if row.get("bus_bytes"):  # in each direction; the copy that it is compared with is of one
            row["share_of_bus"] = row["bus_bytes"] / row["seconds"]["median"] / result["bus_bytes_per_second"]
        elif "bytes_per_second" in row:
            row["share_of_copy"] = row["bytes_per_second"] / result["copy_bytes_per_second"]
    (out / "gpu-bench.json").write_text(json.dumps(result, indent=2) + "\n")
    return result


def draw(result: dict[str, Any], path: Path) -> None:
    """Share of the copy's bandwidth by shapes, for AdamW."""
    from matplotlib import pyplot

    names = list(dict.fromkeys(row["shapes"] for row in result["cells"]))
    figure, axes = pyplot.subplots(1, len(DTYPES), figsize=(12, 4), sharey=True)
    for axis, dtype in zip(axes, DTYPES, strict=True):
        rows = [r for r in result["cells"] if r["dtype"] == dtype and r["rule"] == "adamw" and "share_of_copy" in r]
        for optimizer in dict.fromkeys(row["optimizer"] for row in rows):
            own = {row["shapes"]: 100 * row["share_of_copy"] for row in rows if row["optimizer"] == optimizer}
            axis.plot([n for n in names if n in own], [own[n] for n in names if n in own], "o-", label=optimizer)
        axis.set_title(f"AdamW, {dtype}: {result['device']}")
        axis.tick_params(axis="x", rotation=30)
        axis.set_ylim(bottom=0)
    axes[0].set_ylabel("bytes a step must move,\n% of the copy's bandwidth")
    axes[0].legend()
    figure.tight_layout()
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
