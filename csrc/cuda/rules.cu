// Every rule's kernels. No torch here, which keeps the compilation short.
#include "kernels.h"
#include "step.cuh"

namespace bnb::cuda {

template <class Rule, class... Forms>
Kernels make_kernels(FormList<Forms...>) {
  return {{step<Rule, Forms>...}, {measure<Rule, Forms>...}, {kMostRun<Rule, Forms>...}, kLayerwise<Rule>};
}

template <class... Rules>
std::array<Kernels, sizeof...(Rules)> make_kernels(RuleList<Rules...>) {
  return {make_kernels<Rules>(AllForms{})...};
}

const std::array<Kernels, AllRules::kCount> kKernels = make_kernels(AllRules{});

}  // namespace bnb::cuda
