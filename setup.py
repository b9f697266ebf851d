"""Builds ``torch_bnb._C``: CPU kernels always, CUDA kernels where nvcc is found; ``TORCH_BNB_CUDA=0|1`` forces it."""

import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

from setuptools import setup

try:
    import torch
    from torch.utils import cpp_extension
except ImportError:
    raise SystemExit(
        "torch-bnb builds against the torch that you run, and there is none here: install torch >= 2.10 first, "
        "then `pip install --no-build-isolation .`"
    ) from None

# GCC vectorises a rule only without errno and trapping maths; without contraction every instruction set gives the same
# bits.
CXX_FLAGS = [
    "-std=c++17",
    "-O3",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-ffp-contract=off",
    "-fopenmp-simd",
    "-fvisibility=hidden",
]
# Without contraction, and with denormals and exact division as is nvcc's default, a GPU computes what the CPU does.
NVCC_FLAGS = [
    "-std=c++17",
    "-O3",
    "-fmad=false",
    "--expt-relaxed-constexpr",
    "-Xfatbin=-compress-all",
    "-Xcompiler=-fvisibility=hidden,-ffp-contract=off",
]
STABLE_ABI = [("TORCH_TARGET_VERSION", "0x020a000000000000")]  # torch 2.10 and newer


def sources(pattern: str) -> list[str]:
    return sorted(str(path) for path in Path("csrc").rglob(pattern))


def find_cuda() -> str | None:
    """The toolkit's folder: CUDA_HOME, else what nvcc says of itself (it can be a wrapper script), else None."""
    if home := os.environ.get("CUDA_HOME") or cpp_extension.CUDA_HOME:
        return home
    if not (nvcc := shutil.which("nvcc")):
        return None
    with tempfile.NamedTemporaryFile(suffix=".cu") as empty:
        report = subprocess.run([nvcc, "--dryrun", empty.name], capture_output=True, text=True).stderr
    top = re.search(r"TOP=(\S+)", report)
    return top and str(Path(top[1]).resolve())


def extension() -> "cpp_extension.Extension":
    wanted = os.environ.get("TORCH_BNB_CUDA", "")
    if wanted not in ("", "0", "1"):
        raise SystemExit(
            f"TORCH_BNB_CUDA={wanted}: expected 0 (CPU only), 1 (CUDA or an error) or nothing (CUDA if nvcc is found)"
        )
    home = None if wanted == "0" else find_cuda()
    if wanted == "1" and not home:
        raise SystemExit("TORCH_BNB_CUDA=1, but no CUDA toolkit was found: set CUDA_HOME or put nvcc on the PATH")
    options = {
        "name": "torch_bnb._C",
        "define_macros": STABLE_ABI,
        "py_limited_api": True,
        "extra_compile_args": {"cxx": CXX_FLAGS, "nvcc": NVCC_FLAGS},
    }
    if not home:
        return cpp_extension.CppExtension(sources=sources("*.cpp"), **options)
    cpp_extension.CUDA_HOME = home
    if not torch.cuda.is_available():  # else torch builds for the GPU at hand
        os.environ.setdefault("TORCH_CUDA_ARCH_LIST", "7.5;8.0;9.0;10.0+PTX")
    module = cpp_extension.CUDAExtension(sources=sources("*.cpp") + sources("*.cu"), **options)
    # The stable ABI needs none of torch's CUDA libraries, which a CPU wheel lacks; with its own CUDA runtime the
    # extension loads wherever torch does.
    unneeded = ("torch_cuda", "c10_cuda", "cudart")
    module.libraries = [lib for lib in module.libraries if lib not in unneeded]
    module.libraries += ["cudart_static", "rt", "dl", "pthread"]
    if torch.version.cuda is not None:  # its only symbol here is weak, for which a linker would leave the library out
        module.extra_link_args = ["-Wl,--no-as-needed", "-ltorch_cuda"]
    return module


setup(
    ext_modules=[extension()],
    cmdclass={"build_ext": cpp_extension.BuildExtension},
    options={"bdist_wheel": {"py_limited_api": "cp310"}},
)
