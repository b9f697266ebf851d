// The step of blocks as nearly all of them are, for benchmarks/instructions.py to count: float32 or bf16, aligned,
// whole, none of the options. The compiler drops whatever else `step` can do.
#include "cuda/step.cuh"

namespace bnb::cuda {

template <class T>
__device__ T* aligned(T* pointer) {
  __builtin_assume(pointer != nullptr);
  return static_cast<T*>(__builtin_assume_aligned(pointer, 16));
}

template <class Rule, DType dtype, bool coded>
__global__ void __launch_bounds__(kThreads, kResident<Rule>) usual(const __grid_constant__ Part given) {
  Part part = given;
  part.scalars_on_device = part.found_inf = nullptr;
  part.layers = nullptr;
  part.options = {part.options.grad_scale};
  part.count = 1;
  Slot& slot = part.slots[0];
  slot.param = aligned(slot.param);
  slot.grad = aligned(slot.grad);
  slot.param_dtype = slot.grad_dtype = dtype;
  slot.numel = slot.grid.row = kBlock;
  slot.grad_scale = nullptr;
  slot.norms = nullptr;
  slot.counter = nullptr;
  for (State& state : slot.states)
    state = {coded ? nullptr : aligned(state.values), coded ? aligned(state.codes) : nullptr, state.absmax, false};
  slot.first_block = my_block(part);
  step_block<Rule>(part);
}

template <class Rule>
constexpr auto kUsual = std::array{usual<Rule, DType::kFloat32, true>, usual<Rule, DType::kBFloat16, true>,
                                   usual<Rule, DType::kFloat32, false>, usual<Rule, DType::kBFloat16, false>};

template <class... Rules>
auto all(RuleList<Rules...>) {
  return std::array{kUsual<Rules>...};
}

const auto kAll = all(AllRules{});  // so that each is made

}  // namespace bnb::cuda
