// Launches, on the device and the stream that torch has chosen, and CUDA's errors as torch's. Links against CPU builds
// of torch, too.
#pragma once
#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>

#include "../check.h"

// Of torch's C interface. Its CPU builds lack it: the same extension must load there, where nothing calls it.
extern "C" [[gnu::weak]] AOTITorchError aoti_torch_get_current_cuda_stream(std::int32_t device, void** stream);

namespace bnb::cuda {

inline void check(cudaError_t error) {
  BNB_CHECK(error == cudaSuccess, "torch_bnb: CUDA: ", cudaGetErrorString(error));
}

// Makes a device the current one while it lives.
class OnDevice {
 public:
  explicit OnDevice(std::int32_t device) : guard_(device), device_(device) {}

  cudaStream_t stream() const {
    BNB_CHECK(aoti_torch_get_current_cuda_stream != nullptr,
              "torch_bnb was built for a torch without CUDA: build it again with the torch that runs it");
    void* stream = nullptr;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device_, &stream));
    return static_cast<cudaStream_t>(stream);
  }

 private:
  torch::stable::accelerator::DeviceGuard guard_;
  std::int32_t device_;
};

template <class Argument>
void run(void (*kernel)(Argument), std::int64_t blocks, int threads, Argument argument, cudaStream_t stream) {
  constexpr std::int64_t most = 0x7fffffff;  // CUDA's
  BNB_CHECK(blocks <= most, "torch_bnb: CUDA launches at most ", most, " thread blocks, got ", blocks);
  void* arguments[] = {&argument};
  check(cudaLaunchKernel(kernel, dim3(static_cast<unsigned>(blocks)), dim3(threads), arguments, 0, stream));
}

}  // namespace bnb::cuda
