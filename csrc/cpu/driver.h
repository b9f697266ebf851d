// The CPU's step loop: brings a block of 256 elements into the L1 cache as floats, lets the rule run over it, takes it
// back. Compiled once per instruction set (isa_*.cpp); it must not know which.
#pragma once
#include <type_traits>

#include "convert.h"
#include "kernels.h"

namespace bnb {
inline namespace BNB_ISA {

// One copy of the codec's loops per map, not one per rule: a call a block costs nothing, and the build stays short.
template <Sign S>
[[gnu::noinline]] void load(const State& state, std::int64_t block, std::int64_t begin, int n, float* x) {
  load_state<S>(state, block, begin, n, x);
}

template <Sign S>
[[gnu::noinline]] void store(const State& state, std::int64_t block, std::int64_t begin, int n, const float* x,
                             float whole_absmax, Rounding rounding, std::uint32_t stream) {
  store_state<S>(state, block, begin, n, x, whole_absmax, rounding, stream);
}

// A block of one parameter as floats: 256 elements of it, of its gradient, of each state, and the direction to go.
template <class Rule>
struct Block {
  static constexpr std::size_t kStates = Rule::kStates.size();
  alignas(64) float p[kBlock], g[kBlock], u[kBlock], s[kStates][kBlock];
  std::int64_t index, begin;
  int n;

  Block(const Slot& slot, const Options& options, std::int64_t block) : index(block), begin(block * kBlock) {
    const std::int64_t left = slot.numel - begin;
    n = left < kBlock ? static_cast<int>(left) : kBlock;
    read(slot.param_dtype, slot.param, begin, n, p);
    read(slot.grad_dtype, slot.grad, begin, n, g);
    const float scale = slot.grad_scale == nullptr ? options.grad_scale : options.grad_scale * *slot.grad_scale;
    for (int i = 0; i < n; ++i) g[i] *= scale;
    load_states(slot, s, std::make_index_sequence<kStates>{});
  }

  // Moves the states and finds the direction.
  template <std::size_t... K>
  void run(const Rule& rule, const Slot& slot, const Options& options, std::index_sequence<K...> all) {
#pragma omp simd
    for (int i = 0; i < n; ++i) u[i] = rule.direction(p[i], g[i], s[K][i]...);
    if (!options.skip_zeros) return;
    float before[kStates][kBlock];
    load_states(slot, before, all);
    for (int i = 0; i < n; ++i) {
      u[i] = g[i] == 0 ? 0.0f : u[i];
      ((s[K][i] = g[i] == 0 ? before[K][i] : s[K][i]), ...);
    }
  }

  bool has_gradient() const {
    bool any = false;
    for (int i = 0; i < n; ++i) any |= g[i] != 0;
    return any;
  }

 private:
  template <std::size_t... K>
  void load_states(const Slot& slot, float (&to)[kStates][kBlock], std::index_sequence<K...>) {
    (load<Rule::kStates[K]>(slot.states[K], index, begin, n, to[K]), ...);
  }
};

template <class Rule, class = void>
constexpr bool kLayerwise = false;
template <class Rule>
constexpr bool kLayerwise<Rule, std::void_t<decltype(&Rule::with_norms)>> = true;

// The rule for one parameter; `layer` may be null as long as nothing has been measured.
template <class Rule>
Rule rule_for(const Rule& rule, const cpu::Layer* layer) {
  if constexpr (kLayerwise<Rule>)
    return layer == nullptr ? rule : rule.with_norms(layer->param_norm, layer->measured_norm);
  return rule;
}

template <class Rule, std::size_t... K>
void step_block(const Rule& rule, const Slot& slot, const Options& options, const cpu::Layer* layer, std::int64_t index,
                std::index_sequence<K...> all) {
  Block<Rule> block(slot, options, index);
  if (options.skip_zeros && !block.has_gradient()) return;
  block.run(rule, slot, options, all);
  const float rate = layer == nullptr ? rule.lr : rule.lr * layer->shrink;
  for (int i = 0; i < block.n; ++i) block.u[i] *= rate;
  (store<Rule::kStates[K]>(slot.states[K], index, block.begin, block.n, block.s[K],
                           layer == nullptr ? 0.0f : layer->absmax[K], {options.stochastic_states[K], slot.key}, K),
   ...);
  descend(slot.param_dtype, slot.param, block.begin, block.n, block.p, block.u, {options.stochastic_weights, slot.key});
}

// What a layer-wise rule, max_unorm or a state with one absmax for the whole tensor need to know of a block beforehand.
// The step is taken as if the rate were 1, and nothing is stored.
template <class Rule, std::size_t... K>
cpu::Measure measure_block(const Rule& rule, const Slot& slot, const Options& options, std::int64_t index,
                           std::index_sequence<K...> all) {
  Block<Rule> block(slot, options, index);
  cpu::Measure sums{};
  for (int i = 0; i < block.n; ++i) sums.param += static_cast<double>(block.p[i]) * block.p[i];
  if constexpr (kLayerwise<Rule>) {
    for (int i = 0; i < block.n; ++i) {
      const double x = rule.measured(block.p[i], block.g[i], block.s[K][i]...);
      sums.measured += x * x;
    }
  }
  block.run(rule, slot, options, all);
  for (int i = 0; i < block.n; ++i) {
    const double x = static_cast<double>(rule.lr) * block.u[i];
    sums.update += x * x;
  }
  ((sums.absmax[K] = block_absmax(block.s[K], block.n)), ...);
  return sums;
}

// Index of the slot that holds a block of the batch.
inline std::int64_t find_slot(const Batch& batch, std::int64_t block) {
  std::int64_t low = 0, high = batch.count;  // slots[low].first_block <= block < slots[high].first_block
  while (high - low > 1) {
    const std::int64_t middle = (low + high) / 2;
    (batch.slots[middle].first_block <= block ? low : high) = middle;
  }
  return low;
}

// Calls f(index of the slot, block within the slot, block within the batch) for blocks [first, last): a thread's share.
template <class F>
void for_each_block(const Batch& batch, std::int64_t first, std::int64_t last, const F& f) {
  std::int64_t slot = find_slot(batch, first);
  for (std::int64_t block = first; block < last; ++block) {
    if (slot + 1 < batch.count && batch.slots[slot + 1].first_block == block) ++slot;
    f(slot, block - batch.slots[slot].first_block, block);
  }
}

template <class Rule>
void step_blocks(const Batch& batch, const cpu::Layer* layers, std::int64_t first, std::int64_t last) {
  const Rule base = make_rule<Rule>(batch.scalars);
  for_each_block(batch, first, last, [&](std::int64_t slot, std::int64_t block, std::int64_t) {
    const cpu::Layer* layer = layers == nullptr ? nullptr : layers + slot;
    step_block(rule_for(base, layer), batch.slots[slot], batch.options, layer, block,
               std::make_index_sequence<Rule::kStates.size()>{});
  });
}

template <class Rule>
void measure_blocks(const Batch& batch, const cpu::Layer* layers, cpu::Measure* measures, std::int64_t first,
                    std::int64_t last) {
  Rule base = make_rule<Rule>(batch.scalars);
  base.lr = 1;
  for_each_block(batch, first, last, [&](std::int64_t slot, std::int64_t block, std::int64_t in_batch) {
    measures[in_batch] = measure_block(rule_for(base, layers == nullptr ? nullptr : layers + slot), batch.slots[slot],
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
    const std::int64_t begin = block * q.blocksize;
    const std::int64_t n = block_length(q, block);
    q.absmax[block] = block_absmax(q.values + begin, n);
    encode_block<S>(q.values + begin, begin, n, q.absmax[block], {}, 0, q.codes + begin);
  }
}

template <Sign S>
void dequantize_blocks(const Quantized& q, std::int64_t first, std::int64_t last) {
  for (std::int64_t block = first; block < last; ++block) {
    const std::int64_t begin = block * q.blocksize;
    decode_block<S>(q.codes + begin, q.absmax[block], block_length(q, block), q.values + begin);
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
