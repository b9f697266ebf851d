// A block of one parameter as 256 floats of each thing that a rule sees: in place where memory holds just that, else
// brought into the L1 cache and taken back. It must not know what a rule does with them.
#pragma once
#include "convert.h"
#include "state.h"

namespace bnb {
inline namespace BNB_ISA {

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
    // A second moment that rounds to zero would turn its first moment into an update without bound.
    encode_run<S, S == Sign::kUnsigned>(x, span.n, absmax, rounding, stream, span.index, state.codes + span.begin);
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

  // `in_place`: what is float32 already is changed where it lies, and codes wait for `decode`.
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
    each_state([&](auto k) {
      s[k] = in_place_ && slot.states[k].values ? slot.states[k].values + span.begin : room_[2 + k];
      if (s[k] == room_[2 + k] && !is_lazy(k)) load_state<Rule::kStates[k]>(slot.states[k], index, span, s[k]);
    });
  }

  // Decodes elements [first, first + kChunk) of the states, where that has been left for the last moment: so it
  // overlaps with the arithmetic of the elements before.
  BNB_LANE void decode(int first) const {
    each_state([&](auto k) {
      if (!is_lazy(k)) return;
      const State& state = slot_.states[k];
      const std::uint8_t* const codes = state.codes + span_.begin + first;
      const float absmax = state.absmax[state.whole ? 0 : index_];
      decode_chunk<Rule::kStates[k]>(codes, absmax, s[k] + first);
    });
  }

  // Takes back what is not in place. For a float64 parameter `p` holds what to add to it. `whole_absmax`: of the new
  // states, for those with one absmax, which the driver stores when all blocks are done.
  void put_back(const Options& options, const float* whole_absmax) {
    if (p == room_[0])
      write(slot_.param_dtype, at(slot_.param_dtype, slot_.param, span_.begin), n, p,
            {options.stochastic_weights, slot_.key}, span_.index);
    // All of them first: a block's absmax is known late, and then its codes wait for it.
    std::array<float, kStates> absmax{};
    each_state([&](auto k) {
      const State& state = slot_.states[k];
      if (state.codes) absmax[k] = state.whole ? whole_absmax[k] : absmax_of(s[k], n);
    });
    each_state([&](auto k) {
      if (s[k] == room_[2 + k])
        store_state<Rule::kStates[k]>(slot_.states[k], index_, span_, s[k], absmax[k],
                                      {options.stochastic_states[k], slot_.key}, k);
    });
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

  bool is_lazy(std::size_t k) const { return in_place_ && slot_.states[k].codes; }
  bool is_here(DType dtype) const { return in_place_ && dtype == DType::kFloat32; }

  const Slot& slot_;
  std::int64_t index_;
  Span span_;
  bool in_place_;
  alignas(64) float room_[2 + kStates][kBlock];
};

}  // namespace BNB_ISA
}  // namespace bnb
