// How one state of one parameter lies in memory: float32, or codes with an absmax per block, or nowhere.
// Moves a block between memory and floats; it must not know which rule reads them.
#pragma once
#include <cstdint>
#include <cstring>

#include "codec.h"

namespace bnb {

// codes and absmax: 8 bits. values: float32. Neither: the configuration does without this state (SGD without momentum);
// it reads as zero and is not stored.
struct State {
  float* values = nullptr;
  std::uint8_t* codes = nullptr;  // one per element
  float* absmax = nullptr;        // one per block of kBlock elements
};

inline namespace BNB_ISA {

// Bit patterns of |x| order like integers, with NaN above infinity: the maximum of a block keeps a NaN, and the block
// then decodes to NaN instead of losing it.
BNB_HD std::int32_t magnitude_bits(float x) {
  std::int32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits & 0x7fffffff;
}

BNB_HD float block_absmax(const float* x, int n) {
  std::int32_t most = 0;
  for (int i = 0; i < n; ++i) {
    const std::int32_t bits = magnitude_bits(x[i]);
    most = bits > most ? bits : most;
  }
  float absmax;
  std::memcpy(&absmax, &most, sizeof absmax);
  return absmax;
}

template <Sign S>
BNB_HD void decode_block(const std::uint8_t* codes, float absmax, int n, float* x) {
  for (int i = 0; i < n; ++i) x[i] = decode<S>(codes[i]) * absmax;
}

// Writes n codes and returns the block's absmax.
template <Sign S>
BNB_HD float encode_block(const float* x, int n, std::uint8_t* codes) {
  const float absmax = block_absmax(x, n);
  // The reciprocal of a subnormal absmax overflows: lift such a block by an exact power of two first. All-zero:
  // anything finite.
  const float lift = absmax < 0x1p-100f ? 0x1p100f : 1.0f;
  const float reciprocal = absmax == 0 ? 0.0f : 1.0f / (absmax * lift);
  for (int i = 0; i < n; ++i) codes[i] = encode<S>(x[i] * lift * reciprocal);
  return absmax;
}

// Elements [begin, begin + n) of a state, which are block `block` of it.
template <Sign S>
BNB_HD void load_state(const State& state, std::int64_t block, std::int64_t begin, int n, float* x) {
  if (state.codes)
    decode_block<S>(state.codes + begin, state.absmax[block], n, x);
  else if (state.values)
    std::memcpy(x, state.values + begin, sizeof(float) * n);
  else
    std::memset(x, 0, sizeof(float) * n);
}

template <Sign S>
BNB_HD void store_state(const State& state, std::int64_t block, std::int64_t begin, int n, const float* x) {
  if (state.codes)
    state.absmax[block] = encode_block<S>(x, n, state.codes + begin);
  else if (state.values)
    std::memcpy(state.values + begin, x, sizeof(float) * n);
}

}  // namespace BNB_ISA
}  // namespace bnb
