// The CPU kernels: chooses the instruction set, splits the blocks of a whole call among the threads.
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>

#include "../ops.h"
#include "kernels.h"

namespace bnb::cpu {

constexpr std::int64_t kGrain = 32;  // blocks that are worth a thread

const Kernels* fastest() {
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vl"))
    return &kAvx512;
  if (__builtin_cpu_supports("avx2")) return &kAvx2;
#endif
  return &kBaseline;
}

// TORCH_BNB_ISA=baseline|avx2|avx512 chooses a slower set than the machine's best, to compare them.
const Kernels* chosen() {
  const Kernels* const best = fastest();
  const char* wanted = std::getenv("TORCH_BNB_ISA");
  if (wanted == nullptr || *wanted == '\0') return best;
#if defined(__x86_64__)
  const Kernels* const sets[] = {&kBaseline, &kAvx2, &kAvx512};
#else
  const Kernels* const sets[] = {&kBaseline};
#endif
  for (const Kernels* set : sets) {
    if (std::strcmp(set->isa, wanted) == 0) return set;
    if (set == best) break;
  }
  STD_TORCH_CHECK(false, "TORCH_BNB_ISA=", wanted,
                  " is not one of baseline, avx2, avx512, or this machine lacks it (its best is ", best->isa, ")");
  return nullptr;
}

const Kernels& kernels() {
  static const Kernels* const set = chosen();
  return *set;
}

void launch(int rule, const Batch& batch) {
  const Step step = kernels().step[rule];
  torch::stable::parallel_for(0, batch.blocks, kGrain,
                              [&](std::int64_t first, std::int64_t last) { step(batch, first, last); });
}

void run_code(const Quantized& q, Code code) {
  const std::int64_t blocks = (q.numel + q.blocksize - 1) / q.blocksize;
  const std::int64_t grain = std::max<std::int64_t>(1, kGrain * kBlock / q.blocksize);
  torch::stable::parallel_for(0, blocks, grain, [&](std::int64_t first, std::int64_t last) { code(q, first, last); });
}

void quantize_blockwise(const Tensor& values, const Tensor& codes, const Tensor& absmax, bool is_signed,
                        std::int64_t blocksize) {
  run_code(make_quantized("quantize_blockwise", values, codes, absmax, blocksize), kernels().quantize[is_signed]);
}

void dequantize_blockwise(const Tensor& values, const Tensor& codes, const Tensor& absmax, bool is_signed,
                          std::int64_t blocksize) {
  run_code(make_quantized("dequantize_blockwise", values, codes, absmax, blocksize), kernels().dequantize[is_signed]);
}

}  // namespace bnb::cpu

STABLE_TORCH_LIBRARY_IMPL(torch_bnb, CPU, m) { bnb::implement_rules<bnb::cpu::launch>(m); }
STABLE_TORCH_LIBRARY_IMPL(torch_bnb_codec, CPU, m) {
  m.impl("quantize_blockwise", TORCH_BOX(&bnb::cpu::quantize_blockwise));
  m.impl("dequantize_blockwise", TORCH_BOX(&bnb::cpu::dequantize_blockwise));
}
