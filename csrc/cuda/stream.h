// The device and the stream that torch has chosen, and CUDA's errors as torch's. Links against CPU builds of torch,
// too.
#pragma once
#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/headeronly/util/Exception.h>

// Of torch's C interface. Its CPU builds lack it: the same extension must load there, where nothing calls it.
extern "C" [[gnu::weak]] AOTITorchError aoti_torch_get_current_cuda_stream(std::int32_t device, void** stream);

namespace bnb::cuda {

inline void check(cudaError_t error) {
  STD_TORCH_CHECK(error == cudaSuccess, "torch_bnb: CUDA: ", cudaGetErrorString(error));
}

// Makes a device the current one while it lives.
class OnDevice {
 public:
  explicit OnDevice(std::int32_t device) : guard_(device), device_(device) {}

  cudaStream_t stream() const {
    STD_TORCH_CHECK(aoti_torch_get_current_cuda_stream != nullptr,
                    "torch_bnb was built for a torch without CUDA: build it again with the torch that runs it");
    void* stream = nullptr;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device_, &stream));
    return static_cast<cudaStream_t>(stream);
  }

 private:
  torch::stable::accelerator::DeviceGuard guard_;
  std::int32_t device_;
};

}  // namespace bnb::cuda
