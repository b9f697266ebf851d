"""No kernel touches memory beyond its tensors: they lie between pages that nobody may read."""

import ctypes
import mmap
import os
import signal
import subprocess
import sys

import pytest
import torch
from calls import DTYPES, a_call
from cases import CASES

SIZES = (1, 3, 5, 255, 257, 516, 1021, 1024)
PAGE = mmap.PAGESIZE
LIBC = ctypes.CDLL(None, use_errno=True)


class Guarded:
    """Copies tensors to memory between two pages that must not be touched, at its end or at its start."""

    def __init__(self, at_end: bool) -> None:
        self.at_end = at_end
        self.memory: list[mmap.mmap] = []

    def __call__(self, tensor: torch.Tensor) -> torch.Tensor:
        if tensor.numel() == 0:
            return tensor
        room = -(-tensor.nbytes // PAGE) * PAGE
        self.memory.append(mmap.mmap(-1, room + 2 * PAGE))
        begin = ctypes.addressof(ctypes.c_char.from_buffer(self.memory[-1]))
        for page in (begin, begin + PAGE + room):
            assert LIBC.mprotect(ctypes.c_void_p(page), PAGE, 0) == 0
        offset = PAGE + (room - tensor.nbytes if self.at_end else 0)
        copy = torch.frombuffer(self.memory[-1], dtype=tensor.dtype, count=tensor.numel(), offset=offset)
        return copy.copy_(tensor)


def step_everything(rules, codec) -> None:
    for name in CASES:
        for bits in (8, 32):
            for at_end in (True, False):
                guarded = Guarded(at_end)
                tensors, scalars = a_call(name, {}, SIZES, DTYPES * 2, bits)
                given = [[guarded(t) for t in part] for part in tensors]
                getattr(rules, name)(*given, **scalars, max_unorm=1e-3, stochastic_weights=True, keys=[1] * len(SIZES))
    for at_end in (True, False):
        for blocksize in (64, 1000):
            guarded = Guarded(at_end)
            values, codes = guarded(torch.randn(5001)), guarded(torch.zeros(5001, dtype=torch.uint8))
            absmax = guarded(torch.zeros(-(-5001 // blocksize)))
            codec.quantize_blockwise(values, codes, absmax, True, blocksize)
            codec.dequantize_blockwise(values, codes, absmax, True, blocksize)


def read_beyond() -> None:
    tensor = Guarded(at_end=True)(torch.ones(3))
    ctypes.string_at(tensor.data_ptr() + tensor.nbytes, 1)


def run(*arguments, **environment):
    command = [sys.executable, __file__, *arguments]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment}, check=False)


@pytest.mark.parametrize("isa", ["baseline", "avx2", "avx512"])
def test_the_cpu_kernels(isa):
    done = run("cpu", TORCH_BNB_ISA=isa)
    if "or this machine lacks it" in done.stderr:
        pytest.skip(f"this machine lacks {isa}")
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr


def test_the_cuda_kernels_on_the_host(emulated):
    done = run("emulated", str(emulated))
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr


def test_that_it_would_be_seen():
    assert run("beyond").returncode in (-signal.SIGSEGV, -signal.SIGBUS)


if __name__ == "__main__":
    which = sys.argv[1]
    if which == "beyond":
        read_beyond()
    elif which == "cpu":
        step_everything(torch.ops.torch_bnb, torch.ops.torch_bnb_codec)
    else:
        torch.ops.load_library(sys.argv[2])
        step_everything(torch.ops.torch_bnb_emulated, torch.ops.torch_bnb_emulated_codec)
    print("done")
