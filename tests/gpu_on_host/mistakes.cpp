// Kernels with the usual mistakes, to see that this GPU shows them. Their operators, torch.ops.gpu_on_host_mistakes,
// return the sum of the thread indices of a block of 64, or an error.
#include <torch/csrc/stable/library.h>

#include <string>

#include "cuda_runtime.h"

namespace {

constexpr unsigned kThreads = 64;
enum class Mistake { kNone, kNoBarrier, kBarrierNotForAll, kLaneLeft, kNotAllLanes, kTwoPlaces };

template <Mistake mistake>
__global__ void add_up(std::int64_t* sum) {
  __shared__ std::int64_t sums[kThreads];
  const unsigned me = threadIdx.x;
  sums[me] = me;
  for (unsigned half = kThreads / 2; half > 0; half /= 2) {
    if (mistake == Mistake::kBarrierNotForAll ? me < half : mistake != Mistake::kNoBarrier) __syncthreads();
    if (me < half) sums[me] += sums[me + half];
  }
  if (mistake == Mistake::kLaneLeft && me == 5) return;
  const unsigned mask = mistake == Mistake::kNotAllLanes ? 0xffff : 0xffffffff;
  if (mistake == Mistake::kTwoPlaces && me == 7)
    __any_sync(mask, true);
  else
    __shfl_xor_sync(mask, sums[me], 1);
  if (me == 0) *sum = sums[0];
}

template <Mistake mistake>
std::int64_t sum() {
  std::int64_t result = 0, *place = &result;
  void* arguments[] = {&place};
  const cudaError_t error = cudaLaunchKernel(add_up<mistake>, 1, kThreads, arguments, 0, nullptr);
  STD_TORCH_CHECK(error == cudaSuccess, cudaGetErrorString(error));
  return result;
}

}  // namespace

STABLE_TORCH_LIBRARY(gpu_on_host_mistakes, m) {
  for (const char* name : {"none", "no_barrier", "barrier_not_for_all", "lane_left", "not_all_lanes", "two_places"})
    m.def((std::string(name) + "() -> int").c_str());
}
STABLE_TORCH_LIBRARY_IMPL(gpu_on_host_mistakes, CompositeExplicitAutograd, m) {
  m.impl("none", TORCH_BOX(&sum<Mistake::kNone>));
  m.impl("no_barrier", TORCH_BOX(&sum<Mistake::kNoBarrier>));
  m.impl("barrier_not_for_all", TORCH_BOX(&sum<Mistake::kBarrierNotForAll>));
  m.impl("lane_left", TORCH_BOX(&sum<Mistake::kLaneLeft>));
  m.impl("not_all_lanes", TORCH_BOX(&sum<Mistake::kNotAllLanes>));
  m.impl("two_places", TORCH_BOX(&sum<Mistake::kTwoPlaces>));
}
