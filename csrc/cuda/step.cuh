// The kernels of a rule: a warp for every block of 256 elements, a Lane for each of its threads.
#pragma once
#include "lane.cuh"
#include "part.h"

namespace bnb::cuda {

constexpr int kThreads = kThreadsOfStep;
constexpr int kWarps = kThreads / kWarp;

// Thread blocks on a multiprocessor, which sets how many registers a thread gets: as many blocks as leave each kernel
// the registers that it needs.
template <class Rule>
constexpr int kResident = 7 - static_cast<int>(Rule::kStates.size()) - (kLayerwise<Rule> ? 1 : 0);

// Of the whole batch.
__device__ inline std::int64_t my_block(const Part& part) {
  return part.first_block + static_cast<std::int64_t>(blockIdx.x) * kWarps + threadIdx.x / kWarp;
}

__device__ inline int slot_of(const Part& part, std::int64_t block) {
  return static_cast<int>(find_slot(part.slots, part.count, block));
}

template <class Rule>
__device__ Lane<Rule> my_lane(const Slot& slot, std::int64_t block) {
  return Lane<Rule>(slot, block - slot.first_block, threadIdx.x % kWarp);
}

__device__ inline bool may_change(const Part& part) { return part.found_inf == nullptr || *part.found_inf == 0; }

template <class Rule>
__device__ Rule rule_of(const Part& part) {
  return make_rule<Rule>(part.scalars_on_device == nullptr ? part.scalars.data() : part.scalars_on_device);
}

// What is known of a slot's parameter, or null.
__device__ inline const Norms* norms_for(const Part& part, int slot) {
  if (part.slots[slot].norms != nullptr) return part.slots[slot].norms;
  return part.layers == nullptr ? nullptr : &part.layers[slot].norms;
}

template <class Rule>
__device__ void step_block(const Part& part) {
  const std::int64_t block = my_block(part);
  if (block >= part.end_block || !may_change(part)) return;  // the same for all of a warp
  const int slot = slot_of(part, block);
  auto lane = my_lane<Rule>(part.slots[slot], block);
  if (part.options.skip_zeros && !has_whole_state(part.slots[slot]) && !warp::any(lane.has_gradient())) return;

  const Norms* const norms = norms_for(part, slot);
  const Rule rule = rule_for(rule_of<Rule>(part), norms);
  const float rate = norms == nullptr ? rule.lr : rule.lr * norms->shrink;
  lane.advance(rule, part.options, rate, part.slots[slot].param_dtype == DType::kFloat64);
  lane.store_parameter(part.options);

  constexpr int states = Lane<Rule>::kStates;
  float absmax[states];
  BNB_UNROLL
  for (int k = 0; k < states; ++k) {
    const State& state = part.slots[slot].states[k];
    absmax[k] = 0;
    if (state.whole)
      absmax[k] = part.layers[slot].absmax[k];
    else if (state.codes)
      absmax[k] = float_of(warp::largest(lane.largest(k)));
  }
  lane.store_states(part.options, absmax);
}

template <class Rule>
__global__ void __launch_bounds__(kThreads, kResident<Rule>) step(const __grid_constant__ Part part) {
  step_block<Rule>(part);
}

// What must be known of blocks beforehand; nothing is stored but `part.measures`. With the norms unknown, those for a
// layer-wise rule; then, for max_unorm and states with one absmax for the whole tensor, the step as if the rate were 1.
template <class Rule>
__global__ void __launch_bounds__(kThreads, kResident<Rule>) measure(const __grid_constant__ Part part) {
  const std::int64_t block = my_block(part);
  if (block >= part.end_block) return;
  const int slot = slot_of(part, block);
  auto lane = my_lane<Rule>(part.slots[slot], block);

  const Norms* const norms = norms_for(part, slot);
  Rule rule = rule_of<Rule>(part);
  rule.lr = 1;
  rule = rule_for(rule, norms);
  Measure found{};
  found.sums.param = warp::sum(lane.squares_of_parameter());
  if (kLayerwise<Rule>) found.sums.measured = warp::sum(lane.squares_of_measured(rule, part.options));
  if (!kLayerwise<Rule> || norms != nullptr) {
    lane.advance(rule, part.options, rule.lr, true);
    found.sums.update = warp::sum(lane.squares_of_parameter());
    BNB_UNROLL
    for (int k = 0; k < Lane<Rule>::kStates; ++k) found.absmax[k] = float_of(warp::largest(lane.largest(k)));
  }
  if (threadIdx.x % kWarp == 0) part.measures[block - part.first_block] = found;
}

}  // namespace bnb::cuda
