// What an op was called with, checked and turned into plain pointers. Knows torch's tensors; no rule, no device.
#include <torch/csrc/stable/device.h>
#include <torch/csrc/stable/ops.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <algorithm>
#include <atomic>

#include "ops.h"
#include "random.h"

namespace bnb {

using torch::headeronly::ScalarType;

constexpr std::int64_t kGrain = 64;  // parameters whose headers are worth a thread: they are cold in the cache

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

const float* check_floats(std::string_view op, const char* what, const Tensor& t, std::int64_t numel,
                          const Tensor& like) {
  check_layout(op, what, t, numel, like);
  check_dtype(op, what, t, ScalarType::Float);
  return static_cast<const float*>(t.const_data_ptr());
}

// The numbers of a list that is empty or has one for every parameter.
std::int64_t number(const std::vector<std::int64_t>& list, std::size_t i, std::int64_t otherwise) {
  return list.empty() ? otherwise : list[i];
}

Grid make_grid(std::string_view op, std::int64_t numel, const Common& common, std::size_t i) {
  const std::int64_t row = number(common.rows, i, 0) == 0 ? numel : common.rows[i];
  STD_TORCH_CHECK(row > 0 && numel % row == 0, op, ": rows must be 0 or divide a parameter's ", numel,
                  " elements, got ", row);
  return {row, number(common.row_strides, i, row), number(common.origins, i, 0)};
}

State make_state(std::string_view op, const Tensor& state, const Tensor* absmax, const Slot& slot, const Tensor& like) {
  if (state.numel() == 0) return {};
  check_layout(op, "a state", state, slot.numel, like);
  if (state.scalar_type() != ScalarType::Byte) {
    check_dtype(op, "a state", state, ScalarType::Float);
    return {static_cast<float*>(state.mutable_data_ptr())};
  }
  STD_TORCH_CHECK(absmax != nullptr, op, ": a uint8 state needs its absmax");
  const std::int64_t blocks = blocks_in(slot);
  const bool whole = absmax->numel() == 1 && blocks > 1;
  STD_TORCH_CHECK(!whole || slot.norms == nullptr, op, ": a state with one absmax cannot be stepped with given norms");
  check_layout(op, "absmax", *absmax, whole ? 1 : blocks, like);
  check_dtype(op, "absmax", *absmax, ScalarType::Float);
  return {nullptr, static_cast<std::uint8_t*>(state.mutable_data_ptr()),
          static_cast<float*>(absmax->mutable_data_ptr()), whole};
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

Common read_common(std::string_view op, const StableIValue* stack, int states_per_param) {
  using torch::stable::detail::to;
  using Numbers = std::vector<std::int64_t>;
  Common common{to<std::optional<Tensor>>(stack[0]),
                to<std::optional<Tensor>>(stack[1]),
                to<std::int64_t>(stack[2]),
                to<Numbers>(stack[3]),
                to<Numbers>(stack[4]),
                to<Numbers>(stack[5]),
                to<Numbers>(stack[6]),
                {static_cast<float>(to<double>(stack[7])),
                 static_cast<float>(to<double>(stack[8])),
                 to<bool>(stack[9]),
                 to<bool>(stack[10]),
                 {},
                 0}};
  common.options.seed = static_cast<std::uint64_t>(common.seed);
  common.options.stochastic_states = chosen_states(op, to<Numbers>(stack[11]), states_per_param);
  return common;
}

void check_numbers(std::string_view op, const char* what, const std::vector<std::int64_t>& list, std::size_t n) {
  STD_TORCH_CHECK(list.empty() || list.size() == n, op, ": ", what, " must be empty or have one number per parameter");
}

// A table with a row of `width` numbers per parameter, or null.
const Tensor* check_table(std::string_view op, const char* what, const std::optional<Tensor>& table, std::int64_t width,
                          ScalarType dtype, const TensorList& params) {
  if (!table) return nullptr;
  check_layout(op, what, *table, width * static_cast<std::int64_t>(params.size()), params[0]);
  check_dtype(op, what, *table, dtype);
  return &*table;
}

std::vector<Slot> make_slots(std::string_view op, const Tensors& tensors, int states_per_param, const Common& common,
                             const Moving& moving) {
  const auto& [params, grads, states, absmax, sums] = tensors;
  const std::size_t n = params.size();
  STD_TORCH_CHECK(grads.size() == n, op, ": expected ", n, " gradients, got ", grads.size());
  STD_TORCH_CHECK(states.size() == n * states_per_param, op, ": expected ", n * states_per_param, " states, got ",
                  states.size());
  STD_TORCH_CHECK(absmax.empty() || absmax.size() == states.size(), op,
                  ": absmax must be empty or have one tensor per state");
  check_numbers(op, "keys", common.keys, n);
  check_numbers(op, "rows", common.rows, n);
  check_numbers(op, "row_strides", common.row_strides, n);
  check_numbers(op, "origins", common.origins, n);
  if (n == 0) return {};
  static_assert(sizeof(Norms) == 3 * sizeof(float) && sizeof(Sums) == 3 * sizeof(double));
  const Tensor* table = check_table(op, "grad_scales", common.grad_scales, 1, ScalarType::Float, params);
  const float* const scales = table ? static_cast<const float*>(table->const_data_ptr()) : nullptr;
  table = check_table(op, "norms", common.norms, 3, ScalarType::Float, params);
  const Norms* const norms = table ? static_cast<const Norms*>(table->const_data_ptr()) : nullptr;
  table = check_table(op, "sums", sums, 3, ScalarType::Double, params);
  Sums* const to = table ? static_cast<Sums*>(table->mutable_data_ptr()) : nullptr;
  table = check_table(op, "moving_keys", moving.keys, 1, ScalarType::Long, params);
  const std::int64_t* const counters = table ? static_cast<const std::int64_t*>(table->const_data_ptr()) : nullptr;
  const auto make_slot = [&](std::size_t i) {
    const std::int64_t numel = params[i].numel();
    check_layout(op, "a parameter", params[i], numel, params[0]);
    check_layout(op, "a gradient", grads[i], numel, params[0]);
    if (numel == 0) return Slot{};
    Slot slot{params[i].mutable_data_ptr(),
              grads[i].const_data_ptr(),
              float_dtype(op, "a parameter", params[i]),
              float_dtype(op, "a gradient", grads[i]),
              numel,
              make_grid(op, numel, common, i),
              0,
              scales == nullptr ? nullptr : scales + i,
              norms == nullptr ? nullptr : norms + i,
              to == nullptr ? nullptr : to + i,
              0,
              nullptr,
              {}};
    if (counters != nullptr && !params[0].is_cpu())
      slot.counter = counters + i;
    else if (counters != nullptr || !common.keys.empty())
      slot.key =
          mixed(common.options.seed, static_cast<std::uint64_t>(counters == nullptr ? common.keys[i] : counters[i]));
    for (int k = 0; k < states_per_param; ++k)
      slot.states[k] =
          make_state(op, states[k * n + i], absmax.empty() ? nullptr : &absmax[k * n + i], slot, params[0]);
    return slot;
  };
  std::vector<Slot> slots(n);
  std::atomic<bool> failed = false;
  torch::stable::parallel_for(0, static_cast<std::int64_t>(n), kGrain, [&](std::int64_t first, std::int64_t last) {
    try {
      for (std::int64_t i = first; i < last; ++i) slots[i] = make_slot(i);
    } catch (...) {
      failed = true;
    }
  });
  // An error must not leave a thread, and the first in the list shall be told: once more, one after the other.
  for (std::size_t i = 0; failed && i < n; ++i) make_slot(i);
  slots.erase(std::remove_if(slots.begin(), slots.end(), [](const Slot& slot) { return slot.numel == 0; }),
              slots.end());
  std::int64_t blocks = 0;
  for (Slot& slot : slots) {
    slot.first_block = blocks;
    blocks += blocks_in(slot);
  }
  return slots;
}

Batch make_batch(std::string_view op, const std::vector<Slot>& slots, const float* scalars, std::int32_t count,
                 const Options& options, const Moving& moving, const Tensor& like) {
  Batch batch{slots.data(), static_cast<std::int64_t>(slots.size()),
              slots.back().first_block + blocks_in(slots.back())};
  batch.scalars = moving.scalars ? check_floats(op, "scalars", *moving.scalars, count, like) : scalars;
  batch.scalar_count = count;
  batch.scalars_on_device = moving.scalars.has_value();
  batch.found_inf = moving.found_inf ? check_floats(op, "found_inf", *moving.found_inf, 1, like) : nullptr;
  batch.options = options;
  batch.device = like.get_device_index();
  return batch;
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
