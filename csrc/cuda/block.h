// What a warp does with one block: the sequence of a step and of a measurement, for anything that lets lanes act and
// puts together what they find. On a GPU that is a real warp (warp.cuh); in a test, 32 lanes in a loop.
//
//   warp.each(f)     f(lane) for every lane
//   warp.any(f)      whether f(lane) is true for one
//   warp.largest(f)  of f(lane), an integer
//   warp.sum(f)      of f(lane), a double; in an order that is always the same
#pragma once
#include "lane.h"
#include "part.h"

namespace bnb {
inline namespace BNB_ISA {

template <class Rule>
BNB_HD Rule rule_of(const cuda::Part& part) {
  return make_rule<Rule>(part.scalars_on_device == nullptr ? part.scalars.data() : part.scalars_on_device);
}

// What is known of a slot's parameter, or null.
BNB_HD const Norms* norms_for(const cuda::Part& part, int slot) {
  if (part.slots[slot].norms != nullptr) return part.slots[slot].norms;
  return part.layers == nullptr ? nullptr : &part.layers[slot].norms;
}

template <class Rule, class Warp>
BNB_HD void step_block(const cuda::Part& part, int slot, Warp& warp) {
  const Options& options = part.options;
  using L = Lane<Rule>;
  if (options.skip_zeros && !warp.any([](const L& lane) { return lane.has_gradient(); })) return;
  const Norms* const norms = norms_for(part, slot);
  const Rule rule = rule_for(rule_of<Rule>(part), norms);
  const float rate = norms == nullptr ? rule.lr : rule.lr * norms->shrink;
  const bool from_zero = part.slots[slot].param_dtype == DType::kFloat64;
  warp.each([&](L& lane) {
    lane.advance(rule, options, rate, from_zero);
    lane.store_parameter(options);
  });
  float absmax[L::kStates];
  BNB_UNROLL
  for (int k = 0; k < L::kStates; ++k) {
    const State& state = part.slots[slot].states[k];
    absmax[k] = 0;
    if (state.whole)
      absmax[k] = part.layers[slot].absmax[k];
    else if (state.codes)
      absmax[k] = float_of(warp.largest([k](const L& lane) { return lane.largest(k); }));
  }
  warp.each([&](const L& lane) { lane.store_states(options, absmax); });
}

// What must be known of a block beforehand; nothing is stored but `to`, and the lanes are spent. With the norms
// unknown, those for a layer-wise rule; then, for max_unorm and states with one absmax for the whole tensor, the step
// as if the rate were 1.
template <class Rule, class Warp>
BNB_HD Measure measure_block(const cuda::Part& part, int slot, Warp& warp) {
  const Options& options = part.options;
  using L = Lane<Rule>;
  const Norms* const norms = norms_for(part, slot);
  Rule rule = rule_of<Rule>(part);
  rule.lr = 1;
  rule = rule_for(rule, norms);
  Measure measure{};
  measure.sums.param = warp.sum([](const L& lane) { return lane.squares_of_parameter(); });
  if constexpr (kLayerwise<Rule>) {
    measure.sums.measured = warp.sum([&](const L& lane) { return lane.squares_of_measured(rule, options); });
    if (norms == nullptr) return measure;
  }
  warp.each([&](L& lane) { lane.advance(rule, options, rule.lr, true); });
  measure.sums.update = warp.sum([](const L& lane) { return lane.squares_of_parameter(); });
  BNB_UNROLL
  for (int k = 0; k < L::kStates; ++k)
    measure.absmax[k] = float_of(warp.largest([k](const L& lane) { return lane.largest(k); }));
  return measure;
}

}  // namespace BNB_ISA
}  // namespace bnb
