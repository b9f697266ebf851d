// The CPU's step loop: brings a block of 256 elements into the L1 cache as floats, lets the rule run over it, takes it
// back. Compiled once per instruction set (isa_*.cpp); it must not know which.
#pragma once
#include "convert.h"
#include "kernels.h"

namespace bnb {
inline namespace BNB_ISA {

template <class Rule, std::size_t... K>
void step_block(const Rule& rule, const Slot& slot, float grad_scale, std::int64_t block, std::index_sequence<K...>) {
  const std::int64_t begin = block * kBlock;
  const std::int64_t left = slot.numel - begin;
  const int n = left < kBlock ? static_cast<int>(left) : kBlock;
  alignas(64) float p[kBlock], g[kBlock], delta[kBlock], s[sizeof...(K)][kBlock];

  read(slot.param_dtype, slot.param, begin, n, p);
  read(slot.grad_dtype, slot.grad, begin, n, g);
  (load_state<Rule::kStates[K]>(slot.states[K], block, begin, n, s[K]), ...);
#pragma omp simd
  for (int i = 0; i < n; ++i) delta[i] = rule.lr * rule.direction(p[i], grad_scale * g[i], s[K][i]...);
  (store_state<Rule::kStates[K]>(slot.states[K], block, begin, n, s[K]), ...);
  descend(slot.param_dtype, slot.param, begin, n, p, delta);
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

// Blocks [first, last) of the batch: one thread's share.
template <class Rule>
void step_blocks(const Batch& batch, std::int64_t first, std::int64_t last) {
  const Rule rule = make_rule<Rule>(batch.scalars);
  std::int64_t slot = find_slot(batch, first);
  for (std::int64_t block = first; block < last; ++block) {
    if (slot + 1 < batch.count && batch.slots[slot + 1].first_block == block) ++slot;
    step_block(rule, batch.slots[slot], batch.grad_scale, block - batch.slots[slot].first_block,
               std::make_index_sequence<Rule::kStates.size()>{});
  }
}

inline int block_length(const Quantized& q, std::int64_t block) {
  const std::int64_t left = q.numel - block * q.blocksize;
  return static_cast<int>(left < q.blocksize ? left : q.blocksize);
}

template <Sign S>
void quantize_blocks(const Quantized& q, std::int64_t first, std::int64_t last) {
  for (std::int64_t block = first; block < last; ++block) {
    const std::int64_t begin = block * q.blocksize;
    q.absmax[block] = encode_block<S>(q.values + begin, block_length(q, block), q.codes + begin);
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
          {step_blocks<Rules>...},
          {quantize_blocks<Sign::kUnsigned>, quantize_blocks<Sign::kSigned>},
          {dequantize_blocks<Sign::kUnsigned>, dequantize_blocks<Sign::kSigned>}};
}

}  // namespace BNB_ISA
}  // namespace bnb
