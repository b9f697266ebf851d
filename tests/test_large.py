"""Tensors of more than 2^31 and 2^32 elements, without their memory: pages that nothing touches are never there."""

import subprocess
from pathlib import Path

import pytest

CSRC = Path(__file__).parents[1] / "csrc"

PROGRAM = r"""
#include <sys/mman.h>

#include <cstdio>

#define BNB_ISA baseline
#define BNB_LANES 4
#include "cpu/driver.h"

using namespace bnb;

template <class T>
T* reserve(std::int64_t count) {
  void* const at = mmap(nullptr, count * sizeof(T), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
                        -1, 0);
  if (at == MAP_FAILED) return nullptr;
  return static_cast<T*>(at);
}

struct Tensors {
  float *p, *g, *absmax[2];
  std::uint8_t* codes[2];

  explicit Tensors(std::int64_t n)
      : p(reserve<float>(n)),
        g(reserve<float>(n)),
        absmax{reserve<float>(n / kBlock + 1), reserve<float>(n / kBlock + 1)},
        codes{reserve<std::uint8_t>(n), reserve<std::uint8_t>(n)} {}

  Slot slot(std::int64_t n, std::int64_t first_block) const {
    Slot slot{p, g, DType::kFloat32, DType::kFloat32, n, {n, n, 0}, first_block, nullptr, nullptr, nullptr, 1, {}};
    for (int k = 0; k < 2; ++k) slot.states[k] = {nullptr, codes[k], absmax[k]};
    return slot;
  }
};

int main() {
  constexpr std::int64_t kLarge = (1ll << LOG2) + 2 * kBlock + 77, kSmall = 3 * kBlock - (kBlock - 77), kFirst = 3;
  const Tensors large(kLarge), small(kSmall), other(kFirst * kBlock);
  if (!large.p || !large.g || !large.codes[0] || !large.codes[1]) return 77;
  const std::int64_t begin = kLarge - kSmall;  // the last blocks of the large tensor are the small one
  for (std::int64_t i = 0; i < kSmall; ++i) {
    large.p[begin + i] = small.p[i] = 1 + 0.01f * i;
    large.g[begin + i] = small.g[i] = 0.5f - 0.003f * i;
    for (int k = 0; k < 2; ++k) large.codes[k][begin + i] = small.codes[k][i] = k == 0 ? 127 : 0;
  }
  const Slot slots[] = {other.slot(kFirst * kBlock, 0), large.slot(kLarge, kFirst)};
  const Slot alone[] = {small.slot(kSmall, 0)};
  const float scalars[] = {0.1f, 0.1f, 0.999f, 0.001f, 1e-8f, 0.01f, 10.0f, 31.6f};
  const std::int64_t blocks = (kLarge + kBlock - 1) / kBlock;
  const Batch both{slots, 2, kFirst + blocks, scalars, {1, 0, false, false, {}}};
  const Batch one{alone, 1, 3, scalars, {1, 0, false, false, {}}};
  for (int step = 0; step < 3; ++step) {
    step_blocks<AdamW>(both, nullptr, kFirst + blocks - 3, kFirst + blocks);
    step_blocks<AdamW>(one, nullptr, 0, 3);
  }
  for (std::int64_t i = 0; i < kSmall; ++i) {
    const bool moved = small.p[i] != 1 + 0.01f * i;
    if (!moved || large.p[begin + i] != small.p[i] || large.codes[0][begin + i] != small.codes[0][i]) return 1;
  }
  // Chance depends on all bits of an index.
  const Noise noise(7, 0, begin), low(7, 0, begin & 0xffffffff);
  const bool beyond = begin >> 32 != 0;
  std::puts((noise[0][0] != low[0][0]) == beyond ? "same" : "index cut");
}
"""


@pytest.mark.parametrize("log2", [31, 33])
def test_indices_have_64_bits(log2, tmp_path):
    source, program = tmp_path / "large.cpp", tmp_path / "large"
    source.write_text(PROGRAM)
    flags = ["-std=c++17", "-O1", "-fopenmp-simd", f"-DLOG2={log2}", f"-I{CSRC}"]
    built = subprocess.run(
        ["c++", *flags, str(source), "-o", str(program)], capture_output=True, text=True, check=False
    )
    assert built.returncode == 0, built.stderr
    done = subprocess.run([str(program)], capture_output=True, text=True, check=False)
    if done.returncode == 77:
        pytest.skip("this system reserves no address space without memory")
    assert (done.returncode, done.stdout) == (0, "same\n")
