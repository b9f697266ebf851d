// What one launch gets, by value, and how a batch is split into as many of them as it needs.
#pragma once
#include "../layer.h"

namespace bnb::cuda {

// CUDA takes 32764 bytes of arguments since 12.1 (Volta and newer), before that 4096.
#ifndef BNB_LAUNCH_BYTES
#if defined(CUDART_VERSION) && CUDART_VERSION < 12010
#define BNB_LAUNCH_BYTES 4096
#else
#define BNB_LAUNCH_BYTES 32764
#endif
#endif

// Some slots of a batch, with all that holds for them. Blocks are counted over the whole batch.
struct Heading {
  std::array<float, AllRules::kMaxScalars> scalars;  // unless `scalars_on_device`
  const float* scalars_on_device;
  const float* found_inf;
  Options options;
  Measure* measures;  // scratch: one per block
  Measure* sums;      // scratch: kShares per slot
  Layer* layers;      // scratch: one per slot
  std::int64_t first_block, end_block;
  std::int32_t count;
};

constexpr int kCapacity = (BNB_LAUNCH_BYTES - sizeof(Heading)) / sizeof(Slot);

struct Part : Heading {
  Slot slots[kCapacity];
};
static_assert(sizeof(Part) <= BNB_LAUNCH_BYTES);

constexpr int kThreadsOfStep = 128;  // a warp for every block of a tensor

// The slots from `first` on that one launch takes; no scratch yet.
inline Part part_from(const Batch& batch, std::int64_t first) {
  Part part{};
  if (batch.scalars_on_device)
    part.scalars_on_device = batch.scalars;
  else
    std::memcpy(part.scalars.data(), batch.scalars, sizeof(float) * batch.scalar_count);
  part.found_inf = batch.found_inf;
  part.options = batch.options;
  const std::int64_t left = batch.count - first;
  part.count = static_cast<std::int32_t>(left < kCapacity ? left : kCapacity);
  std::memcpy(part.slots, batch.slots + first, sizeof(Slot) * part.count);
  const Slot& last = part.slots[part.count - 1];
  part.first_block = part.slots[0].first_block;
  part.end_block = last.first_block + blocks_in(last);
  return part;
}

}  // namespace bnb::cuda
