// The kernels of each rule, by form, for the launcher to pick from.
#pragma once
#include "part.h"

namespace bnb::cuda {

using Kernel = void (*)(Part);

struct Kernels {
  std::array<Kernel, AllForms::kCount> step, measure;
  std::array<int, AllForms::kCount> most_run;  // see Heading::run
  bool layerwise;
};

extern const std::array<Kernels, AllRules::kCount> kKernels;  // in the order of AllRules

}  // namespace bnb::cuda
