// What a rule's `measure` kernel found of blocks, added up to what its step needs of parameters. Always in the same
// order, so that a run can be repeated to the bit.
#pragma once
#include "part.h"

namespace bnb::cuda {

constexpr int kShares = 32;           // thread blocks for each parameter
constexpr int kThreadsOfShare = 256;  // in each

// The sum of what every thread of a block brings, for thread 0.
template <int kCount>
__device__ Measure add_up(const Measure& own) {
  __shared__ Measure sums[kCount];
  sums[threadIdx.x] = own;
  for (int half = kCount / 2; half > 0; half /= 2) {
    __syncthreads();
    if (static_cast<int>(threadIdx.x) < half) add(sums[threadIdx.x], sums[threadIdx.x + half]);
  }
  return sums[threadIdx.x];
}

// Thread block s * kShares + i: the i-th share of slot s.
__global__ void __launch_bounds__(kThreadsOfShare) add_shares(const __grid_constant__ Part part) {
  const Slot& slot = part.slots[blockIdx.x / kShares];
  const std::int64_t begin = slot.first_block, end = begin + blocks_in(slot);
  Measure sum{};
  for (std::int64_t block = begin + static_cast<std::int64_t>(blockIdx.x % kShares) * kThreadsOfShare + threadIdx.x;
       block < end; block += kShares * kThreadsOfShare)
    add(sum, part.measures[block]);
  sum = add_up<kThreadsOfShare>(sum);
  if (threadIdx.x == 0) part.sums[blockIdx.x] = sum;
}

// A thread block of kShares threads for each slot: what was measured goes where the call wants it, or to the layers.
__global__ void __launch_bounds__(kShares) finish(const __grid_constant__ Part part) {
  const Measure sum = add_up<kShares>(part.sums[blockIdx.x * kShares + threadIdx.x]);
  if (threadIdx.x != 0) return;
  if (Sums* const wanted = part.slots[blockIdx.x].sums)
    *wanted = sum.sums;
  else
    part.layers[blockIdx.x] = {norms_of(sum.sums, part.options.max_unorm), sum.absmax};
}

// The absmax of states that have one for the whole tensor, when every block has read the old one.
__global__ void store_absmax(const __grid_constant__ Part part) {
  const int slot = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (slot >= part.count || (part.found_inf != nullptr && *part.found_inf != 0)) return;
  for (std::size_t k = 0; k < AllRules::kMaxStates; ++k) {
    const State& state = part.slots[slot].states[k];
    if (state.whole) *state.absmax = part.layers[slot].absmax[k];
  }
}

}  // namespace bnb::cuda
