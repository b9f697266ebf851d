// Launches a step: as many parts as the batch needs, each in one launch; a few small ones before it where something of
// whole parameters must be known. Never waits for the device and copies nothing to or from the host.
#include <cuda_runtime.h>
#include <torch/csrc/stable/ops.h>

#include "../ops.h"
#include "kernels.h"
#include "measure.cuh"
#include "stream.h"

namespace bnb::cuda {

constexpr int kWarpsOfStep = kThreadsOfStep / 32;

class Launcher {
 public:
  Launcher(const Kernels& kernels, cudaStream_t stream) : kernels_(kernels), stream_(stream) {}

  void step(Part& part, bool whole) const {
    Layer* const layers = part.layers;
    part.layers = nullptr;
    const bool given = part.slots[0].norms != nullptr;
    if (kernels_.layerwise && !given) {
      measure(part, layers);
      part.layers = layers;
    }
    if (whole || (part.options.max_unorm > 0 && !given)) {
      measure(part, layers);
      part.layers = layers;
    }
    run(kernels_.step, warps_for(part), kThreadsOfStep, part);
    if (whole) run(store_absmax, blocks_of(part.count, 32), 32, part);
  }

  // Reads part.layers while it measures and writes `layers`, or the slots' sums, when every block has been.
  void measure(Part& part, Layer* layers) const {
    run(kernels_.measure, warps_for(part), kThreadsOfStep, part);
    run(add_shares, part.count * kShares, kThreadsOfShare, part);
    Part finished = part;
    finished.layers = layers;
    run(finish, part.count, kShares, finished);
  }

 private:
  static std::int64_t warps_for(const Part& part) { return blocks_of(part.end_block - part.first_block, kWarpsOfStep); }

  void run(Kernel kernel, std::int64_t blocks, int threads, const Part& part) const {
    cuda::run(kernel, blocks, threads, part, stream_);
  }

  const Kernels& kernels_;
  cudaStream_t stream_;
};

// Device memory for the measures of the longest part, by torch's allocator: it is free again for whoever comes later on
// the same stream.
class Scratch {
 public:
  Scratch(std::int64_t blocks, std::int32_t device)
      : blocks_(blocks),
        memory_(torch::stable::empty({static_cast<std::int64_t>(sizeof(Measure)) * (blocks + kShares * kCapacity) +
                                      static_cast<std::int64_t>(sizeof(Layer)) * kCapacity},
                                     torch::headeronly::ScalarType::Byte, std::nullopt,
                                     torch::stable::Device(torch::headeronly::DeviceType::CUDA, device))) {}

  void lend(Part& part) {
    part.measures = static_cast<Measure*>(memory_.mutable_data_ptr());
    part.sums = part.measures + blocks_;
    part.layers = reinterpret_cast<Layer*>(part.sums + kShares * kCapacity);
  }

 private:
  std::int64_t blocks_;
  Tensor memory_;
};

// Calls f(launcher, part) for every part of a batch.
template <class F>
void for_each_part(int rule, const Batch& batch, bool measures, const F& f) {
  const OnDevice guard(batch.device);
  const Launcher launcher(kKernels[rule], guard.stream());
  std::optional<Scratch> scratch;
  if (measures) scratch.emplace(batch.blocks, batch.device);
  for (std::int64_t first = 0; first < batch.count; first += kCapacity) {
    Part part = part_from(batch, first);
    if (scratch) scratch->lend(part);
    f(launcher, part);
  }
}

void launch(int rule, const Batch& batch) {
  const bool whole = has_whole_state(batch), given = batch.slots[0].norms != nullptr;
  const bool measures = whole || (!given && (kKernels[rule].layerwise || batch.options.max_unorm > 0));
  for_each_part(rule, batch, measures, [&](const Launcher& launcher, Part& part) { launcher.step(part, whole); });
}

void sum_up(int rule, const Batch& batch) {
  for_each_part(rule, batch, true, [](const Launcher& launcher, Part& part) {
    part.layers = nullptr;  // only given norms count
    launcher.measure(part, nullptr);
  });
}

}  // namespace bnb::cuda

STABLE_TORCH_LIBRARY_IMPL(torch_bnb, CUDA, m) {
  bnb::implement_rules<bnb::Task::kStep, bnb::cuda::launch>(m);
  bnb::implement_rules<bnb::Task::kStepByAddress, bnb::cuda::launch>(m);
  bnb::implement_rules<bnb::Task::kStepOnDevice, bnb::cuda::launch>(m);
}
STABLE_TORCH_LIBRARY_IMPL(torch_bnb_measure, CUDA, m) {
  bnb::implement_rules<bnb::Task::kMeasure, bnb::cuda::sum_up>(m);
}
