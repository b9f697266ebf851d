// How one state of one parameter lies in memory: float32, or codes with an absmax per block, or nowhere.
// Moves a block between memory and floats; it must not know which rule reads them.
#pragma once
#include <cstdint>
#include <cstring>

#include "codec.h"
#include "random.h"

namespace bnb {

// codes and absmax: 8 bits. values: float32. Neither: the configuration does without this state (SGD without momentum);
// it reads as zero and is not stored.
struct State {
  float* values = nullptr;
  std::uint8_t* codes = nullptr;  // one per element
  float* absmax = nullptr;        // one per block of kBlock elements, or one for the whole tensor
  bool whole = false;
};

// How numbers that lie between two representable ones are rounded: to the nearest, or at random, by a parameter's key
// for this step.
struct Rounding {
  bool stochastic = false;
  std::uint64_t key = 0;
};

inline namespace BNB_ISA {

// Bit patterns of |x| order like integers, with NaN above infinity: the maximum of a block keeps a NaN, and the block
// then decodes to NaN instead of losing it.
BNB_HD std::int32_t magnitude_bits(float x) {
  std::int32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits & 0x7fffffff;
}

BNB_HD float block_absmax(const float* x, std::int64_t n) {
  std::int32_t most = 0;
  for (std::int64_t i = 0; i < n; ++i) {
    const std::int32_t bits = magnitude_bits(x[i]);
    most = bits > most ? bits : most;
  }
  float absmax;
  std::memcpy(&absmax, &most, sizeof absmax);
  return absmax;
}

template <Sign S>
BNB_HD void decode_block(const std::uint8_t* codes, float absmax, std::int64_t n, float* x) {
  for (std::int64_t i = 0; i < n; ++i) x[i] = decode<S>(codes[i]) * absmax;
}

// Elements [begin, begin + n) of a tensor into codes, divided by `absmax`, at least the largest magnitude among them.
template <Sign S>
BNB_HD void encode_block(const float* x, std::int64_t begin, std::int64_t n, float absmax, Rounding rounding,
                         std::uint32_t stream, std::uint8_t* codes) {
  // The reciprocal of a subnormal absmax overflows: lift such a block by an exact power of two first. All-zero:
  // anything finite.
  const float lift = absmax < 0x1p-100f ? 0x1p100f : 1.0f;
  const float reciprocal = absmax == 0 ? 0.0f : 1.0f / (absmax * lift);
  if (rounding.stochastic) {
    for (std::int64_t i = 0; i < n; ++i)
      codes[i] = encode_stochastic<S>(x[i] * lift * reciprocal, uniform(random_bits(rounding.key, stream, begin + i)));
  } else {
    for (std::int64_t i = 0; i < n; ++i) codes[i] = encode<S>(x[i] * lift * reciprocal);
  }
}

// A second moment that rounds to zero would turn its first moment into an update without bound.
BNB_HD void keep_above_zero(const float* x, int n, std::uint8_t* codes) {
  for (int i = 0; i < n; ++i) {
    const std::uint8_t least = x[i] > 0 ? 1 : 0;
    codes[i] = codes[i] < least ? least : codes[i];
  }
}

// Elements [begin, begin + n) of a state, which are block `block` of it.
template <Sign S>
BNB_HD void load_state(const State& state, std::int64_t block, std::int64_t begin, int n, float* x) {
  if (state.codes)
    decode_block<S>(state.codes + begin, state.absmax[state.whole ? 0 : block], n, x);
  else if (state.values)
    std::memcpy(x, state.values + begin, sizeof(float) * n);
  else
    std::memset(x, 0, sizeof(float) * n);
}

// The same back. `whole_absmax`: of the new state, for a state with one absmax; the driver stores it when all blocks
// are done.
template <Sign S>
BNB_HD void store_state(const State& state, std::int64_t block, std::int64_t begin, int n, const float* x,
                        float whole_absmax, Rounding rounding, std::uint32_t stream) {
  if (state.codes) {
    const float absmax = state.whole ? whole_absmax : block_absmax(x, n);
    encode_block<S>(x, begin, n, absmax, rounding, stream, state.codes + begin);
    if (S == Sign::kUnsigned) keep_above_zero(x, n, state.codes + begin);
    if (!state.whole) state.absmax[block] = absmax;
  } else if (state.values) {
    std::memcpy(state.values + begin, x, sizeof(float) * n);
  }
}

}  // namespace BNB_ISA
}  // namespace bnb
