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
#include "header.h"

namespace bnb {

using torch::stable::Tensor;
using TensorList = std::vector<Tensor>;
using Launch = void (*)(int rule, const Batch&);  // rule: its index in AllRules

// A rule has four ops. torch_bnb::<rule> steps; its overload <rule>.by_address takes the tensors' headers, which
// module.cpp has read, in place of the tensors, whose way through the dispatcher costs more than the step of a small
// one; its overload <rule>.on_device takes what changes from step to step in tensors that the device reads when it
// runs, so that a CUDA graph can repeat it. torch_bnb_measure::<rule>, of the same arguments as the first, changes
// nothing and writes sums over each parameter, for those who hold a part of it and must add up theirs with others'.
enum class Task { kStep, kStepByAddress, kStepOnDevice, kMeasure };

// The tensors of a call. states and absmax are rule-state-major: state k of parameter i is at k * params.size() + i.
struct Tensors {
  TensorList params, grads, states, absmax;
};

struct Headers {
  std::vector<Header> params, grads, states, absmax;
};

// What kStepOnDevice takes in tensors.
struct Moving {
  std::optional<Tensor> scalars;    // float32, the rule's
  std::optional<Tensor> keys;       // int64, (params,), in place of those in Common
  std::optional<Tensor> found_inf;  // float32, one number: unless it is 0, nothing changes
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
// `written`: whether the op changes tensors, gradients aside, so that they must have memory of their own.
Headers headers_of(const Tensors& tensors, bool written);
// From an int64 table with the headers of the tensors, in the order of Tensors.
Headers headers_in(std::string_view op, const Tensor& table, int states_per_param);
void check_first(std::string_view op, const Headers& headers, const Tensor& first);
// The tensors as pointers, checked. Nothing is written before every check has passed. `sums`: float64, (params, 3).
std::vector<Slot> make_slots(std::string_view op, const Headers& headers, int states_per_param, const Common& common,
                             const Moving& moving, const std::optional<Tensor>& sums);
void check_meta(std::string_view op, const TensorList& params);
// `scalars`: `count` of them, unless they are in `moving`.
Batch make_batch(std::string_view op, const std::vector<Slot>& slots, const float* scalars, std::int32_t count,
                 const Options& options, const Moving& moving, const Header& like);

template <class Rule, Task task>
std::string op_name() {
  const char* const overload = task == Task::kStepByAddress  ? ".by_address"
                               : task == Task::kStepOnDevice ? ".on_device"
                                                             : "";
  return std::string(Rule::kName) + overload;
}

template <Task task>
constexpr const char* tensors_schema() {
  if (task == Task::kStepByAddress) return "(Tensor headers, Tensor(a!) first";
  if (task == Task::kMeasure)
    return "(Tensor[] params, Tensor[] grads, Tensor[] states, Tensor[] absmax, Tensor(a!) sums";
  return "(Tensor(a!)[] params, Tensor[] grads, Tensor(b!)[] states, Tensor(c!)[] absmax";
}

// "adamw(Tensor(a!)[] params, ..., float lr, ..., Tensor? grad_scales=None, ...) -> ()"
template <class Rule, Task task>
std::string schema() {
  std::string text = op_name<Rule, task>() + tensors_schema<task>() + ", *";
  if (task == Task::kStepOnDevice)
    text += ", Tensor scalars, Tensor? moving_keys=None, Tensor? found_inf=None";
  else
    for (const Name scalar : Rule::kScalars) text += std::string(", float ") + scalar;
  return text + ", " + kCommonSchema + ") -> ()";
}

// One kernel in the dispatcher's boxed form. It takes ownership of every argument before it checks any.
// [note: launch] nullptr is the Meta kernel: an op that returns nothing has nothing to infer.
template <class Rule, int index, Task task, Launch launch>
void boxed_rule(StableIValue* stack, std::uint64_t, std::uint64_t) {
  using torch::stable::detail::to;
  constexpr std::size_t count = Rule::kScalars.size();
  constexpr int states = Rule::kStates.size();
  Tensors tensors;
  std::optional<Tensor> table, sums;
  if constexpr (task == Task::kStepByAddress) {
    table = to<Tensor>(*stack++);
    tensors.params = {to<Tensor>(*stack++)};  // the first; whose device says which kernel it is
  } else {
    tensors = {to<TensorList>(stack[0]), to<TensorList>(stack[1]), to<TensorList>(stack[2]), to<TensorList>(stack[3])};
    stack += 4;
  }
  if constexpr (task == Task::kMeasure) sums = to<Tensor>(*stack++);
  float scalars[count]{};
  Moving moving;
  if constexpr (task == Task::kStepOnDevice) {
    moving = {to<Tensor>(stack[0]), to<std::optional<Tensor>>(stack[1]), to<std::optional<Tensor>>(stack[2])};
    stack += 3;
  } else {
    for (float& scalar : scalars) scalar = static_cast<float>(to<double>(*stack++));
  }
  const Common common = read_common(Rule::kName, stack, states);
  if constexpr (launch == nullptr) {
    check_meta(Rule::kName, tensors.params);
  } else {
    const Headers headers =
        table ? headers_in(Rule::kName, *table, states) : headers_of(tensors, task != Task::kMeasure);
    if (table) check_first(Rule::kName, headers, tensors.params[0]);
    const auto slots = make_slots(Rule::kName, headers, states, common, moving, sums);
    if (slots.empty()) return;
    const Batch batch = make_batch(Rule::kName, slots, scalars, count, common.options, moving, headers.params[0]);
    launch(index, batch);
  }
}

template <Task task, class... Rules>
void define_rules(torch::stable::detail::StableLibrary& m, RuleList<Rules...>) {
  (m.def(schema<Rules, task>().c_str()), ...);
}

template <Task task, Launch launch, class... Rules, int... I>
void implement_rules(torch::stable::detail::StableLibrary& m, RuleList<Rules...>, std::integer_sequence<int, I...>) {
  (m.impl(op_name<Rules, task>().c_str(), boxed_rule<Rules, I, task, launch>), ...);
}

template <Task task, Launch launch>
void implement_rules(torch::stable::detail::StableLibrary& m) {
  implement_rules<task, launch>(m, AllRules{}, std::make_integer_sequence<int, AllRules::kCount>{});
}

// The data of a float32 tensor of `numel` elements on the device of `like`.
const float* check_floats(std::string_view op, const char* what, const Tensor& t, std::int64_t numel,
                          const Header& like);
Header header_of(const Tensor& t, bool written);
// The codec's arguments, checked.
Quantized make_quantized(std::string_view op, const Tensor& values, const Tensor& codes, const Tensor& absmax,
                         std::int64_t blocksize);

}  // namespace bnb
