// What a step must know of a whole parameter beforehand: norms for layer-wise rules and max_unorm, and the absmax of
// states that have one for the whole tensor. Measured by blocks, added up by whoever drives.
#pragma once
#include <type_traits>

#include "batch.h"

namespace bnb {

// Sums of squares over a block or more, and the absmax of its new states.
struct Measure {
  double param, measured, update;
  std::array<float, AllRules::kMaxStates> absmax;
};

// What a step needs of a parameter.
struct Layer {
  float param_norm, measured_norm;
  float shrink;                                    // factor that keeps the update within max_unorm
  std::array<float, AllRules::kMaxStates> absmax;  // of the new states
};

inline namespace BNB_ISA {

template <class Rule, class = void>
constexpr bool kLayerwise = false;
template <class Rule>
constexpr bool kLayerwise<Rule, std::void_t<decltype(&Rule::with_norms)>> = true;

// The rule for one parameter; `layer` may be null as long as nothing has been measured.
template <class Rule>
BNB_HD Rule rule_for(const Rule& rule, const Layer* layer) {
  if constexpr (kLayerwise<Rule>)
    return layer == nullptr ? rule : rule.with_norms(layer->param_norm, layer->measured_norm);
  return rule;
}

BNB_HD float grad_scale_of(const Slot& slot, const Options& options) {
  return slot.grad_scale == nullptr ? options.grad_scale : options.grad_scale * *slot.grad_scale;
}

BNB_HD void add(Measure& sum, const Measure& other) {
  sum.param += other.param;
  sum.measured += other.measured;
  sum.update += other.update;
  for (std::size_t k = 0; k < AllRules::kMaxStates; ++k)
    if (magnitude_bits(sum.absmax[k]) < magnitude_bits(other.absmax[k])) sum.absmax[k] = other.absmax[k];  // a NaN wins
}

// Of a whole parameter.
BNB_HD Layer layer_of(const Measure& sum, float max_unorm) {
  const double limit = max_unorm * __builtin_sqrt(sum.param), length = __builtin_sqrt(sum.update);
  const bool too_long = limit > 0 && length > limit;
  return {static_cast<float>(__builtin_sqrt(sum.param)), static_cast<float>(__builtin_sqrt(sum.measured)),
          too_long ? static_cast<float>(limit / length) : 1.0f, sum.absmax};
}

inline bool has_whole_state(const Batch& batch) {
  for (std::int64_t i = 0; i < batch.count; ++i)
    for (const State& state : batch.slots[i].states)
      if (state.whole) return true;
  return false;
}

}  // namespace BNB_ISA
}  // namespace bnb
