// The boundary to torch (stable ABI): one op per rule, made from the rule's own description, and the codec's ops.
// A device implements `Launch` and registers itself with `implement_rules<launch>(m)`; it sees plain pointers only.
#pragma once
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "batch.h"

namespace bnb {

using torch::stable::Tensor;
using TensorList = std::vector<Tensor>;
using Launch = void (*)(int rule, const Batch&);  // rule: its index in AllRules

// The tensors of a call, checked: `op` names it in errors. Nothing is written before every check has passed.
// states and absmax are rule-state-major: state k of parameter i is at k * params.size() + i.
std::vector<Slot> make_slots(std::string_view op, const TensorList& params, const TensorList& grads,
                             const TensorList& states, const TensorList& absmax, int states_per_param,
                             const std::optional<Tensor>& grad_scales, std::int64_t seed,
                             const std::vector<std::int64_t>& keys);
void check_meta(std::string_view op, const TensorList& params);
// Which of a rule's `states_per_param` states `indices` names.
std::array<bool, AllRules::kMaxStates> chosen_states(std::string_view op, const std::vector<std::int64_t>& indices,
                                                     int states_per_param);
Batch make_batch(const std::vector<Slot>& slots, const float* scalars, const Options& options);

// "adamw(Tensor(a!)[] params, ..., float lr, ..., Tensor? grad_scales=None, ...) -> ()"
template <class Rule>
std::string schema() {
  std::string text =
      std::string(Rule::kName) + "(Tensor(a!)[] params, Tensor[] grads, Tensor(b!)[] states, Tensor(c!)[] absmax, *";
  for (const Name scalar : Rule::kScalars) text += std::string(", float ") + scalar;
  return text +
         ", Tensor? grad_scales=None, int seed=0, int[] keys=[], float grad_scale=1.0, float max_unorm=0.0, bool "
         "skip_zeros=False, "
         "bool stochastic_weights=False, int[] stochastic_states=[]) -> ()";
}

// One kernel in the dispatcher's boxed form. It takes ownership of every argument before it checks any.
// [note: launch] nullptr is the Meta kernel: an op that returns nothing has nothing to infer.
template <class Rule, int index, Launch launch>
void boxed_rule(StableIValue* stack, std::uint64_t, std::uint64_t) {
  using torch::stable::detail::to;
  constexpr std::size_t count = Rule::kScalars.size();
  const auto params = to<TensorList>(stack[0]), grads = to<TensorList>(stack[1]), states = to<TensorList>(stack[2]),
             absmax = to<TensorList>(stack[3]);
  float scalars[count];
  for (std::size_t i = 0; i < count; ++i) scalars[i] = static_cast<float>(to<double>(stack[4 + i]));
  StableIValue* const common = stack + 4 + count;
  const auto grad_scales = to<std::optional<Tensor>>(common[0]);
  const auto seed = to<std::int64_t>(common[1]);
  const auto keys = to<std::vector<std::int64_t>>(common[2]);
  const Options options{static_cast<float>(to<double>(common[3])), static_cast<float>(to<double>(common[4])),
                        to<bool>(common[5]), to<bool>(common[6]),
                        chosen_states(Rule::kName, to<std::vector<std::int64_t>>(common[7]), Rule::kStates.size())};
  if constexpr (launch == nullptr) {
    check_meta(Rule::kName, params);
  } else {
    const auto slots =
        make_slots(Rule::kName, params, grads, states, absmax, Rule::kStates.size(), grad_scales, seed, keys);
    if (!slots.empty()) launch(index, make_batch(slots, scalars, options));
  }
}

template <class... Rules>
void define_rules(torch::stable::detail::StableLibrary& m, RuleList<Rules...>) {
  (m.def(schema<Rules>().c_str()), ...);
}

template <Launch launch, class... Rules, int... I>
void implement_rules(torch::stable::detail::StableLibrary& m, RuleList<Rules...>, std::integer_sequence<int, I...>) {
  (m.impl(Rules::kName, boxed_rule<Rules, I, launch>), ...);
}

template <Launch launch>
void implement_rules(torch::stable::detail::StableLibrary& m) {
  implement_rules<launch>(m, AllRules{}, std::make_integer_sequence<int, AllRules::kCount>{});
}

// The codec's arguments, checked.
Quantized make_quantized(std::string_view op, const Tensor& values, const Tensor& codes, const Tensor& absmax,
                         std::int64_t blocksize);

}  // namespace bnb
