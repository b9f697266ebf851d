// What a kernel takes for granted of the parameters that it steps. Nearly all of a model are alike in what a kernel for
// any parameter must ask of each: their dtype, where they begin, how their states lie. A kernel that need not ask keeps
// fewer registers, has more warps at once, and is half as long.
//
//   kAligned   blocks are whole, and every quad of elements is aligned
//   kDType     of the parameter and its gradient, if kAligned
//   kStates    how states lie
//   fits(slot, options)           whether a parameter is of this form
//   known(slot), known(options)   the same, as constants where the form knows
#pragma once
#include <algorithm>
#include <cstdint>

#include "../layer.h"

namespace bnb::cuda {

enum class Lying { kAnyhow, kInCodes, kInValues };

struct AnyForm {
  static constexpr bool kAligned = false;
  static constexpr DType kDType = DType::kFloat64;
  static constexpr Lying kStates = Lying::kAnyhow;
  static bool fits(const Slot&, const Options&) { return true; }
  static BNB_HD const Slot& known(const Slot& slot) { return slot; }
  static BNB_HD const Options& known(const Options& options) { return options; }
};

// One dtype, aligned, of whole blocks, of a single row; all the states that there are lie alike; none of the options
// that draw random numbers or look at single gradients.
template <DType dtype, Lying states>
struct PlainForm {
  static constexpr bool kAligned = true;
  static constexpr DType kDType = dtype;
  static constexpr Lying kStates = states;

  static bool fits(const Slot& slot, const Options& options) {
    const bool plain = slot.param_dtype == dtype && slot.grad_dtype == dtype && slot.numel % kBlock == 0 &&
                       slot.grid.row == slot.numel && (address(slot.param) | address(slot.grad)) % (4 * kBytes) == 0 &&
                       !options.skip_zeros && !(kBytes == 2 && options.stochastic_weights);
    return plain && std::all_of(slot.states.begin(), slot.states.end(), fits_state) &&
           (states != Lying::kInCodes || options.stochastic_states == decltype(options.stochastic_states){});
  }

  static BNB_HD Slot known(Slot slot) {
    slot.param_dtype = slot.grad_dtype = dtype;
    slot.grid.row = slot.numel;
    for (State& state : slot.states) state.whole = false;
    return slot;
  }

  static BNB_HD Options known(Options options) {
    options.skip_zeros = options.stochastic_weights = false;
    options.stochastic_states = {};
    return options;
  }

 private:
  static constexpr std::uintptr_t kBytes = size_of(dtype);

  static bool fits_state(const State& state) {
    const void* const others = states == Lying::kInCodes ? static_cast<void*>(state.values) : state.codes;
    return others == nullptr && !state.whole && address(state.codes) % 4 == 0 && address(state.values) % 16 == 0;
  }

  static std::uintptr_t address(const void* pointer) { return reinterpret_cast<std::uintptr_t>(pointer); }
};

template <class... Forms>
struct FormList {
  static constexpr std::size_t kCount = sizeof...(Forms);

  // Index of the first form that fits; the last one must.
  static int of(const Slot& slot, const Options& options) {
    int index = 0;
    (void)((Forms::fits(slot, options) || (++index, false)) || ...);
    return index;
  }
};

using AllForms =
    FormList<PlainForm<DType::kFloat32, Lying::kInCodes>, PlainForm<DType::kBFloat16, Lying::kInCodes>,
             PlainForm<DType::kFloat32, Lying::kInValues>, PlainForm<DType::kBFloat16, Lying::kInValues>, AnyForm>;

}  // namespace bnb::cuda
