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

template <class Rule>
class Lane {
 public:
  static constexpr int kStates = static_cast<int>(Rule::kStates.size());

  // Loads this lane's elements of a slot's block; zeros beyond the tensor's end.
  __device__ Lane(const Slot& slot, std::int64_t block, int lane)
      : slot_(slot),
        block_(block),
        span_(span_of(slot, block)),
        first_(lane * kQuad),
        tables_(cuda::warp::spread(kTables, lane)) {
    constexpr auto kAll = std::make_index_sequence<kStates>{};
    if (is_usual<Float32>(DType::kFloat32))
      load_at_once<Float32>(kAll);
    else if (is_usual<BFloat16>(DType::kBFloat16))
      load_at_once<BFloat16>(kAll);
    else
      load(kAll);
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

  // Adds the squares of this lane's elements to a block's sums.
  __device__ double squares_of_parameter() const { return squares(p_); }

  __device__ double squares_of_measured(const Rule& rule, const Options& options) const {
    const float scale = grad_scale_of(slot_, options);
    float x[kPerLane];
    BNB_UNROLL
    for (int i = 0; i < kPerLane; ++i) x[i] = measured(rule, scale, i, std::make_index_sequence<kStates>{});
    return squares(x);
  }

  // Of a state after `advance`, as bits, which order like the numbers and keep a NaN.
  __device__ std::int32_t largest(int k) const {
    std::int32_t most = 0;
    BNB_UNROLL
    for (int i = 0; i < kPerLane; ++i) {
      const std::int32_t bits = magnitude_bits(s_[k][i]);
      most = bits > most ? bits : most;
    }
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
    return {span_.begin + first, left >= kQuad ? kQuad : left > 0 ? left : 0, span_.index, first};
  }

  __device__ bool exists(int i) const { return first_ + i / kQuad * kWarp * kQuad + i % kQuad < span_.n; }

  __device__ std::uint64_t key(const Options& options) const {
    return slot_.counter == nullptr ? slot_.key : mixed(options.seed, static_cast<std::uint64_t>(*slot_.counter));
  }

  // Whether the block is as nearly all are: whole, aligned, of one dtype, its states in 8 bits. The same for all lanes.
  template <class T>
  __device__ bool is_usual(DType dtype) const {
    bool usual = slot_.param_dtype == dtype && slot_.grad_dtype == dtype && in_one_piece<T>(slot_.param, quad(0)) &&
                 in_one_piece<T>(slot_.grad, quad(0)) && span_.n == kBlock;
    BNB_UNROLL
    for (int k = 0; k < kStates; ++k)
      usual = usual && slot_.states[k].codes && in_one_piece<std::uint8_t>(slot_.states[k].codes, quad(0));
    return usual;
  }

  // Of a usual block. All loads are under way before the first is waited for.
  template <class T, std::size_t... K>
  __device__ void load_at_once(std::index_sequence<K...>) {
    Four<T> p[kQuads], g[kQuads];
    Four<std::uint8_t> codes[kStates][kQuads];
    const float absmax[] = {absmax_of(slot_.states[K], block_)...};
    BNB_UNROLL
    for (int q = 0; q < kQuads; ++q) {
      p[q] = load_whole<T>(slot_.param, quad(q));
      g[q] = load_whole<T>(slot_.grad, quad(q));
      ((codes[K][q] = load_whole<std::uint8_t>(slot_.states[K].codes, quad(q))), ...);
    }
    (decode<Rule::kStates[K]>(codes[K], absmax[K], s_[K]), ...);
    BNB_UNROLL
    for (int i = 0; i < kPerLane; ++i) {
      p_[i] = T::widen(p[i / kQuad].of[i % kQuad]);
      g_[i] = T::widen(g[i / kQuad].of[i % kQuad]);
    }
  }

  template <Sign S>
  __device__ void decode(const Four<std::uint8_t>* codes, float absmax, float* x) const {
    BNB_UNROLL
    for (int i = 0; i < kPerLane; ++i) x[i] = decode_in_registers<S>(codes[i / kQuad].of[i % kQuad], tables_) * absmax;
  }

  template <std::size_t... K>
  __device__ void load(std::index_sequence<K...>) {
    BNB_UNROLL
    for (int q = 0; q < kQuads; ++q) {
      read(slot_.param_dtype, slot_.param, quad(q), p_ + q * kQuad);
      read(slot_.grad_dtype, slot_.grad, quad(q), g_ + q * kQuad);
      (read_state<Rule::kStates[K]>(slot_.states[K], block_, quad(q), s_[K] + q * kQuad, tables_), ...);
    }
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
    if (state.codes) {
      const Scale scale(absmax);
      BNB_UNROLL
      for (int q = 0; q < kQuads; ++q)
        write_codes<Rule::kStates[k]>(state.codes, quad(q), s_[k] + q * kQuad, scale,
                                      {options.stochastic_states[k], key(options)}, k, tables_);
      if (!state.whole && first_ == 0) state.absmax[block_] = absmax;
    } else if (state.values) {
      BNB_UNROLL
      for (int q = 0; q < kQuads; ++q) write_as<Float32>(state.values, quad(q), s_[k] + q * kQuad, {});
    }
  }

  const Slot& slot_;
  std::int64_t block_;
  Span span_;
  int first_;  // within the block
  Tables<cuda::warp::Spread> tables_;
  float p_[kPerLane], g_[kPerLane], s_[kStates][kPerLane];
};

}  // namespace BNB_ISA
}  // namespace bnb
