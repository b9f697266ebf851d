// What an op was called with, checked and turned into plain pointers. Knows torch's tensors; no rule, no device.
#include <torch/csrc/stable/device.h>
#include <torch/csrc/stable/ops.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>

#include "check.h"
#include "ops.h"
#include "random.h"

namespace bnb {

using torch::headeronly::ScalarType;

ScalarType dtype_of(const Header& header) { return static_cast<ScalarType>(header.dtype); }

// `written`: the op changes the tensor, so that it must have memory of its own.
Header header_of(const Tensor& t, bool written) {
  void* const data = written ? t.mutable_data_ptr() : const_cast<void*>(t.const_data_ptr());
  const int index = t.get_device_index();  // the CPU has none
  return {data,
          t.numel(),
          static_cast<std::int8_t>(t.scalar_type()),
          static_cast<std::int8_t>(t.device().type()),
          static_cast<std::int8_t>(index < 0 ? 0 : index),
          static_cast<std::int8_t>(t.is_contiguous()),
          0};
}

std::vector<Header> headers_of(const TensorList& list, bool written) {
  std::vector<Header> headers;
  headers.reserve(list.size());
  for (const Tensor& t : list) headers.push_back(header_of(t, written));
  return headers;
}

Headers headers_of(const Tensors& tensors, bool written) {
  return {headers_of(tensors.params, written), headers_of(tensors.grads, false), headers_of(tensors.states, written),
          headers_of(tensors.absmax, written)};
}

// A dtype as Python spells it, where that is one that people mix up.
const char* name_of(ScalarType dtype) {
  switch (dtype) {
    case ScalarType::Float:
      return "float32";
    case ScalarType::BFloat16:
      return "bfloat16";
    case ScalarType::Half:
      return "float16";
    case ScalarType::Double:
      return "float64";
    case ScalarType::Byte:
      return "uint8";
    case ScalarType::Int:
      return "int32";
    case ScalarType::Long:
      return "int64";
    default:
      return torch::headeronly::toString(dtype);
  }
}

DType float_dtype(std::string_view op, const char* what, const Header& header) {
  switch (dtype_of(header)) {
    case ScalarType::Float:
      return DType::kFloat32;
    case ScalarType::BFloat16:
      return DType::kBFloat16;
    case ScalarType::Half:
      return DType::kFloat16;
    case ScalarType::Double:
      return DType::kFloat64;
    default:
      fail(op, ": ", what, " must be float32, bfloat16, float16 or float64, got ", name_of(dtype_of(header)));
  }
}

void check_layout(std::string_view op, const char* what, const Header& header, std::int64_t numel, const Header& like) {
  BNB_CHECK(header.numel == numel, op, ": ", what, " must have ", numel, " elements, got ", header.numel);
  BNB_CHECK(header.contiguous, op, ": ", what, " must be contiguous");
  BNB_CHECK(header.data != nullptr || numel == 0, op, ": ", what, " has no memory, its storage has been freed");
  BNB_CHECK(header.device_type == like.device_type && header.device_index == like.device_index, op, ": ", what,
            " must be on the device of the first parameter");
}

// One stray meta tensor sends a whole call to the Meta kernel, which would do nothing without a word.
void check_meta(std::string_view op, const TensorList& params) {
  BNB_CHECK(params.empty() || params[0].device().type() == torch::headeronly::DeviceType::Meta, op,
            ": all tensors must be on one device, some are on meta");
}

void check_dtype(std::string_view op, const char* what, const Header& header, ScalarType dtype) {
  BNB_CHECK(dtype_of(header) == dtype, op, ": ", what, " must be ", name_of(dtype), ", got ",
            name_of(dtype_of(header)));
}

const float* check_floats(std::string_view op, const char* what, const Tensor& t, std::int64_t numel,
                          const Header& like) {
  const Header header = header_of(t, false);
  check_layout(op, what, header, numel, like);
  check_dtype(op, what, header, ScalarType::Float);
  return static_cast<const float*>(header.data);
}

Headers headers_in(std::string_view op, const Tensor& table, int states_per_param) {
  static_assert(sizeof(Header) == 3 * sizeof(std::int64_t));
  check_layout(op, "headers", header_of(table, false), table.numel(), header_of(table, false));
  check_dtype(op, "headers", header_of(table, false), ScalarType::Long);
  const std::int64_t each = 2 + 2 * states_per_param, n = table.numel() / 3 / each;
  BNB_CHECK(table.is_cpu() && table.numel() == 3 * each * n, op,
            ": headers must be on the CPU and have 3 numbers for each of a parameter's ", each, " tensors, got ",
            table.numel());
  const Header* const first = static_cast<const Header*>(table.const_data_ptr());
  const Header *const grads = first + n, *const states = grads + n, *const absmax = states + n * states_per_param;
  return {{first, grads}, {grads, states}, {states, absmax}, {absmax, absmax + n * states_per_param}};
}

// Whether a table is of the tensors it is said to be of.
void check_first(std::string_view op, const Headers& headers, const Tensor& first) {
  const Header own = header_of(first, true);
  BNB_CHECK(
      !headers.params.empty() && headers.params[0].data == own.data && headers.params[0].device_type == own.device_type,
      op, ": the first header must be that of the first parameter");
}

// The numbers of a list that is empty or has one for every parameter.
std::int64_t number(const std::vector<std::int64_t>& list, std::size_t i, std::int64_t otherwise) {
  return list.empty() ? otherwise : list[i];
}

Grid make_grid(std::string_view op, std::int64_t numel, const Common& common, std::size_t i) {
  const std::int64_t row = number(common.rows, i, 0) == 0 ? numel : common.rows[i];
  BNB_CHECK(row > 0 && numel % row == 0, op, ": rows must be 0 or divide a parameter's ", numel, " elements, got ",
            row);
  return {row, number(common.row_strides, i, row), number(common.origins, i, 0)};
}

State make_state(std::string_view op, const Header& state, const Header* absmax, const Slot& slot, const Header& like) {
  if (state.numel == 0) return {};
  check_layout(op, "a state", state, slot.numel, like);
  if (dtype_of(state) != ScalarType::Byte) {
    check_dtype(op, "a state", state, ScalarType::Float);
    return {static_cast<float*>(state.data)};
  }
  BNB_CHECK(absmax != nullptr, op, ": a uint8 state needs its absmax");
  const std::int64_t blocks = blocks_in(slot);
  const bool whole = absmax->numel == 1 && blocks > 1;
  BNB_CHECK(!whole || slot.norms == nullptr, op, ": a state with one absmax cannot be stepped with given norms");
  check_layout(op, "absmax", *absmax, whole ? 1 : blocks, like);
  check_dtype(op, "absmax", *absmax, ScalarType::Float);
  return {nullptr, static_cast<std::uint8_t*>(state.data), static_cast<float*>(absmax->data), whole};
}

std::array<bool, AllRules::kMaxStates> chosen_states(std::string_view op, const std::vector<std::int64_t>& indices,
                                                     int states_per_param) {
  std::array<bool, AllRules::kMaxStates> chosen{};
  for (const std::int64_t index : indices) {
    BNB_CHECK(index >= 0 && index < states_per_param, op, ": stochastic_states must name states 0 to ",
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
  BNB_CHECK(list.empty() || list.size() == n, op, ": ", what, " must be empty or have one number per parameter");
}

// The data of a table with a row of `width` numbers per parameter, or null.
void* check_table(std::string_view op, const char* what, const std::optional<Tensor>& table, bool written,
                  std::int64_t width, ScalarType dtype, const std::vector<Header>& params) {
  if (!table) return nullptr;
  const Header header = header_of(*table, written);
  check_layout(op, what, header, width * static_cast<std::int64_t>(params.size()), params[0]);
  check_dtype(op, what, header, dtype);
  return header.data;
}

std::vector<Slot> make_slots(std::string_view op, const Headers& headers, int states_per_param, const Common& common,
                             const Moving& moving, const std::optional<Tensor>& sums) {
  const auto& [params, grads, states, absmax] = headers;
  const std::size_t n = params.size();
  BNB_CHECK(grads.size() == n, op, ": expected ", n, " gradients, got ", grads.size());
  BNB_CHECK(states.size() == n * states_per_param, op, ": expected ", n * states_per_param, " states, got ",
            states.size());
  BNB_CHECK(absmax.empty() || absmax.size() == states.size(), op,
            ": absmax must be empty or have one tensor per state");
  check_numbers(op, "keys", common.keys, n);
  check_numbers(op, "rows", common.rows, n);
  check_numbers(op, "row_strides", common.row_strides, n);
  check_numbers(op, "origins", common.origins, n);
  if (n == 0) return {};
  static_assert(sizeof(Norms) == 3 * sizeof(float) && sizeof(Sums) == 3 * sizeof(double));
  const auto table = [&](const char* what, const std::optional<Tensor>& given, std::int64_t width, ScalarType dtype) {
    return check_table(op, what, given, false, width, dtype, params);
  };
  const auto* const scales = static_cast<const float*>(table("grad_scales", common.grad_scales, 1, ScalarType::Float));
  const auto* const norms = static_cast<const Norms*>(table("norms", common.norms, 3, ScalarType::Float));
  const auto* const counters = static_cast<const std::int64_t*>(table("moving_keys", moving.keys, 1, ScalarType::Long));
  auto* const to = static_cast<Sums*>(check_table(op, "sums", sums, true, 3, ScalarType::Double, params));
  const bool is_cpu = params[0].device_type == static_cast<int>(torch::headeronly::DeviceType::CPU);
  std::vector<Slot> slots;
  slots.reserve(n);
  for (std::size_t i = 0; i < n; ++i) {
    const std::int64_t numel = params[i].numel;
    check_layout(op, "a parameter", params[i], numel, params[0]);
    check_layout(op, "a gradient", grads[i], numel, params[0]);
    if (numel == 0) continue;
    Slot slot{params[i].data,
              grads[i].data,
              float_dtype(op, "a parameter", params[i]),
              float_dtype(op, "a gradient", grads[i]),
              numel,
              make_grid(op, numel, common, i),
              slots.empty() ? 0 : slots.back().first_block + blocks_in(slots.back()),
              scales == nullptr ? nullptr : scales + i,
              norms == nullptr ? nullptr : norms + i,
              to == nullptr ? nullptr : to + i,
              0,
              nullptr,
              {}};
    if (counters != nullptr && !is_cpu)
      slot.counter = counters + i;
    else if (counters != nullptr || !common.keys.empty())
      slot.key =
          mixed(common.options.seed, static_cast<std::uint64_t>(counters == nullptr ? common.keys[i] : counters[i]));
    for (int k = 0; k < states_per_param; ++k)
      slot.states[k] =
          make_state(op, states[k * n + i], absmax.empty() ? nullptr : &absmax[k * n + i], slot, params[0]);
    slots.push_back(slot);
  }
  return slots;
}

Batch make_batch(std::string_view op, const std::vector<Slot>& slots, const float* scalars, std::int32_t count,
                 const Options& options, const Moving& moving, const Header& like) {
  Batch batch{slots.data(), static_cast<std::int64_t>(slots.size()),
              slots.back().first_block + blocks_in(slots.back())};
  batch.scalars = moving.scalars ? check_floats(op, "scalars", *moving.scalars, count, like) : scalars;
  batch.scalar_count = count;
  batch.scalars_on_device = moving.scalars.has_value();
  batch.found_inf = moving.found_inf ? check_floats(op, "found_inf", *moving.found_inf, 1, like) : nullptr;
  batch.options = options;
  batch.device = like.device_index;
  return batch;
}

Quantized make_quantized(std::string_view op, const Tensor& values, const Tensor& codes, const Tensor& absmax,
                         std::int64_t blocksize) {
  BNB_CHECK(blocksize > 0, op, ": blocksize must be positive, got ", blocksize);
  const Header numbers = header_of(values, true), bytes = header_of(codes, true), scales = header_of(absmax, true);
  check_layout(op, "values", numbers, numbers.numel, numbers);
  blocksize = std::min(blocksize, std::max<std::int64_t>(1, numbers.numel));  // a longer block is the whole tensor
  check_layout(op, "codes", bytes, numbers.numel, numbers);
  check_layout(op, "absmax", scales, blocks_of(numbers.numel, blocksize), numbers);
  check_dtype(op, "values", numbers, ScalarType::Float);
  check_dtype(op, "codes", bytes, ScalarType::Byte);
  check_dtype(op, "absmax", scales, ScalarType::Float);
  return {static_cast<float*>(numbers.data), static_cast<std::uint8_t*>(bytes.data), static_cast<float*>(scales.data),
          numbers.numel, blocksize};
}

}  // namespace bnb
