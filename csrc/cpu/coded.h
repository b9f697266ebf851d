// A whole block whose states are all codes, as nearly every block is: what is decoded stays in registers until it is a
// new state. The same bits as the driver's way for all other blocks, which it must not know.
#pragma once
#include "block.h"

namespace bnb {
inline namespace BNB_ISA {

// How one block is stepped.
struct Pace {
  float grad_scale, rate;
};

// Moves the states, and to = from - rate * direction. The kind of state is known, and the arrays are of this function:
// else the compiler would send everything through memory.
template <class Rule, std::size_t... K>
void step_coded(const Rule rule, Block<Rule>& block, const Options& options, const Pace pace, const float* p,
                const float* g, const float* from, float* to, std::index_sequence<K...>) {
  alignas(64) float next[sizeof...(K)][kBlock];
  Ints most[sizeof...(K)]{};
  for (int begin = 0; begin < kBlock; begin += kChunk) {
    alignas(64) float before[sizeof...(K)][kChunk];
    (block.template decode<K>(begin, before[K]), ...);
#pragma omp simd
    for (int k = 0; k < kChunk; ++k) {
      const int i = begin + k;
      const float gradient = g[i] * pace.grad_scale;
      [&](auto... state) {
        to[i] = multiply_add(-pace.rate, rule.direction(p[i], gradient, state...), from[i]);
        ((next[K][i] = state), ...);
      }(before[K][k]...);
    }
    ((most[K] = larger_magnitude<kChunk>(most[K], next[K] + begin)), ...);
  }
  const std::array absmax{float_of(largest(most[K]))...};
  const std::array scale{Scale(absmax[K])...};
  if ((... || (options.stochastic_states[K] || scale[K].lift != 1))) {
    (block.template put_back_state<K>(options, next[K], absmax[K]), ...);
  } else {  // the usual case, side by side
    for (int begin = 0; begin < kBlock; begin += kChunk)
      (block.template encode<K>(begin, next[K] + begin, scale[K].reciprocal), ...);
    (block.template put_absmax<K>(absmax[K]), ...);
  }
}

}  // namespace BNB_ISA
}  // namespace bnb
