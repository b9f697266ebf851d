"""Makes a result of what `benchmarks.gpu` said of each cell, where its own was lost.

    python -m benchmarks.gpu_log benchmarks/results/cuda-nvidia-h200.log

Writes a result and a picture beside the log: medians only, without the copy's bandwidth and the count of calls. The
bytes that a step must move follow from shapes, dtype and kind of state.
"""

import argparse
import json
import math
import re
from pathlib import Path
from typing import Any

from benchmarks.gpu import DTYPES, draw, shapes_of

MOMENTS = {"adamw": 2, "lion": 1}
LINE = re.compile(
    r"(?P<shapes>.+) (?P<dtype>fp32|bf16) (?P<rule>adamw|lion) (?P<optimizer>[^:]+): "
    r"(?P<device>[\d.]+) ms, host (?P<host>[\d.]+) ms"
)


def bytes_of_state(optimizer: str, rule: str, dtype: str, numels: list[int]) -> int:
    """Of all parameters: codes and absmax from 4096 elements on, or values of 32 bits, or of the parameter's dtype."""
    moments = MOMENTS[rule]
    if optimizer == "torch fused":
        return sum(moments * DTYPES[dtype].itemsize * numel + 4 for numel in numels)  # 4: its count of steps
    if "8-bit" in optimizer:
        return moments * sum(n + 4 * math.ceil(n / 256) if n >= 4096 else 4 * n for n in numels)
    return moments * 4 * sum(numels)


def result_of(log: str) -> dict[str, Any]:
    """The result of an H200's log; shapes are those that fit into its memory."""
    every, cells = shapes_of(quick=False, memory=139 * 2**30), []
    for line in log.splitlines():
        said = LINE.fullmatch(line)
        if said is None:
            raise SystemExit(f"{line!r}: expected SHAPES DTYPE RULE OPTIMIZER: N ms, host N ms")
        row: dict[str, Any] = {key: said[key] for key in ("shapes", "dtype", "rule", "optimizer")}
        numels = [math.prod(shape) for shape in every[said["shapes"]]]
        state = bytes_of_state(row["optimizer"], row["rule"], row["dtype"], numels)
        row["seconds"], row["host_seconds"] = ({"median": float(said[key]) / 1000} for key in ("device", "host"))
        row["floor_bytes"] = 2 * state + 3 * DTYPES[row["dtype"]].itemsize * sum(numels)
        if "paged" in row["optimizer"]:
            row["bus_bytes"] = state
        cells.append(row)
    note = "Made by benchmarks.gpu_log: medians as they were printed. No quartiles, no copy, no count of calls."
    return {"device": "NVIDIA H200", "torch": "2.11.0+cu130", "note": note, "cells": cells}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("log", type=Path)
    log = parser.parse_args().log
    result = result_of(log.read_text())
    log.with_suffix(".json").write_text(json.dumps(result, indent=2) + "\n")
    draw(result, log.with_suffix(".png"))


if __name__ == "__main__":
    main()
