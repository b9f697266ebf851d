// What one instruction set offers. Each isa_*.cpp defines one table from the same source; dispatch.cpp chooses among
// them.
#pragma once
#include <cstdint>

#include "../layer.h"

namespace bnb::cpu {

// `layers`: one per slot, or null where nothing had to be measured.
using Step = void (*)(const Batch&, const Layer* layers, std::int64_t first_block, std::int64_t last_block);
using Measurement = void (*)(const Batch&, const Layer* layers, Measure* measures, std::int64_t first_block,
                             std::int64_t last_block);
using Code = void (*)(const Quantized&, std::int64_t first_block, std::int64_t last_block);

struct Kernels {
  const char* isa;
  std::array<bool, AllRules::kCount> layerwise;  // in the order of AllRules, as the next two
  std::array<Step, AllRules::kCount> step;
  std::array<Measurement, AllRules::kCount> measure;
  std::array<Code, 2> quantize, dequantize;  // by Sign
};

extern const Kernels kBaseline;
#if defined(__x86_64__)
extern const Kernels kAvx2, kAvx512;
#endif

const Kernels& kernels();  // for this machine, or for TORCH_BNB_ISA

}  // namespace bnb::cpu
