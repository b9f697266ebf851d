// The boundary to torch (stable ABI): two ops per rule, made from the rule's own description, and the codec's ops.
// The overload `on_device` takes what changes from step to step in tensors that the device reads when it runs, so that
// a CUDA graph can repeat it. A device implements `Launch` and registers itself with `implement_rules<launch>(m)`; it
// sees plain pointers only.
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

// What stands in a call, besides its scalars.
struct Arguments {
  TensorList params, grads, states, absmax;
  std::optional<Tensor> grad_scales;
  std::int64_t seed;
  std::vector<std::int64_t> keys;
  std::optional<Tensor> keys_on_device;
};

// The tensors of a call, checked: `op` names it in errors. Nothing is written before every check has passed.
// states and absmax are rule-state-major: state k of parameter i is at k * params.size() + i.
std::vector<Slot> make_slots(std::string_view op, const Arguments& arguments, int states_per_param);
void check_meta(std::string_view op, const TensorList& params);
// The data of a float32 tensor of `numel` elements on the device of `like`.
const float* floats_of(std::string_view op, const char* what, const Tensor& t, std::int64_t numel, const Tensor& like);
// Which of a rule's `states_per_param` states `indices` names.
std::array<bool, AllRules::kMaxStates> chosen_states(std::string_view op, const std::vector<std::int64_t>& indices,
                                                     int states_per_param);

// "adamw(Tensor(a!)[] params, ..., float lr, ..., Tensor? grad_scales=None, ..., int[] keys=[], ...) -> ()", or
// "adamw.on_device(Tensor(a!)[] params, ..., Tensor scalars, ..., Tensor? keys=None, Tensor? found_inf=None, ...) ->
// ()"
template <class Rule>
std::string schema(bool on_device) {
  std::string text = std::string(Rule::kName) + (on_device ? ".on_device" : "") +
                     "(Tensor(a!)[] params, Tensor[] grads, Tensor(b!)[] states, Tensor(c!)[] absmax, *";
  if (on_device) text += ", Tensor scalars";
  for (const Name scalar : Rule::kScalars)
    if (!on_device) text += std::string(", float ") + scalar;
  text += ", Tensor? grad_scales=None, int seed=0";
  text += on_device ? ", Tensor? keys=None, Tensor? found_inf=None" : ", int[] keys=[]";
  return text +
         ", float grad_scale=1.0, float max_unorm=0.0, bool skip_zeros=False, bool stochastic_weights=False, "
         "int[] stochastic_states=[]) -> ()";
}

// The arguments of the dispatcher's boxed form, one after another. Whoever takes one owns it.
class Stack {
 public:
  explicit Stack(StableIValue* next) : next_(next) {}

  template <class T>
  T take() {
    return torch::stable::detail::to<T>(*next_++);
  }

 private:
  StableIValue* next_;
};

// One kernel in boxed form. It takes every argument before it checks any.
// [note: launch] nullptr is the Meta kernel: an op that returns nothing has nothing to infer.
template <class Rule, int index, Launch launch, bool on_device>
void boxed_rule(StableIValue* arguments, std::uint64_t, std::uint64_t) {
  constexpr std::int32_t count = Rule::kScalars.size();
  Stack stack(arguments);
  Arguments given;
  given.params = stack.take<TensorList>();
  given.grads = stack.take<TensorList>();
  given.states = stack.take<TensorList>();
  given.absmax = stack.take<TensorList>();
  std::optional<Tensor> tensor, found_inf;
  float scalars[count];
  if constexpr (on_device)
    tensor = stack.take<Tensor>();
  else
    for (float& scalar : scalars) scalar = static_cast<float>(stack.take<double>());
  given.grad_scales = stack.take<std::optional<Tensor>>();
  given.seed = stack.take<std::int64_t>();
  if constexpr (on_device) {
    given.keys_on_device = stack.take<std::optional<Tensor>>();
    found_inf = stack.take<std::optional<Tensor>>();
  } else {
    given.keys = stack.take<std::vector<std::int64_t>>();
  }
  Options options{};
  options.grad_scale = static_cast<float>(stack.take<double>());
  options.max_unorm = static_cast<float>(stack.take<double>());
  options.skip_zeros = stack.take<bool>();
  options.stochastic_weights = stack.take<bool>();
  options.stochastic_states = chosen_states(Rule::kName, stack.take<std::vector<std::int64_t>>(), Rule::kStates.size());
  options.seed = static_cast<std::uint64_t>(given.seed);
  if constexpr (launch == nullptr) {
    check_meta(Rule::kName, given.params);
  } else {
    const auto slots = make_slots(Rule::kName, given, Rule::kStates.size());
    if (slots.empty()) return;
    const Tensor& first = given.params[0];
    const float* const from = tensor ? floats_of(Rule::kName, "scalars", *tensor, count, first) : scalars;
    const float* const inf = found_inf ? floats_of(Rule::kName, "found_inf", *found_inf, 1, first) : nullptr;
    if (inf != nullptr && first.is_cpu() && *inf != 0) return;
    launch(index, {slots.data(), static_cast<std::int64_t>(slots.size()),
                   slots.back().first_block + blocks_of(slots.back().numel), from, count, on_device, inf, options,
                   first.get_device_index()});
  }
}

template <class... Rules>
void define_rules(torch::stable::detail::StableLibrary& m, RuleList<Rules...>) {
  ((m.def(schema<Rules>(false).c_str()), m.def(schema<Rules>(true).c_str())), ...);
}

template <Launch launch, class... Rules, int... I>
void implement_rules(torch::stable::detail::StableLibrary& m, RuleList<Rules...>, std::integer_sequence<int, I...>) {
  (m.impl(Rules::kName, boxed_rule<Rules, I, launch, false>), ...);
  (m.impl((std::string(Rules::kName) + ".on_device").c_str(), boxed_rule<Rules, I, launch, true>), ...);
}

template <Launch launch>
void implement_rules(torch::stable::detail::StableLibrary& m) {
  implement_rules<launch>(m, AllRules{}, std::make_integer_sequence<int, AllRules::kCount>{});
}

// The codec's arguments, checked.
Quantized make_quantized(std::string_view op, const Tensor& values, const Tensor& codes, const Tensor& absmax,
                         std::int64_t blocksize);

}  // namespace bnb
