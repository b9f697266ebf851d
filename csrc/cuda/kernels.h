// The kernels of each rule, for the launcher to pick from.
#pragma once
#include "part.h"

namespace bnb::cuda {

using Kernel = void (*)(Part);

struct Kernels {
  Kernel step, measure;
  bool layerwise;
};

extern const std::array<Kernels, AllRules::kCount> kKernels;  // in the order of AllRules

}  // namespace bnb::cuda
