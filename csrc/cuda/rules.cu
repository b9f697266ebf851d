// Every rule's kernels. No torch here, which keeps the compilation short.
#include "kernels.h"
#include "step.cuh"

namespace bnb::cuda {

template <class... Rules>
std::array<Kernels, sizeof...(Rules)> make_kernels(RuleList<Rules...>) {
  return {Kernels{step<Rules>, measure<Rules>, kLayerwise<Rules>}...};
}

const std::array<Kernels, AllRules::kCount> kKernels = make_kernels(AllRules{});

}  // namespace bnb::cuda
