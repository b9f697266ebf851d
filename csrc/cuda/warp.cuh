// What the 32 lanes of a warp find out together: each brings something of its own and gets to know the same. All of
// them must take part.
#pragma once
#include "code.cuh"

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

// A table of which each lane has one number.
struct Spread {
  float mine;
  __device__ float operator[](std::uint32_t i) const { return __shfl_sync(kAll, mine, static_cast<int>(i)); }
  __device__ static bool any(bool b) { return warp::any(b); }
};

__device__ inline Lines<Spread> spread(const Lines<Numbers>& lines, int lane) {
  return {{lines.up.at[lane]}, {lines.slope.at[lane]}, {lines.offset.at[lane]}, {lines.most.at[lane]}};
}

__device__ inline Tables<Spread> spread(const Tables<Numbers>& tables, int lane) {
  return {{tables.power.at[lane]}, {spread(tables.of[0], lane), spread(tables.of[1], lane)}};
}

}  // namespace bnb::cuda::warp
