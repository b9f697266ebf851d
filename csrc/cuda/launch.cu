// Launches a step: as many parts as the batch needs, each in one launch; a few small ones before it where something of
// whole parameters must be known. Never waits for the device and copies nothing to or from the host.
#include <cuda_runtime.h>
#include <torch/csrc/stable/ops.h>

#include "../ops.h"
#include "kernels.h"
#include "measure.cuh"
#include "stream.h"

#ifndef BNB_ENOUGH_WARPS
#define BNB_ENOUGH_WARPS 65536
#endif

namespace bnb::cuda {

// Device memory for what is measured of a part, by torch's allocator: it is free again for whoever comes later on the
// same stream.
class Scratch {
 public:
  Scratch(Part& part, std::int32_t device)
      : memory_(
            torch::stable::empty({static_cast<std::int64_t>(sizeof(Measure)) * (part.blocks + kShares * part.count) +
                                  static_cast<std::int64_t>(sizeof(Layer)) * part.count},
                                 torch::headeronly::ScalarType::Byte, std::nullopt,
                                 torch::stable::Device(torch::headeronly::DeviceType::CUDA, device))) {
    part.measures = static_cast<Measure*>(memory_.mutable_data_ptr());
    part.sums = part.measures + part.blocks;
    part.layers = reinterpret_cast<Layer*>(part.sums + kShares * part.count);
  }

 private:
  Tensor memory_;
};

class Launcher {
 public:
  Launcher(int rule, const Batch& batch)
      : kernels_(kKernels[rule]), batch_(batch), guard_(batch.device), stream_(guard_.stream()) {
    const bool given = batch.slots[0].norms != nullptr;
    whole_ = has_whole_state(batch);
    layerwise_ = kernels_.layerwise && !given;
    bounded_ = whole_ || (batch.options.max_unorm > 0 && !given);
  }

  // Whether a step must know something of whole parameters beforehand.
  bool measures() const { return layerwise_ || bounded_; }

  // Updates the parameters of a part.
  void step(int form, Part& part) const {
    set_run(form, part);
    std::optional<Scratch> scratch;
    if (measures()) scratch.emplace(part, batch_.device);
    for (const bool needed : {layerwise_, bounded_}) {
      if (!needed) continue;
      measure(form, part);
      for (int i = 0; i < part.count; ++i) part.slots[i].norms = &part.layers[i].norms;
    }
    run(kernels_.step[form], blocks_for(part), kThreadsOfStep, part);
    if (whole_) run(store_absmax, blocks_of(part.count, 32), 32, part);
  }

  // Adds up the squares of a part's parameters, into the slots' sums; only given norms count.
  void sum_up(int form, Part& part) const {
    set_run(form, part);
    const Scratch scratch(part, batch_.device);
    measure(form, part);
  }

 private:
  // No more than leave warps enough for all multiprocessors to end at about the same time.
  void set_run(int form, Part& part) const {
    const std::int64_t run = part.blocks / BNB_ENOUGH_WARPS, most = kernels_.most_run[form];
    part.run = static_cast<std::int32_t>(run < 1 ? 1 : run < most ? run : most);
  }

  // Into part.layers, or the slots' sums.
  void measure(int form, const Part& part) const {
    run(kernels_.measure[form], blocks_for(part), kThreadsOfStep, part);
    run(add_shares, part.count * kShares, kThreadsOfShare, part);
    run(finish, part.count, kShares, part);
  }

  static std::int64_t blocks_for(const Part& part) { return blocks_of(blocks_of(part.blocks, part.run), kWarpsOfStep); }

  void run(Kernel kernel, std::int64_t blocks, int threads, const Part& part) const {
    cuda::run(kernel, blocks, threads, part, stream_);
  }

  const Kernels& kernels_;
  const Batch& batch_;
  OnDevice guard_;
  cudaStream_t stream_;
  bool whole_, layerwise_, bounded_;
};

void launch(int rule, const Batch& batch) {
  const Launcher launcher(rule, batch);
  for_each_part(batch, !launcher.measures(), [&](int form, Part& part) { launcher.step(form, part); });
}

void sum_up(int rule, const Batch& batch) {
  const Launcher launcher(rule, batch);
  for_each_part(batch, false, [&](int form, Part& part) { launcher.sum_up(form, part); });
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
