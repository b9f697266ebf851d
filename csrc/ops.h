// The boundary to torch (stable ABI): ops per rule, made from the rule's own description, and the codec's ops.
// A device implements a `Launch` for each task and registers it with `implement_rules<task, launch>(m)`; it sees plain
// pointers only.
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

// A rule has two ops. torch_bnb::<rule> steps; torch_bnb_measure::<rule>, of the same arguments, changes nothing and
// writes sums over each parameter, for those who hold a part of it and must add up theirs with others'.
enum class Task { kStep, kMeasure };

// The tensors of a call. states and absmax are rule-state-major: state k of parameter i is at k * params.size() + i.
struct Tensors {
  TensorList params, grads, states, absmax;
  std::optional<Tensor> sums;  // float64, (params, 3), written by kMeasure
};

// What goes with them and is the same for every rule, in the order of the schema.
struct Common {
  std::optional<Tensor> grad_scales, norms;
  std::int64_t seed;
  std::vector<std::int64_t> keys, rows, row_strides, origins;
  Options options;
};

constexpr const char* kCommonSchema =
    "Tensor? grad_scales=None, Tensor? norms=None, int seed=0, int[] keys=[], int[] rows=[], int[] row_strides=[], "
    "int[] origins=[], float grad_scale=1.0, float max_unorm=0.0, bool skip_zeros=False, "
    "bool stochastic_weights=False, int[] stochastic_states=[]";

// Takes ownership of them. `op` names the op in errors.
Common read_common(std::string_view op, const StableIValue* stack, int states_per_param);
// The tensors as pointers, checked. Nothing is written before every check has passed.
std::vector<Slot> make_slots(std::string_view op, const Tensors& tensors, int states_per_param, const Common& common);
void check_meta(std::string_view op, const TensorList& params);
Batch make_batch(const std::vector<Slot>& slots, const float* scalars, const Options& options);

// "adamw(Tensor(a!)[] params, ..., float lr, ..., Tensor? grad_scales=None, ...) -> ()"
template <class Rule, Task task>
std::string schema() {
  std::string text = Rule::kName;
  text += task == Task::kStep
              ? "(Tensor(a!)[] params, Tensor[] grads, Tensor(b!)[] states, Tensor(c!)[] absmax, *"
              : "(Tensor[] params, Tensor[] grads, Tensor[] states, Tensor[] absmax, Tensor(a!) sums, *";
  for (const Name scalar : Rule::kScalars) text += std::string(", float ") + scalar;
  return text + ", " + kCommonSchema + ") -> ()";
}

// One kernel in the dispatcher's boxed form. It takes ownership of every argument before it checks any.
// [note: launch] nullptr is the Meta kernel: an op that returns nothing has nothing to infer.
template <class Rule, int index, Task task, Launch launch>
void boxed_rule(StableIValue* stack, std::uint64_t, std::uint64_t) {
  using torch::stable::detail::to;
  constexpr std::size_t count = Rule::kScalars.size();
  Tensors tensors{
      to<TensorList>(stack[0]), to<TensorList>(stack[1]), to<TensorList>(stack[2]), to<TensorList>(stack[3]), {}};
  stack += 4;
  if constexpr (task == Task::kMeasure) tensors.sums = to<Tensor>(*stack++);
  float scalars[count];
  for (std::size_t i = 0; i < count; ++i) scalars[i] = static_cast<float>(to<double>(stack[i]));
  const Common common = read_common(Rule::kName, stack + count, Rule::kStates.size());
  if constexpr (launch == nullptr) {
    check_meta(Rule::kName, tensors.params);
  } else {
    const auto slots = make_slots(Rule::kName, tensors, Rule::kStates.size(), common);
    if (!slots.empty()) launch(index, make_batch(slots, scalars, common.options));
  }
}

template <Task task, class... Rules>
void define_rules(torch::stable::detail::StableLibrary& m, RuleList<Rules...>) {
  (m.def(schema<Rules, task>().c_str()), ...);
}

template <Task task, Launch launch, class... Rules, int... I>
void implement_rules(torch::stable::detail::StableLibrary& m, RuleList<Rules...>, std::integer_sequence<int, I...>) {
  (m.impl(Rules::kName, boxed_rule<Rules, I, task, launch>), ...);
}

template <Task task, Launch launch>
void implement_rules(torch::stable::detail::StableLibrary& m) {
  implement_rules<task, launch>(m, AllRules{}, std::make_integer_sequence<int, AllRules::kCount>{});
}

// The codec's arguments, checked.
Quantized make_quantized(std::string_view op, const Tensor& values, const Tensor& codes, const Tensor& absmax,
                         std::int64_t blocksize);

}  // namespace bnb
