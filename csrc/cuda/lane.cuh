// One lane's share of a block of 256: two quads, 128 elements apart, so that what a warp's 32 lanes access together is
// one run of memory. A lane loads, steps and stores by itself; what it must know of the others (the block's absmax,
// sums) it is told. The code's tables are the warp's, hence all lanes must act together.
#pragma once
#include "../layer.h"
#include "quad.cuh"
#include "warp.cuh"

namespace bnb {
inline namespace BNB_ISA {

constexpr int kWarp = 32;
constexpr int kQuads = kBlock / (kWarp * kQuad);
constexpr int kPerLane = kQuads * kQuad;

using cuda::warp::Code;

template <class Rule, class Form>
class Lane {
 public:
  static constexpr int kStates = static_cast<int>(Rule::kStates.size());

  // Loads this lane's elements of a slot's block; zeros beyond the tensor's end.
  __device__ Lane(const Slot& slot, std::int64_t block, const Code& code)
      : slot_(slot), block_(block), span_(span_of(slot, block)), first_(threadIdx.x % kWarp * kQuad), code_(code) {
    load(std::make_index_sequence<kStates>{});
  }

  // Whether a state is, the same for all lanes.
  __device__ bool in_codes(int k) const {
    using cuda::Lying;
    return Form::kStates == Lying::kAnyhow ? slot_.states[k].codes != nullptr : Form::kStates == Lying::kInCodes;
  }

  __device__ bool has_gradient() const {
    bool any = false;
    BNB_UNROLL
    for (int i = 0; i < kPerLane; ++i) any |= g_[i] != 0;
    return any;
  }

  // Moves the states, and the parameter by -rate * direction. `from_zero`: the parameter becomes the move alone.
  __device__ void advance(const Rule& rule, const Options& options, float rate, bool from_zero) {
    const float scale = grad_scale_of(slot_, options);
    BNB_UNROLL
    for (int i = 0; i < kPerLane; ++i)
      move(rule, scale, options.skip_zeros, rate, from_zero, i, std::make_index_sequence<kStates>{});
  }

  // Of this lane's elements.
  __device__ double squares_of_parameter() const { return squares(p_); }

  __device__ double squares_of_measured(const Rule& rule, const Options& options) const {
    const float scale = grad_scale_of(slot_, options);
    float x[kPerLane];
    BNB_UNROLL
    for (int i = 0; i < kPerLane; ++i) x[i] = measured(rule, scale, i, std::make_index_sequence<kStates>{});
    return squares(x);
  }

  // Magnitude in a state after `advance`; NaN if there is one.
  __device__ float largest(int k) const {
    float most = 0;
    BNB_UNROLL
    for (int i = 0; i < kPerLane; ++i) most = cuda::warp::larger_magnitude(most, s_[k][i]);
    return most;
  }

  __device__ void store_parameter(const Options& options) const {
    BNB_UNROLL
    for (int q = 0; q < kQuads; ++q)
      write(slot_.param_dtype, slot_.param, quad(q), p_ + q * kQuad, {options.stochastic_weights, key(options)});
  }

  // `absmax`: of the block of each state, or of the whole new state.
  __device__ void store_states(const Options& options, const float* absmax) const {
    store_states(options, absmax, std::make_index_sequence<kStates>{});
  }

 private:
  __device__ Quad quad(int q) const {
    const int first = first_ + q * kWarp * kQuad, left = span_.n - first;
    const int count = Form::kAligned || left >= kQuad ? kQuad : left > 0 ? left : 0;
    return {span_.begin + first, count, Form::kAligned, span_.index, first};
  }

  __device__ bool exists(int i) const {
    return Form::kAligned || first_ + i / kQuad * kWarp * kQuad + i % kQuad < span_.n;
  }

  __device__ std::uint64_t key(const Options& options) const {
    return slot_.counter == nullptr ? slot_.key : mixed(options.seed, static_cast<std::uint64_t>(*slot_.counter));
  }

  // All loads are under way before the first is waited for.
  template <std::size_t... K>
  __device__ void load(std::index_sequence<K...>) {
    const float absmax[] = {(in_codes(K) ? absmax_of(slot_.states[K], block_) : 0.0f)...};
    std::uint32_t codes[kStates][kQuads];
    Raw param[kQuads], grad[kQuads];
    BNB_UNROLL
    for (int q = 0; q < kQuads; ++q) {
      param[q] = load_raw(slot_.param_dtype, slot_.param, quad(q));
      grad[q] = load_raw(slot_.grad_dtype, slot_.grad, quad(q));
      (load_state<K>(q, codes[K][q]), ...);
    }
    (decode<K>(codes[K], absmax[K]), ...);
    BNB_UNROLL
    for (int q = 0; q < kQuads; ++q) {
      widen(slot_.param_dtype, param[q], p_ + q * kQuad);
      widen(slot_.grad_dtype, grad[q], g_ + q * kQuad);
    }
  }

  template <std::size_t k>
  __device__ void load_state(int q, std::uint32_t& codes) {
    if (in_codes(k))
      codes = load_codes(slot_.states[k].codes, quad(q), kZeroCode<Rule::kStates[k]>);
    else
      load_values(slot_.states[k].values, quad(q), s_[k] + q * kQuad);
  }

  template <std::size_t k>
  __device__ void decode(const std::uint32_t* codes, float absmax) {
    if (!in_codes(k)) return;
    BNB_UNROLL
    for (int i = 0; i < kPerLane; ++i)
      s_[k][i] = decode_in_registers<Rule::kStates[k]>(codes[i / kQuad], i % kQuad, code_) * absmax;
  }

  // What a rule makes of zeros need not be zero, and what is beyond the end takes part in nothing.
  template <std::size_t... K>
  __device__ void move(const Rule& rule, float scale, bool skip_zeros, float rate, bool from_zero, int i,
                       std::index_sequence<K...>) {
    const float gradient = g_[i] * scale, from = from_zero ? 0.0f : p_[i];
    float s[] = {s_[K][i]...};
    const float u = rule.direction(p_[i], gradient, s[K]...);
    const bool stays = skip_zeros && gradient == 0, there = exists(i);
    ((s_[K][i] = !there ? 0.0f : stays ? s_[K][i] : s[K]), ...);
    p_[i] = !there ? 0.0f : stays ? from : multiply_add(-rate, u, from);
  }

  template <std::size_t... K>
  __device__ float measured(const Rule& rule, float scale, int i, std::index_sequence<K...>) const {
    if constexpr (kLayerwise<Rule>) {
      float s[] = {s_[K][i]...};
      const float x = rule.measured(p_[i], g_[i] * scale, s[K]...);
      return exists(i) ? x : 0.0f;
    }
    return 0.0f;
  }

  __device__ static double squares(const float* x) {
    double sum = 0;
    BNB_UNROLL
    for (int i = 0; i < kPerLane; ++i) sum += static_cast<double>(x[i]) * x[i];
    return sum;
  }

  template <std::size_t... K>
  __device__ void store_states(const Options& options, const float* absmax, std::index_sequence<K...>) const {
    (store_state<K>(options, absmax[K]), ...);
  }

  template <std::size_t k>
  __device__ void store_state(const Options& options, float absmax) const {
    const State& state = slot_.states[k];
    if (in_codes(k)) {
      std::int32_t codes[kPerLane];
      encode<k>({options.stochastic_states[k], key(options)}, absmax, codes);
      if (state.codes == nullptr) return;
      BNB_UNROLL
      for (int q = 0; q < kQuads; ++q) write_codes(state.codes, quad(q), codes + q * kQuad);
      if (!state.whole && first_ == 0) state.absmax[block_] = absmax;
    } else if (state.values) {
      BNB_UNROLL
      for (int q = 0; q < kQuads; ++q) write_as<Float32>(state.values, quad(q), s_[k] + q * kQuad, {});
    }
  }

  template <std::size_t k>
  __device__ void encode(Rounding rounding, float absmax, std::int32_t* codes) const {
    constexpr Sign S = Rule::kStates[k];
    const Scale scale(absmax);
    float x[kPerLane], a[kPerLane];
    std::uint32_t line[kPerLane];
    BNB_UNROLL
    for (int i = 0; i < kPerLane; ++i) x[i] = s_[k][i];
    if (scale.lift != 1) {
      BNB_UNROLL
      for (int i = 0; i < kPerLane; ++i) x[i] *= scale.lift;
    }
    BNB_UNROLL
    for (int i = 0; i < kPerLane; ++i) {
      x[i] = encodable<S>(x[i] * scale.reciprocal);
      a[i] = __builtin_fabsf(x[i]);
    }
    if (rounding.stochastic) {
      BNB_UNROLL
      for (int i = 0; i < kPerLane; ++i)
        line[i] = drawn<S>(a[i], uniform(noise(rounding.key, k, quad(i / kQuad), i % kQuad)), code_);
    } else {
      nearest<S, kPerLane>(a, line, code_);
    }
    BNB_UNROLL
    for (int i = 0; i < kPerLane; ++i) codes[i] = code_on<S, Tiny::kKept>(line[i], x[i]);
  }

  const Slot& slot_;
  const std::int64_t block_;
  const Span span_;
  const int first_;  // within the block
  const Code& code_;
  float p_[kPerLane], g_[kPerLane], s_[kStates][kPerLane];
};

}  // namespace BNB_ISA
}  // namespace bnb
