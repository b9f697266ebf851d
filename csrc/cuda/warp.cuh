// A real warp: each of its lanes runs this code with its own Lane, and they exchange by shuffles. All 32 take part.
#pragma once
#include "lane.h"

namespace bnb::cuda {

template <class L>
class Warp {
 public:
  __device__ explicit Warp(const L& lane) : lane_(lane) {}

  template <class F>
  __device__ void each(const F& f) {
    f(lane_);
  }

  template <class F>
  __device__ bool any(const F& f) const {
    return __any_sync(kAll, f(lane_));
  }

  template <class F>
  __device__ std::int32_t largest(const F& f) const {
#if __CUDA_ARCH__ >= 800
    return __reduce_max_sync(kAll, f(lane_));
#else
    std::int32_t most = f(lane_);
    for (int distance = kWarp / 2; distance > 0; distance /= 2) {
      const std::int32_t other = __shfl_xor_sync(kAll, most, distance);
      most = other > most ? other : most;
    }
    return most;
#endif
  }

  template <class F>
  __device__ double sum(const F& f) const {
    double total = f(lane_);
    for (int distance = kWarp / 2; distance > 0; distance /= 2) total += __shfl_xor_sync(kAll, total, distance);
    return total;
  }

 private:
  static constexpr unsigned kAll = 0xffffffff;
  L lane_;
};

}  // namespace bnb::cuda
