// The kernels of a rule: a warp for a few blocks of 256, a Lane for each of its threads.
#pragma once
#include "lane.cuh"
#include "part.h"

namespace bnb::cuda {

// Thread blocks on a multiprocessor, which sets how many registers a thread gets: as many blocks as leave each kernel
// the registers that it needs.
template <class Rule, class Form>
constexpr int kResident = [] {
  constexpr int states = static_cast<int>(Rule::kStates.size());
  if (Form::kAligned) return states < 3 ? 7 : 6;
  return 7 - states - (kLayerwise<Rule> ? 1 : 0);
}();

// Blocks that a warp takes at most, one after the other. What it asks for once it then asks for less often, but the
// memory answers best when warps that run together read what lies together: so several only where a kernel has more to
// compute than to load, with few bytes for every number to decode.
template <class Rule, class Form>
constexpr int kMostRun = [] {
  constexpr std::int64_t codes = Rule::kStates.size(), bytes = 3 * size_of(Form::kDType) + 2 * codes;
  return !Form::kAligned || (Form::kStates == Lying::kInCodes && bytes < 10 * codes) ? 4 : 1;
}();

// Calls f(slot, block of the slot, index of both in the part) for this warp's run of blocks.
template <class Form, class F>
__device__ void for_my_blocks(const Part& part, const F& f) {
  const int run = part.run;
  const std::int64_t first = (static_cast<std::int64_t>(blockIdx.x) * kWarpsOfStep + warp::index()) * run;
  const std::int64_t end = first + run < part.blocks ? first + run : part.blocks;
  if (first >= end) return;  // the same for all of a warp
  int i = find_slot(part.slots, part.count, first);
  BNB_ROLL
  for (std::int64_t block = first; block < end; ++block) {
    if (i + 1 < part.count && part.slots[i + 1].first_block == block) ++i;
    f(Form::known(part.slots[i]), block - part.slots[i].first_block, i);
  }
}

template <class Rule>
__device__ Rule rule_of(const Part& part) {
  if (part.scalars_on_device != nullptr) return make_rule<Rule>(part.scalars_on_device);
  return make_rule<Rule>(part.scalars.data());
}

template <class Rule, class Form>
__global__ void __launch_bounds__(kThreadsOfStep, kResident<Rule, Form>) step(const __grid_constant__ Part part) {
  if (part.found_inf != nullptr && *part.found_inf != 0) return;
  const Code code = warp::my_code();
  const Rule given = rule_of<Rule>(part);
  const Options options = Form::known(part.options);
  for_my_blocks<Form>(part, [&](const Slot& slot, std::int64_t block, int i) {
    Lane<Rule, Form> lane(slot, block, code);
    if (options.skip_zeros && !has_whole_state(slot) && !warp::any(lane.has_gradient())) return;

    const Rule rule = rule_for(given, slot.norms);
    const float rate = slot.norms == nullptr ? rule.lr : rule.lr * slot.norms->shrink;
    lane.advance(rule, options, rate, slot.param_dtype == DType::kFloat64);
    lane.store_parameter(options);

    constexpr int states = Lane<Rule, Form>::kStates;
    float absmax[states];
    BNB_UNROLL
    for (int k = 0; k < states; ++k) {
      absmax[k] = 0;
      if (slot.states[k].whole)
        absmax[k] = part.layers[i].absmax[k];
      else if (lane.in_codes(k))
        absmax[k] = warp::largest(lane.largest(k));
    }
    lane.store_states(options, absmax);
  });
}

// What must be known of blocks beforehand; nothing is stored but `part.measures`. With the norms unknown, those for a
// layer-wise rule; then, for max_unorm and states with one absmax for the whole tensor, the step as if the rate were 1.
template <class Rule, class Form>
__global__ void __launch_bounds__(kThreadsOfStep, kResident<Rule, Form>) measure(const __grid_constant__ Part part) {
  const Code code = warp::my_code();
  Rule given = rule_of<Rule>(part);
  given.lr = 1;
  const Options options = Form::known(part.options);
  for_my_blocks<Form>(part, [&](const Slot& slot, std::int64_t block, int) {
    Lane<Rule, Form> lane(slot, block, code);
    const Rule rule = rule_for(given, slot.norms);
    Measure found{};
    found.sums.param = warp::sum(lane.squares_of_parameter());
    if (kLayerwise<Rule>) found.sums.measured = warp::sum(lane.squares_of_measured(rule, options));
    if (!kLayerwise<Rule> || slot.norms != nullptr) {
      lane.advance(rule, options, rule.lr, true);
      found.sums.update = warp::sum(lane.squares_of_parameter());
      BNB_UNROLL
      for (int k = 0; k < Lane<Rule, Form>::kStates; ++k) found.absmax[k] = warp::largest(lane.largest(k));
    }
    if (threadIdx.x % kWarp == 0) part.measures[slot.first_block + block] = found;
  });
}

}  // namespace bnb::cuda
