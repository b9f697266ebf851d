// The CPU kernels: chooses the instruction set, splits the blocks of a whole call among the threads.
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "../check.h"
#include "../ops.h"
#include "kernels.h"

namespace bnb::cpu {

constexpr std::int64_t kGrain = 32;  // blocks that are worth a thread

const Kernels* fastest() {
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vbmi"))
    return &kAvx512;
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c")) return &kAvx2;
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
  fail("TORCH_BNB_ISA=", wanted, " is not one of baseline, avx2, avx512, or this machine lacks it (its best is ",
       best->isa, ")");
}

const Kernels& kernels() {
  static const Kernels* const set = chosen();
  return *set;
}

// Measures every parameter, by blocks in parallel and then in a fixed order, so that threads do not change a bit.
std::vector<Measure> measure(const Batch& batch, Measurement measurement, const Layer* before) {
  std::vector<Measure> blocks(batch.blocks), slots(batch.count);
  torch::stable::parallel_for(0, batch.blocks, kGrain, [&](std::int64_t first, std::int64_t last) {
    measurement(batch, before, blocks.data(), first, last);
  });
  for (std::int64_t i = 0; i < batch.count; ++i) {
    const std::int64_t last = i + 1 < batch.count ? batch.slots[i + 1].first_block : batch.blocks;
    for (std::int64_t block = batch.slots[i].first_block; block < last; ++block) add(slots[i], blocks[block]);
  }
  return slots;
}

std::vector<Layer> layers_of(const std::vector<Measure>& measured, float max_unorm) {
  std::vector<Layer> layers(measured.size());
  std::transform(measured.begin(), measured.end(), layers.begin(),
                 [&](const Measure& m) { return Layer{norms_of(m.sums, max_unorm), m.absmax}; });
  return layers;
}

// Those of which the norms are given: all slots or none.
std::vector<Layer> given_layers(const Batch& batch) {
  std::vector<Layer> layers;
  for (std::int64_t i = 0; i < batch.count && batch.slots[i].norms != nullptr; ++i)
    layers.push_back({*batch.slots[i].norms, {}});
  return layers;
}

void launch(int rule, const Batch& batch) {
  if (batch.found_inf != nullptr && *batch.found_inf != 0) return;
  const Kernels& set = kernels();
  std::vector<Layer> layers = given_layers(batch);
  bool whole = false;
  if (layers.empty()) {
    const float limit = batch.options.max_unorm;
    const auto look = [&] {
      layers = layers_of(measure(batch, set.measure[rule], layers.empty() ? nullptr : layers.data()), limit);
    };
    if (set.layerwise[rule]) look();
    if ((whole = has_whole_state(batch)) || limit > 0) look();
  }
  const Layer* known = layers.empty() ? nullptr : layers.data();
  torch::stable::parallel_for(0, batch.blocks, kGrain, [&](std::int64_t first, std::int64_t last) {
    set.step[rule](batch, known, first, last);
  });
  for (std::int64_t i = 0; whole && i < batch.count; ++i)
    for (std::size_t k = 0; k < layers[i].absmax.size(); ++k)
      if (batch.slots[i].states[k].whole) *batch.slots[i].states[k].absmax = layers[i].absmax[k];
}

void sum_up(int rule, const Batch& batch) {
  const std::vector<Layer> layers = given_layers(batch);
  const auto measured = measure(batch, kernels().measure[rule], layers.empty() ? nullptr : layers.data());
  for (std::int64_t i = 0; i < batch.count; ++i) *batch.slots[i].sums = measured[i].sums;
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

STABLE_TORCH_LIBRARY_IMPL(torch_bnb, CPU, m) {
  bnb::implement_rules<bnb::Task::kStep, bnb::cpu::launch>(m);
  bnb::implement_rules<bnb::Task::kStepByAddress, bnb::cpu::launch>(m);
  bnb::implement_rules<bnb::Task::kStepOnDevice, bnb::cpu::launch>(m);
}
STABLE_TORCH_LIBRARY_IMPL(torch_bnb_measure, CPU, m) { bnb::implement_rules<bnb::Task::kMeasure, bnb::cpu::sum_up>(m); }
STABLE_TORCH_LIBRARY_IMPL(torch_bnb_codec, CPU, m) {
  m.impl("quantize_blockwise", TORCH_BOX(&bnb::cpu::quantize_blockwise));
  m.impl("dequantize_blockwise", TORCH_BOX(&bnb::cpu::dequantize_blockwise));
}
