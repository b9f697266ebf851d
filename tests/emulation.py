"""csrc/cuda for the host's CPU, as a library: see emulated.cpp and gpu_on_host."""

import os
import subprocess
from pathlib import Path

import torch
from torch.utils import cpp_extension

ROOT = Path(__file__).parents[1]
LIMITS = {"BNB_LAUNCH_BYTES": 1024, "BNB_ENOUGH_WARPS": 2}
"""A few parameters fill a launch, so that the tests have calls of many, and a few blocks are several for a warp."""
SOURCES = (
    "tests/emulated.cpp",
    "tests/gpu_on_host/gpu.cpp",
    "tests/gpu_on_host/mistakes.cpp",
    "csrc/arguments.cpp",
)


def build(folder: Path) -> Path:
    """Compiles it with the flags that hold for the CPU's kernels where they move a bit."""
    library = folder / "emulated.so"
    includes = [ROOT / "tests/gpu_on_host", ROOT / "csrc", *cpp_extension.include_paths()]
    command = [os.environ.get("CXX", "c++"), "-std=c++17", "-O1", "-fPIC", "-shared", "-ffp-contract=off"]
    command += ["-fvisibility=hidden", "-U_FORTIFY_SOURCE", *(f"-D{name}={value}" for name, value in LIMITS.items())]
    command += ["-DTORCH_TARGET_VERSION=0x020a000000000000", *(f"-I{path}" for path in includes)]
    command += [str(ROOT / source) for source in SOURCES]
    command += ["-Wl,-Bsymbolic", f"-L{Path(torch.__file__).parent / 'lib'}", "-ltorch", "-ltorch_cpu"]
    done = subprocess.run([*command, "-o", str(library)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return library
