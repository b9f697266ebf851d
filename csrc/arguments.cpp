// What an op was called with, checked and turned into plain pointers. Knows torch's tensors; no rule, no device.
#include <torch/csrc/stable/device.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include "ops.h"
#include "random.h"

namespace bnb {

using torch::headeronly::ScalarType;

DType float_dtype(std::string_view op, const char* what, const Tensor& t) {
  switch (t.scalar_type()) {
    case ScalarType::Float:
      return DType::kFloat32;
    case ScalarType::BFloat16:
      return DType::kBFloat16;
    case ScalarType::Half:
      return DType::kFloat16;
    case ScalarType::Double:
      return DType::kFloat64;
    default:
      STD_TORCH_CHECK(false, op, ": ", what, " must be float32, bfloat16, float16 or float64, got ",
                      torch::headeronly::toString(t.scalar_type()));
  }
  return {};
}

void check_layout(std::string_view op, const char* what, const Tensor& t, std::int64_t numel, const Tensor& like) {
  STD_TORCH_CHECK(t.numel() == numel, op, ": ", what, " must have ", numel, " elements, got ", t.numel());
  STD_TORCH_CHECK(t.is_contiguous(), op, ": ", what, " must be contiguous");
  STD_TORCH_CHECK(t.device() == like.device(), op, ": ", what, " must be on the device of the first parameter");
}

// One stray meta tensor sends a whole call to the Meta kernel, which would do nothing without a word.
void check_meta(std::string_view op, const TensorList& params) {
  STD_TORCH_CHECK(params.empty() || params[0].device().type() == torch::headeronly::DeviceType::Meta, op,
                  ": all tensors must be on one device, some are on meta");
}

void check_dtype(std::string_view op, const char* what, const Tensor& t, ScalarType dtype) {
  STD_TORCH_CHECK(t.scalar_type() == dtype, op, ": ", what, " must be ", torch::headeronly::toString(dtype), ", got ",
                  torch::headeronly::toString(t.scalar_type()));
}

State make_state(std::string_view op, const Tensor& state, const Tensor* absmax, std::int64_t numel,
                 const Tensor& like) {
  if (state.numel() == 0) return {};
  check_layout(op, "a state", state, numel, like);
  if (state.scalar_type() != ScalarType::Byte) {
    check_dtype(op, "a state", state, ScalarType::Float);
    return {static_cast<float*>(state.mutable_data_ptr())};
  }
  STD_TORCH_CHECK(absmax != nullptr, op, ": a uint8 state needs its absmax");
  const bool whole = absmax->numel() == 1 && numel > kBlock;
  check_layout(op, "absmax", *absmax, whole ? 1 : blocks_of(numel), like);
  check_dtype(op, "absmax", *absmax, ScalarType::Float);
  return {nullptr, static_cast<std::uint8_t*>(state.mutable_data_ptr()),
          static_cast<float*>(absmax->mutable_data_ptr()), whole};
}

const float* floats_of(std::string_view op, const char* what, const Tensor& t, std::int64_t numel, const Tensor& like) {
  check_layout(op, what, t, numel, like);
  check_dtype(op, what, t, ScalarType::Float);
  return static_cast<const float*>(t.const_data_ptr());
}

const std::int64_t* keys_of(std::string_view op, const Tensor& keys, const TensorList& params) {
  check_layout(op, "keys", keys, static_cast<std::int64_t>(params.size()), params[0]);
  check_dtype(op, "keys", keys, ScalarType::Long);
  return static_cast<const std::int64_t*>(keys.const_data_ptr());
}

std::vector<Slot> make_slots(std::string_view op, const Arguments& arguments, int states_per_param) {
  const auto& [params, grads, states, absmax, grad_scales, seed, keys, keys_on_device] = arguments;
  const std::size_t n = params.size();
  STD_TORCH_CHECK(grads.size() == n, op, ": expected ", n, " gradients, got ", grads.size());
  STD_TORCH_CHECK(states.size() == n * states_per_param, op, ": expected ", n * states_per_param, " states, got ",
                  states.size());
  STD_TORCH_CHECK(absmax.empty() || absmax.size() == states.size(), op,
                  ": absmax must be empty or have one tensor per state");
  STD_TORCH_CHECK(keys.empty() || keys.size() == n, op, ": keys must be empty or have one number per parameter");
  if (n == 0) return {};
  const float* const scales =
      grad_scales ? floats_of(op, "grad_scales", *grad_scales, static_cast<std::int64_t>(n), params[0]) : nullptr;
  const std::int64_t* counters = keys_on_device ? keys_of(op, *keys_on_device, params) : nullptr;
  const bool counters_are_here = params[0].is_cpu();
  std::vector<Slot> slots;
  slots.reserve(n);
  std::int64_t blocks = 0;
  for (std::size_t i = 0; i < n; ++i) {
    const std::int64_t numel = params[i].numel();
    check_layout(op, "a parameter", params[i], numel, params[0]);
    check_layout(op, "a gradient", grads[i], numel, params[0]);
    Slot slot{params[i].mutable_data_ptr(),
              grads[i].const_data_ptr(),
              float_dtype(op, "a parameter", params[i]),
              float_dtype(op, "a gradient", grads[i]),
              numel,
              blocks,
              scales == nullptr ? nullptr : scales + i,
              0,
              nullptr,
              {}};
    if (counters != nullptr && !counters_are_here)
      slot.counter = counters + i;
    else if (counters != nullptr || !keys.empty())
      slot.key =
          mixed(static_cast<std::uint64_t>(seed), static_cast<std::uint64_t>(keys.empty() ? counters[i] : keys[i]));
    for (int k = 0; k < states_per_param; ++k)
      slot.states[k] =
          make_state(op, states[k * n + i], absmax.empty() ? nullptr : &absmax[k * n + i], numel, params[0]);
    if (numel > 0) slots.push_back(slot);
    blocks += blocks_of(numel);
  }
  return slots;
}

std::array<bool, AllRules::kMaxStates> chosen_states(std::string_view op, const std::vector<std::int64_t>& indices,
                                                     int states_per_param) {
  std::array<bool, AllRules::kMaxStates> chosen{};
  for (const std::int64_t index : indices) {
    STD_TORCH_CHECK(index >= 0 && index < states_per_param, op, ": stochastic_states must name states 0 to ",
                    states_per_param - 1, ", got ", index);
    chosen[index] = true;
  }
  return chosen;
}

Quantized make_quantized(std::string_view op, const Tensor& values, const Tensor& codes, const Tensor& absmax,
                         std::int64_t blocksize) {
  STD_TORCH_CHECK(blocksize > 0, op, ": blocksize must be positive, got ", blocksize);
  check_layout(op, "values", values, values.numel(), values);
  check_layout(op, "codes", codes, values.numel(), values);
  check_layout(op, "absmax", absmax, blocks_of(values.numel(), blocksize), values);
  check_dtype(op, "values", values, ScalarType::Float);
  check_dtype(op, "codes", codes, ScalarType::Byte);
  check_dtype(op, "absmax", absmax, ScalarType::Float);
  return {static_cast<float*>(values.mutable_data_ptr()), static_cast<std::uint8_t*>(codes.mutable_data_ptr()),
          static_cast<float*>(absmax.mutable_data_ptr()), values.numel(), blocksize};
}

}  // namespace bnb
