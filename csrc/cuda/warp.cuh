// What the 32 lanes of a warp find out together: each brings something of its own and gets to know the same. All of
// them must take part.
#pragma once
#include <cstdint>

namespace bnb::cuda::warp {

constexpr unsigned kAll = 0xffffffff;

__device__ inline bool any(bool mine) { return __any_sync(kAll, mine); }

__device__ inline std::int32_t largest(std::int32_t mine) {
#if __CUDA_ARCH__ >= 800
  return __reduce_max_sync(kAll, mine);
#else
  for (int distance = 16; distance > 0; distance /= 2) {
    const std::int32_t other = __shfl_xor_sync(kAll, mine, distance);
    mine = other > mine ? other : mine;
  }
  return mine;
#endif
}

// In an order that is always the same.
__device__ inline double sum(double mine) {
  for (int distance = 16; distance > 0; distance /= 2) mine += __shfl_xor_sync(kAll, mine, distance);
  return mine;
}

}  // namespace bnb::cuda::warp
