// What an op hands to a device: its tensors as bare pointers. Plain data that means the same to every object file; no
// torch.
#pragma once
#include <array>
#include <cstdint>

#include "rules.h"
#include "storage.h"

namespace bnb {

enum class DType { kFloat32, kBFloat16, kFloat16, kFloat64 };

// Bytes of an element.
constexpr std::int64_t size_of(DType dtype) { return dtype == DType::kFloat64 ? 8 : dtype == DType::kFloat32 ? 4 : 2; }

inline void* at(DType dtype, void* data, std::int64_t index) {
  return static_cast<char*>(data) + size_of(dtype) * index;
}
inline const void* at(DType dtype, const void* data, std::int64_t index) {
  return static_cast<const char*>(data) + size_of(dtype) * index;
}

// How a tensor is cut into blocks: row by row, a block never crosses one. The usual tensor is a single row. What lies
// here may be a part of the tensor (a shard, whose rows are parts of its rows).
struct Grid {
  std::int64_t row;     // elements of a row here, > 0
  std::int64_t stride;  // elements of a row of the whole tensor
  std::int64_t origin;  // index in the whole tensor of the first element here
};

// What has been measured of a whole parameter before it is stepped.
struct Norms {
  float param, measured;  // measured: of what a layer-wise rule measures
  float shrink;           // factor that keeps the update within max_unorm
};

// Sums of squares over a parameter, or the part of it that is here.
struct Sums {
  double param, measured, update;
};

// One parameter with its gradient and states.
struct Slot {
  void* param;
  const void* grad;
  DType param_dtype, grad_dtype;
  std::int64_t numel;  // > 0, whole rows
  Grid grid;
  std::int64_t first_block;                        // blocks of all slots before this one
  const float* grad_scale;                         // one more factor for this gradient, or null
  const Norms* norms;                              // given, or null: whoever needs them measures what is here
  Sums* sums;                                      // where measured ones go, or null
  std::uint64_t key;                               // of this parameter at this step, for stochastic rounding
  const std::int64_t* counter;                     // or, if not null, where a kernel finds what `key` is made of
  std::array<State, AllRules::kMaxStates> states;  // as many as the rule has
};

// What holds for every parameter of a call, whatever its rule.
struct Options {
  float grad_scale;         // gradients are multiplied by it: -1 maximises
  float max_unorm;          // longest update, in norms of the parameter; 0: any
  bool skip_zeros;          // where the gradient is 0, nothing changes, no state either
  bool stochastic_weights;  // rounding of bfloat16 and float16 parameters
  std::array<bool, AllRules::kMaxStates> stochastic_states;  // rounding of each 8-bit state
  std::uint64_t seed;                                        // with a slot's `counter`
};

// The parameters of one call, updated with the same scalars.
struct Batch {
  const Slot* slots;
  std::int64_t count;
  std::int64_t blocks;   // of all slots together
  const float* scalars;  // of the rule, in the order of its kScalars
  Options options;
  std::int32_t scalar_count;
  bool scalars_on_device;  // a kernel reads them; else the host does
  const float* found_inf;  // where a kernel finds whether nothing may change, or null
  std::int32_t device;     // index
};

// A float32 tensor and its 8-bit form.
struct Quantized {
  float* values;
  std::uint8_t* codes;
  float* absmax;  // one per block of `blocksize` elements
  std::int64_t numel, blocksize;
};

inline namespace BNB_ISA {

BNB_HD std::int64_t blocks_of(std::int64_t numel, std::int64_t blocksize = kBlock) {
  return (numel + blocksize - 1) / blocksize;
}

// Index of the slot that holds a block, counted over all slots of a batch.
BNB_HD int find_slot(const Slot* slots, int count, std::int64_t block) {
  int low = 0, high = count;  // slots[low].first_block <= block < slots[high].first_block
  while (high - low > 1) {
    const int middle = static_cast<int>(static_cast<unsigned>(low + high) / 2);
    (slots[middle].first_block <= block ? low : high) = middle;
  }
  return low;
}

BNB_HD std::int64_t blocks_in(const Slot& slot) { return slot.numel / slot.grid.row * blocks_of(slot.grid.row); }

// The elements of one block.
struct Span {
  std::int64_t begin;  // of the tensor here
  int n;
  std::int64_t index;  // of the first one in the whole tensor
};

BNB_HD Span span_of(const Slot& slot, std::int64_t block) {
  const Grid& grid = slot.grid;
  const bool one = grid.row == slot.numel;
  const std::int64_t in_row = blocks_of(grid.row), row = one ? 0 : block / in_row;
  const std::int64_t column = (block - row * in_row) * kBlock, left = grid.row - column;
  return {row * grid.row + column, static_cast<int>(left < kBlock ? left : kBlock),
          grid.origin + row * grid.stride + column};
}

// `max_unorm`: longest update in norms of the parameter, 0: any.
BNB_HD Norms norms_of(const Sums& sums, float max_unorm) {
  const double param = __builtin_sqrt(sums.param), update = __builtin_sqrt(sums.update), limit = max_unorm * param;
  const bool too_long = limit > 0 && update > limit;
  return {static_cast<float>(param), static_cast<float>(__builtin_sqrt(sums.measured)),
          too_long ? static_cast<float>(limit / update) : 1.0f};
}

}  // namespace BNB_ISA
}  // namespace bnb
