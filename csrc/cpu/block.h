// A block of one parameter as 256 floats of each thing that a rule sees: in place where memory holds just that, else
// brought into the L1 cache and taken back. It must not know what a rule does with them.
#pragma once
#include "convert.h"
#include "state.h"

namespace bnb {
inline namespace BNB_ISA {

// A second moment that rounds to zero would turn its first moment into an update without bound.
template <Sign S>
constexpr bool kKeeps = S == Sign::kUnsigned;

// One copy of these loops per map, not one per rule: a call a block costs nothing, and the build stays short.
template <Sign S>
[[gnu::noinline]] void load_state(const State& state, std::int64_t block, const Span& span, float* x) {
  if (state.codes)
    decode_run<S>(state.codes + span.begin, state.absmax[state.whole ? 0 : block], span.n, x);
  else if (state.values)
    std::memcpy(x, state.values + span.begin, sizeof(float) * span.n);
  else
    std::memset(x, 0, sizeof(float) * span.n);
}

// The same back, with the absmax of the block or of the whole new state.
template <Sign S>
[[gnu::noinline]] void store_state(const State& state, std::int64_t block, const Span& span, const float* x,
                                   float absmax, Rounding rounding, std::uint32_t stream) {
  if (state.codes) {
    encode_run<S, kKeeps<S>>(x, span.n, absmax, rounding, stream, span.index, state.codes + span.begin);
    if (!state.whole) state.absmax[block] = absmax;
  } else if (state.values) {
    std::memcpy(state.values + span.begin, x, sizeof(float) * span.n);
  }
}

template <class Rule>
class Block {
 public:
  static constexpr std::size_t kStates = Rule::kStates.size();

  float* p;
  const float* g;
  std::array<float*, kStates> s;
  int n;  // beyond it, up to kBlock, everything is zero

  // `in_place`: what is float32 already is changed where it lies. States wait for `load_states`.
  Block(const Slot& slot, std::int64_t index, bool in_place) : Block(slot, index, span_of(slot, index), in_place) {}

  Block(const Slot& slot, std::int64_t index, const Span& span, bool in_place)
      : n(span.n), slot_(slot), index_(index), span_(span), in_place_(in_place && n == kBlock) {
    if (n < kBlock) std::memset(room_, 0, sizeof room_);
    void* const param = at(slot.param_dtype, slot.param, span.begin);
    const void* const grad = at(slot.grad_dtype, slot.grad, span.begin);
    p = is_here(slot.param_dtype) ? static_cast<float*>(param) : room_[0];
    g = n == kBlock && slot.grad_dtype == DType::kFloat32 ? static_cast<const float*>(grad) : room_[1];
    if (p == room_[0]) read(slot.param_dtype, param, n, room_[0]);
    if (g == room_[1]) read(slot.grad_dtype, grad, n, room_[1]);
  }

  void load_states() {
    each_state([&](auto k) {
      s[k] = in_place_ && slot_.states[k].values ? slot_.states[k].values + span_.begin : room_[2 + k];
      if (s[k] == room_[2 + k]) load_state<Rule::kStates[k]>(slot_.states[k], index_, span_, s[k]);
    });
  }

  // Takes back the parameter, if it is not in place. If it is float64, `p` holds what to add to it.
  void put_back(const Options& options) {
    if (p == room_[0])
      write(slot_.param_dtype, at(slot_.param_dtype, slot_.param, span_.begin), n, p,
            {options.stochastic_weights, slot_.key}, span_.index);
  }

  // Takes back the states that are not in place. `whole_absmax`: of the new states, for those with one absmax, which
  // the driver stores when all blocks are done.
  void put_back_states(const Options& options, const float* whole_absmax) {
    // All of them first: a block's absmax is known late, and then its codes wait for it.
    std::array<float, kStates> absmax{};
    each_state([&](auto k) {
      const State& state = slot_.states[k];
      if (state.codes) absmax[k] = state.whole ? whole_absmax[k] : absmax_of(s[k], n);
    });
    each_state([&](auto k) {
      if (s[k] == room_[2 + k]) put_back_state<k>(options, s[k], absmax[k]);
    });
  }

  template <std::size_t k>
  void put_back_state(const Options& options, const float* x, float absmax) {
    store_state<Rule::kStates[k]>(slot_.states[k], index_, span_, x, absmax, {options.stochastic_states[k], slot_.key},
                                  k);
  }

  // Whether it is whole and all its states are codes with an absmax of its own.
  bool is_coded() const {
    bool coded = n == kBlock;
    for (std::size_t k = 0; k < kStates; ++k) coded &= slot_.states[k].codes && !slot_.states[k].whole;
    return coded;
  }

  // Of such a state, the elements [first, first + kChunk).
  template <std::size_t k>
  BNB_LANE void decode(int first, float* to) const {
    const State& state = slot_.states[k];
    decode_chunk<Rule::kStates[k]>(state.codes + span_.begin + first, state.absmax[index_], to);
  }

  // The same back, where it is rounded to the nearest and its reciprocal absmax is no infinity.
  template <std::size_t k>
  BNB_LANE void encode(int first, const float* x, float reciprocal) const {
    std::uint8_t* const codes = slot_.states[k].codes + span_.begin + first;
    encode_chunk<Rule::kStates[k], kKeeps<Rule::kStates[k]>>(x, reciprocal, codes);
  }
  template <std::size_t k>
  void put_absmax(float absmax) const {
    slot_.states[k].absmax[index_] = absmax;
  }

  // Calls f(std::integral_constant) for the index of every state.
  template <class F>
  BNB_LANE static void each_state(const F& f) {
    each_state(f, std::make_index_sequence<kStates>{});
  }

 private:
  template <class F, std::size_t... K>
  BNB_LANE static void each_state(const F& f, std::index_sequence<K...>) {
    (f(std::integral_constant<std::size_t, K>{}), ...);
  }

  bool is_here(DType dtype) const { return in_place_ && dtype == DType::kFloat32; }

  const Slot& slot_;
  std::int64_t index_;
  Span span_;
  bool in_place_;
  alignas(64) float room_[2 + kStates][kBlock];
};

}  // namespace BNB_ISA
}  // namespace bnb
