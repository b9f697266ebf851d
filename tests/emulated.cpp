// csrc/cuda on the host: the very files that nvcc compiles, on a GPU that tests/gpu_on_host plays. Their operators get
// other names, torch_bnb_emulated::<rule> and so on, and take CPU tensors; the tests compare what they do with what the
// CPU's own kernels do.
#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

#include "ops.h"

#define CUDA CPU
#define torch_bnb torch_bnb_emulated
#define torch_bnb_measure torch_bnb_emulated_measure
#define torch_bnb_codec torch_bnb_emulated_codec
#include "cuda/codec.cu"
#include "cuda/launch.cu"
#include "cuda/rules.cu"
#include "ops.cpp"
#undef torch_bnb_codec
#undef torch_bnb_measure
#undef torch_bnb
#undef CUDA

// The one device and its one stream.
AOTITorchError aoti_torch_get_current_cuda_stream(std::int32_t, void** stream) {
  *stream = nullptr;
  return AOTI_TORCH_SUCCESS;
}
AOTITorchError aoti_torch_create_device_guard(std::int32_t, DeviceGuardHandle* guard) {
  *guard = nullptr;
  return AOTI_TORCH_SUCCESS;
}
AOTITorchError aoti_torch_delete_device_guard(DeviceGuardHandle) { return AOTI_TORCH_SUCCESS; }

namespace bnb {
namespace {

template <Sign S>
int nearest_number(float a) {
  std::uint32_t line;
  nearest<S, 1>(&a, &line, kTables);
  return number_on(line);
}

// Every float from 0 to 1 whose bits are a multiple of `stride`, and a few above 1: how many get another number than
// codec.h gives.
template <Sign S>
std::int64_t wrong_numbers(std::int64_t stride) {
  std::int64_t wrong = 0;
  for (std::int64_t bits = 0; bits < bits_of(1.0f) + 2; bits += stride) {
    const float a = float_of(static_cast<std::uint32_t>(bits));
    wrong += nearest_number<S>(a) != nearest_magnitude<S>(a);
  }
  return wrong;
}

// Around every threshold and every magnitude.
template <Sign S>
std::int64_t wrong_near_edges() {
  std::int64_t wrong = 0;
  for (int m = 1; m <= Magnitudes<S>::kTop; ++m)
    for (const float edge : {kThresholds<S>[m], kMagnitudes<S>[m]})
      for (int step = -300; step <= 300; ++step) {
        const float a = float_of(bits_of(edge) + step);
        if (a > 1) continue;
        wrong += nearest_number<S>(a) != nearest_magnitude<S>(a);
        for (const float uniform : {0.0f, 0.25f, 0.5f, 1.0f - 0x1p-24f})
          wrong += code_of<S>(number_on(drawn<S>(a, uniform, kTables)), false) != encode_stochastic<S>(a, uniform);
      }
  for (int code = 0; code < 256; ++code) {
    const std::uint8_t c = static_cast<std::uint8_t>(code);
    wrong += bits_of(decode_in_registers<S>(c, 0, kTables)) != bits_of(decode<S>(c));
  }
  return wrong;
}

std::int64_t wrong_numbers_of(bool is_signed, std::int64_t stride) {
  return is_signed ? wrong_numbers<Sign::kSigned>(stride) : wrong_numbers<Sign::kUnsigned>(stride);
}

std::int64_t wrong_near_edges_of(bool is_signed) {
  return is_signed ? wrong_near_edges<Sign::kSigned>() : wrong_near_edges<Sign::kUnsigned>();
}

std::int64_t capacity() { return cuda::kCapacity; }
void draw_order(std::int64_t seed) { gpu_on_host::draw_order(seed); }

}  // namespace
}  // namespace bnb

STABLE_TORCH_LIBRARY(gpu_on_host, m) {
  m.def("wrong_numbers(bool signed, int stride) -> int");
  m.def("wrong_near_edges(bool signed) -> int");
  m.def("capacity() -> int");
  m.def("launches() -> int");
  m.def("draw_order(int seed) -> ()");
}
STABLE_TORCH_LIBRARY_IMPL(gpu_on_host, CompositeExplicitAutograd, m) {
  m.impl("wrong_numbers", TORCH_BOX(&bnb::wrong_numbers_of));
  m.impl("wrong_near_edges", TORCH_BOX(&bnb::wrong_near_edges_of));
  m.impl("capacity", TORCH_BOX(&bnb::capacity));
  m.impl("launches", TORCH_BOX(&gpu_on_host::launches));
  m.impl("draw_order", TORCH_BOX(&bnb::draw_order));
}
