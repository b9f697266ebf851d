// What the 32 lanes of a warp find out together: each brings something of its own and gets to know the same. All of
// them must take part.
#pragma once
#include "code.cuh"

namespace bnb::cuda::warp {

constexpr unsigned kAll = 0xffffffff;

// Of this thread within its block of threads; the compiler knows that it is the same for all lanes.
__device__ inline int index() { return __shfl_sync(kAll, static_cast<int>(threadIdx.x / 32), 0); }

__device__ inline bool any(bool mine) { return __any_sync(kAll, mine); }

// The larger of |x| and |y|; NaN if either is.
__device__ inline float larger_magnitude(float x, float y) {
#if __CUDA_ARCH__ >= 800
  float most;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(most) : "f"(__builtin_fabsf(x)), "f"(__builtin_fabsf(y)));
  return most;
#else
  const std::int32_t one = magnitude_bits(x), other = magnitude_bits(y);  // they order like the numbers, NaN above all
  return float_of(static_cast<std::uint32_t>(one > other ? one : other));
#endif
}

// The largest magnitude of all lanes.
__device__ inline float largest(float mine) {
  std::int32_t bits = magnitude_bits(mine);
#if __CUDA_ARCH__ >= 800
  bits = __reduce_max_sync(kAll, bits);
#else
  for (int distance = 16; distance > 0; distance /= 2) {
    const std::int32_t other = __shfl_xor_sync(kAll, bits, distance);
    bits = other > bits ? other : bits;
  }
#endif
  return float_of(static_cast<std::uint32_t>(bits));
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

// The 8-bit code in a warp's registers.
using Code = Tables<Spread>;

__device__ inline Lines<Spread> my_lines(const Lines<Numbers>& lines, int lane) {
  return {{lines.up.at[lane]}, {lines.slope.at[lane]}, {lines.offset.at[lane]}, {lines.most.at[lane]}};
}

__device__ inline Code my_code() {
  const int lane = threadIdx.x % 32;
  return {{kTables.power.at[lane]}, {my_lines(kTables.of[0], lane), my_lines(kTables.of[1], lane)}};
}

}  // namespace bnb::cuda::warp
