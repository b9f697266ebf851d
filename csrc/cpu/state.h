// A run of a state, in memory as float32 or as codes, to and from floats in the L1 cache. It must not know which rule
// reads them.
#pragma once
#include "../storage.h"
#include "code.h"
#include "noise.h"

namespace bnb {
inline namespace BNB_ISA {

inline float absmax_of(const float* x, std::int64_t n) {
  Ints most{};
  std::int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    const Ints bits = load<Ints>(x + i) & 0x7fffffff;
    most = bits > most ? bits : most;
  }
  std::int32_t bits = 0;
  for (int lane = 0; lane < kLanes; ++lane) bits = most[lane] > bits ? most[lane] : bits;
  for (; i < n; ++i) bits = magnitude_bits(x[i]) > bits ? magnitude_bits(x[i]) : bits;
  float absmax;
  std::memcpy(&absmax, &bits, sizeof absmax);
  return absmax;
}

// Calls f(first element) for every vector of [0, n); the last ones may overlap or, in a run shorter than a vector,
// reach beyond n.
template <class F>
BNB_LANE void for_each_vector(std::int64_t n, const F& f) {
  std::int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) f(i);
  if (i < n) f(n < kLanes ? 0 : n - kLanes);
}

template <Sign S>
void decode_run(const std::uint8_t* codes, float absmax, std::int64_t n, float* x) {
  if (n < kLanes) {
    for (std::int64_t i = 0; i < n; ++i) x[i] = decode<S>(codes[i]) * absmax;
    return;
  }
  for_each_vector(n, [&](std::int64_t i) { store(decode<S>(load_bytes(codes + i)) * absmax, x + i); });
}

// Into codes, divided by `absmax`, at least the largest magnitude among them. `first`: index in its tensor of x[0].
template <Sign S>
void encode_run(const float* x, std::int64_t n, float absmax, Zero<S> zero, Rounding rounding, std::uint32_t stream,
                std::int64_t first, std::uint8_t* codes) {
  const Scale scale(absmax);
  alignas(64) float padded[kLanes]{};
  std::uint8_t padded_codes[kLanes];
  const bool is_short = n < kLanes;
  if (is_short) std::memcpy(padded, x, sizeof(float) * n);
  const float* from = is_short ? padded : x;
  std::uint8_t* to = is_short ? padded_codes : codes;
  if (rounding.stochastic) {
    const Noise noise(rounding.key, stream, first);
    for_each_vector(n, [&](std::int64_t i) {
      const Floats scaled = load<Floats>(from + i) * scale.lift * scale.reciprocal;
      encode_stochastic<S>(scaled, uniform(noise[i]), zero, to + i);
    });
  } else if (scale.lift != 1) {
    for_each_vector(
        n, [&](std::int64_t i) { encode<S>(load<Floats>(from + i) * scale.lift * scale.reciprocal, zero, to + i); });
  } else {
    for_each_vector(n, [&](std::int64_t i) { encode<S>(load<Floats>(from + i) * scale.reciprocal, zero, to + i); });
  }
  if (is_short) std::memcpy(codes, padded_codes, n);
}

}  // namespace BNB_ISA
}  // namespace bnb
