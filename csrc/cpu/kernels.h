// What one instruction set offers. Each isa_*.cpp defines one table from the same source; dispatch.cpp chooses among
// them.
#pragma once
#include <cstdint>

#include "../batch.h"

namespace bnb::cpu {

using Step = void (*)(const Batch&, std::int64_t first_block, std::int64_t last_block);
using Code = void (*)(const Quantized&, std::int64_t first_block, std::int64_t last_block);

struct Kernels {
  const char* isa;
  std::array<Step, AllRules::kCount> step;   // in the order of AllRules
  std::array<Code, 2> quantize, dequantize;  // by Sign
};

extern const Kernels kBaseline;
#if defined(__x86_64__)
extern const Kernels kAvx2, kAvx512;
#endif

const Kernels& kernels();  // for this machine, or for TORCH_BNB_ISA

}  // namespace bnb::cpu
