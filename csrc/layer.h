// What a step must know of a whole parameter beforehand: norms for layer-wise rules and max_unorm, and the absmax of
// states that have one for the whole tensor. Measured by blocks, added up by whoever drives.
#pragma once
#include <type_traits>

#include "batch.h"

namespace bnb {

// What is measured of a block, or of all blocks of a parameter; absmax: of its new states.
struct Measure {
  Sums sums;
  std::array<float, AllRules::kMaxStates> absmax;
};

// What a step needs to know of a whole parameter.
struct Layer {
  Norms norms;
  std::array<float, AllRules::kMaxStates> absmax;
};

inline namespace BNB_ISA {

template <class Rule, class = void>
constexpr bool kLayerwise = false;
template <class Rule>
constexpr bool kLayerwise<Rule, std::void_t<decltype(&Rule::with_norms)>> = true;

// The rule for one parameter; `norms` may be null as long as nothing has been measured.
template <class Rule>
BNB_HD Rule rule_for(const Rule& rule, const Norms* norms) {
  if constexpr (kLayerwise<Rule>) return norms == nullptr ? rule : rule.with_norms(norms->param, norms->measured);
  return rule;
}

inline const Norms* norms_in(const Layer* layer) { return layer == nullptr ? nullptr : &layer->norms; }

BNB_HD float grad_scale_of(const Slot& slot, const Options& options) {
  return slot.grad_scale == nullptr ? options.grad_scale : options.grad_scale * *slot.grad_scale;
}

BNB_HD void add(Measure& sum, const Measure& other) {
  sum.sums.param += other.sums.param;
  sum.sums.measured += other.sums.measured;
  sum.sums.update += other.sums.update;
  for (std::size_t k = 0; k < AllRules::kMaxStates; ++k)
    if (magnitude_bits(sum.absmax[k]) < magnitude_bits(other.absmax[k])) sum.absmax[k] = other.absmax[k];  // a NaN wins
}

// One absmax for the whole tensor: when it changes, every block must be encoded anew, one without gradient too.
BNB_HD bool has_whole_state(const Slot& slot) {
  for (std::size_t k = 0; k < AllRules::kMaxStates; ++k)
    if (slot.states[k].whole) return true;
  return false;
}

inline bool has_whole_state(const Batch& batch) {
  for (std::int64_t i = 0; i < batch.count; ++i)
    if (has_whole_state(batch.slots[i])) return true;
  return false;
}

}  // namespace BNB_ISA
}  // namespace bnb
