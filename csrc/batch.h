// What an op hands to a device: its tensors as bare pointers. Plain data that means the same to every object file; no
// torch.
#pragma once
#include <array>
#include <cstdint>

#include "rules.h"
#include "storage.h"

namespace bnb {

enum class DType { kFloat32, kBFloat16, kFloat16, kFloat64 };

// One parameter with its gradient and states.
struct Slot {
  void* param;
  const void* grad;
  DType param_dtype, grad_dtype;
  std::int64_t numel;                              // > 0
  std::int64_t first_block;                        // blocks of all slots before this one
  std::array<State, AllRules::kMaxStates> states;  // as many as the rule has
};

// The parameters of one call, updated with the same scalars.
struct Batch {
  const Slot* slots;
  std::int64_t count;
  std::int64_t blocks;   // of all slots together
  const float* scalars;  // of the rule, in the order of its kScalars
  float grad_scale;      // gradients are multiplied by it as they are read: -1 maximises
};

// A float32 tensor and its 8-bit form.
struct Quantized {
  float* values;
  std::uint8_t* codes;
  float* absmax;  // one per block of `blocksize` elements
  std::int64_t numel, blocksize;
};

}  // namespace bnb
