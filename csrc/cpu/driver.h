// The CPU's step loop: lets a rule run over blocks of 256 elements. Compiled once per instruction set (isa_*.cpp); it
// must not know which.
#pragma once
#include "coded.h"
#include "kernels.h"

namespace bnb {
inline namespace BNB_ISA {

// Moves the states, and to = from - rate * direction. Where kSkipZeros, elements with zero gradient stay.
template <bool kSkipZeros, class Rule, class... States>
void advance(const Rule rule, const Pace pace, const float* p, const float* g, const float* from, float* to,
             States*... s) {
#pragma omp simd
  for (int i = 0; i < kBlock; ++i) {
    const float gradient = g[i] * pace.grad_scale;
    [&](const auto... before) {
      const float u = rule.direction(p[i], gradient, s[i]...);
      const bool stays = kSkipZeros && gradient == 0;
      if (kSkipZeros) ((s[i] = stays ? before : s[i]), ...);
      to[i] = stays ? from[i] : multiply_add(-pace.rate, u, from[i]);
    }(s[i]...);
  }
}

template <class Rule, std::size_t... K>
void advance(const Rule& rule, Block<Rule>& block, const Options& options, Pace pace, const float* from, float* to,
             std::index_sequence<K...>) {
  if (options.skip_zeros)
    advance<true>(rule, pace, block.p, block.g, from, to, block.s[K]...);
  else
    advance<false>(rule, pace, block.p, block.g, from, to, block.s[K]...);
  // What a rule makes of zeros need not be zero, and the rest of a short block takes part in nothing.
  if (block.n < kBlock) ((std::memset(block.s[K] + block.n, 0, sizeof(float) * (kBlock - block.n))), ...);
}

template <class T>
bool has_nonzero(const T* x) {
  bool any = false;
  for (int i = 0; i < kBlock; ++i) any |= x[i] != 0;
  return any;
}

alignas(64) inline constexpr float kZeros[kBlock]{};

template <class Rule>
void step_block(const Rule& rule, const Slot& slot, const Options& options, const Layer* layer, std::int64_t index) {
  Block<Rule> block(slot, index, true);
  if (options.skip_zeros && !has_whole_state(slot) && !has_nonzero(block.g)) return;
  const Pace pace{grad_scale_of(slot, options), layer == nullptr ? rule.lr : rule.lr * layer->norms.shrink};
  const float* const from = slot.param_dtype == DType::kFloat64 ? kZeros : block.p;
  constexpr auto kAll = std::make_index_sequence<Rule::kStates.size()>{};
  if (block.is_coded() && !options.skip_zeros) {
    step_coded(rule, block, options, pace, block.p, block.g, from, block.p, kAll);
  } else {
    block.load_states();
    advance(rule, block, options, pace, from, block.p, kAll);
    block.put_back_states(options, layer == nullptr ? nullptr : layer->absmax.data());
  }
  block.put_back(options);
}

// Sum of squares in double, in an order that no width of vectors changes. Beyond the end of a short block are zeros.
inline double sum_of_squares(const float* x) {
  constexpr int kParts = 16;
  double parts[kParts]{};
  static_assert(kBlock % kParts == 0);
  for (int i = 0; i < kBlock; i += kParts)
    for (int part = 0; part < kParts; ++part) parts[part] += static_cast<double>(x[i + part]) * x[i + part];
  double sum = 0;
  for (const double part : parts) sum += part;
  return sum;
}

// The number that a layer-wise rule measures of every element, from copies of the states.
template <class Rule, class... States>
void measured(const Rule rule, float scale, const float* p, const float* g, float* to, const States*... s) {
#pragma omp simd
  for (int i = 0; i < kBlock; ++i)
    to[i] = [&](auto... state) { return rule.measured(p[i], g[i] * scale, state...); }(s[i]...);
}

// What must be known of a block beforehand; nothing is stored. With the norms unknown, those for a layer-wise rule;
// then, for max_unorm and states with one absmax for the whole tensor, the step as if the rate were 1.
template <class Rule, std::size_t... K>
Measure measure_block(const Rule& rule, bool norms_known, const Slot& slot, const Options& options, std::int64_t index,
                      std::index_sequence<K...> all) {
  Block<Rule> block(slot, index, false);
  block.load_states();
  const float scale = grad_scale_of(slot, options);
  Measure measure{};
  measure.sums.param = sum_of_squares(block.p);
  if constexpr (kLayerwise<Rule>) {
    alignas(64) float of_elements[kBlock];
    measured(rule, scale, block.p, block.g, of_elements, block.s[K]...);
    if (block.n < kBlock) std::memset(of_elements + block.n, 0, sizeof(float) * (kBlock - block.n));
    measure.sums.measured = sum_of_squares(of_elements);
    if (!norms_known) return measure;
  }
  advance(rule, block, options, {scale, rule.lr}, kZeros, block.p, all);
  if (block.n < kBlock) std::memset(block.p + block.n, 0, sizeof(float) * (kBlock - block.n));
  measure.sums.update = sum_of_squares(block.p);
  ((measure.absmax[K] = absmax_of(block.s[K], block.n)), ...);
  return measure;
}

// Calls f(index of the slot, block within the slot, block within the batch) for blocks [first, last): a thread's share.
template <class F>
void for_each_block(const Batch& batch, std::int64_t first, std::int64_t last, const F& f) {
  std::int64_t slot = find_slot(batch.slots, static_cast<int>(batch.count), first);
  for (std::int64_t block = first; block < last; ++block) {
    if (slot + 1 < batch.count && batch.slots[slot + 1].first_block == block) ++slot;
    f(slot, block - batch.slots[slot].first_block, block);
  }
}

template <class Rule>
void step_blocks(const Batch& batch, const Layer* layers, std::int64_t first, std::int64_t last) {
  const Rule base = make_rule<Rule>(batch.scalars);
  for_each_block(batch, first, last, [&](std::int64_t slot, std::int64_t block, std::int64_t) {
    const Layer* layer = layers == nullptr ? nullptr : layers + slot;
    step_block(rule_for(base, norms_in(layer)), batch.slots[slot], batch.options, layer, block);
  });
}

template <class Rule>
void measure_blocks(const Batch& batch, const Layer* layers, Measure* measures, std::int64_t first, std::int64_t last) {
  Rule base = make_rule<Rule>(batch.scalars);
  base.lr = 1;
  for_each_block(batch, first, last, [&](std::int64_t slot, std::int64_t block, std::int64_t in_batch) {
    const Layer* layer = layers == nullptr ? nullptr : layers + slot;
    measures[in_batch] = measure_block(rule_for(base, norms_in(layer)), layer != nullptr, batch.slots[slot],
                                       batch.options, block, std::make_index_sequence<Rule::kStates.size()>{});
  });
}

inline std::int64_t block_length(const Quantized& q, std::int64_t block) {
  const std::int64_t left = q.numel - block * q.blocksize;
  return left < q.blocksize ? left : q.blocksize;
}

template <Sign S>
void quantize_blocks(const Quantized& q, std::int64_t first, std::int64_t last) {
  for (std::int64_t block = first; block < last; ++block) {
    const std::int64_t begin = block * q.blocksize, n = block_length(q, block);
    q.absmax[block] = absmax_of(q.values + begin, n);
    encode_run<S, false>(q.values + begin, n, q.absmax[block], {}, 0, begin, q.codes + begin);
  }
}

template <Sign S>
void dequantize_blocks(const Quantized& q, std::int64_t first, std::int64_t last) {
  for (std::int64_t block = first; block < last; ++block) {
    const std::int64_t begin = block * q.blocksize;
    decode_run<S>(q.codes + begin, q.absmax[block], block_length(q, block), q.values + begin);
  }
}

template <class... Rules>
constexpr cpu::Kernels make_kernels(const char* isa, RuleList<Rules...>) {
  return {isa,
          {kLayerwise<Rules>...},
          {step_blocks<Rules>...},
          {measure_blocks<Rules>...},
          {quantize_blocks<Sign::kUnsigned>, quantize_blocks<Sign::kSigned>},
          {dequantize_blocks<Sign::kUnsigned>, dequantize_blocks<Sign::kSigned>}};
}

}  // namespace BNB_ISA
}  // namespace bnb
