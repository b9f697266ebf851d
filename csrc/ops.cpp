// Schemas and Meta kernels: everything of the boundary that no device owns.
#include "ops.h"

#include <torch/csrc/stable/macros.h>

namespace bnb {

// The 256 numbers of a map, written into `out` (float32, on the CPU).
void dynamic_map(const Tensor& out, bool is_signed) {
  check_floats("dynamic_map", "out", out, 256, header_of(out, true));
  const auto& values = is_signed ? kValues<Sign::kSigned> : kValues<Sign::kUnsigned>;
  std::memcpy(out.mutable_data_ptr(), values.data(), sizeof values);
}

std::int64_t block_size() { return kBlock; }

void no_code(const Tensor&, const Tensor&, const Tensor&, bool, std::int64_t) {}
void no_map(const Tensor&, bool) {}

}  // namespace bnb

// torch_bnb:: holds the rules and nothing else; what is beside them has namespaces of its own.
STABLE_TORCH_LIBRARY(torch_bnb, m) {
  bnb::define_rules<bnb::Task::kStep>(m, bnb::AllRules{});
  bnb::define_rules<bnb::Task::kStepByAddress>(m, bnb::AllRules{});
  bnb::define_rules<bnb::Task::kStepOnDevice>(m, bnb::AllRules{});
}
STABLE_TORCH_LIBRARY_IMPL(torch_bnb, Meta, m) {
  bnb::implement_rules<bnb::Task::kStep, nullptr>(m);
  bnb::implement_rules<bnb::Task::kStepOnDevice, nullptr>(m);
}

STABLE_TORCH_LIBRARY(torch_bnb_measure, m) { bnb::define_rules<bnb::Task::kMeasure>(m, bnb::AllRules{}); }
STABLE_TORCH_LIBRARY_IMPL(torch_bnb_measure, Meta, m) { bnb::implement_rules<bnb::Task::kMeasure, nullptr>(m); }

STABLE_TORCH_LIBRARY(torch_bnb_codec, m) {
  m.def("quantize_blockwise(Tensor values, Tensor(a!) codes, Tensor(b!) absmax, bool signed, int blocksize) -> ()");
  m.def("dequantize_blockwise(Tensor(a!) values, Tensor codes, Tensor absmax, bool signed, int blocksize) -> ()");
  m.def("dynamic_map(Tensor(a!) out, bool signed) -> ()");
  m.def("block_size() -> int");
}
STABLE_TORCH_LIBRARY_IMPL(torch_bnb_codec, Meta, m) {
  m.impl("quantize_blockwise", TORCH_BOX(&bnb::no_code));
  m.impl("dequantize_blockwise", TORCH_BOX(&bnb::no_code));
  m.impl("dynamic_map", TORCH_BOX(&bnb::no_map));
}
STABLE_TORCH_LIBRARY_IMPL(torch_bnb_codec, CPU, m) { m.impl("dynamic_map", TORCH_BOX(&bnb::dynamic_map)); }
STABLE_TORCH_LIBRARY_IMPL(torch_bnb_codec, CompositeExplicitAutograd, m) {
  m.impl("block_size", TORCH_BOX(&bnb::block_size));
}
