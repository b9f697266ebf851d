// The kernels of each rule, for the launcher to pick from.
#pragma once
#include "../rules.h"

namespace bnb::cuda {

struct Kernels {
  const void *step, *measure;
  bool layerwise;
};

extern const std::array<Kernels, AllRules::kCount> kKernels;  // in the order of AllRules

}  // namespace bnb::cuda
