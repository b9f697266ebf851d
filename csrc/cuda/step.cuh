// The kernels of a rule: a warp for every block of 256 elements.
#pragma once
#include "block.h"
#include "warp.cuh"

namespace bnb::cuda {

constexpr int kThreads = kThreadsOfStep;
constexpr int kWarps = kThreads / kWarp;

// Thread blocks on a multiprocessor, which sets how many registers a thread gets: 80, or 96 with three states. That is
// 640 lanes or more at once with 80 bytes under way each, several times what hides the memory's latency.
template <class Rule>
constexpr int kResident = Rule::kStates.size() > 2 ? 5 : 6;

__device__ inline std::int64_t my_block(const Part& part) {
  return part.first_block + static_cast<std::int64_t>(blockIdx.x) * kWarps + threadIdx.x / kWarp;
}

__device__ inline bool may_change(const Part& part) { return part.found_inf == nullptr || *part.found_inf == 0; }

template <class Rule>
__global__ void __launch_bounds__(kThreads, kResident<Rule>) step(const __grid_constant__ Part part) {
  const std::int64_t block = my_block(part);
  if (block >= part.end_block || !may_change(part)) return;  // the same for all of a warp
  const int slot = static_cast<int>(find_slot(part.slots, part.count, block));
  Warp<Lane<Rule>> warp(Lane<Rule>(part.slots[slot], block - part.slots[slot].first_block, threadIdx.x % kWarp));
  step_block<Rule>(part, slot, warp);
}

template <class Rule>
__global__ void __launch_bounds__(kThreads, kResident<Rule>) measure(const __grid_constant__ Part part) {
  const std::int64_t block = my_block(part);
  if (block >= part.end_block) return;
  const int slot = static_cast<int>(find_slot(part.slots, part.count, block));
  Warp<Lane<Rule>> warp(Lane<Rule>(part.slots[slot], block - part.slots[slot].first_block, threadIdx.x % kWarp));
  const Measure found = measure_block<Rule>(part, slot, warp);
  if (threadIdx.x % kWarp == 0) part.measures[block - part.first_block] = found;
}

}  // namespace bnb::cuda
