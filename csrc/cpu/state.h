// A run of a state, in memory as float32 or as codes, to and from floats in the L1 cache. It must not know which rule
// reads them.
#pragma once
#include "code.h"
#include "noise.h"

namespace bnb {
inline namespace BNB_ISA {

// The larger magnitude of each lane, from the bits of floats: `most` has no sign.
BNB_LANE Ints larger_magnitude(Ints most, Ints bits) {
  bits = bits & 0x7fffffff;
  return bits > most ? bits : most;
}

template <int n>
BNB_LANE Ints larger_magnitude(Ints most, const float* x) {
  for (int i = 0; i < n; i += kLanes) most = larger_magnitude(most, load<Ints>(x + i));
  return most;
}

inline float absmax_of(const float* x, std::int64_t n) {
  Ints most[2]{};  // two chains
  const std::int64_t in_pairs = n - n % (2 * kLanes);
  for (std::int64_t i = 0; i < in_pairs; i += 2 * kLanes)
    for (int chain = 0; chain < 2; ++chain)
      most[chain] = larger_magnitude(most[chain], load<Ints>(x + i + chain * kLanes));
  std::int32_t bits = largest(most[0] > most[1] ? most[0] : most[1]);
  for (std::int64_t i = in_pairs; i < n; ++i) bits = magnitude_bits(x[i]) > bits ? magnitude_bits(x[i]) : bits;
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

// kChunk numbers, times `reciprocal`, to the nearest codes.
template <Sign S, bool keep>
BNB_LANE void encode_chunk(const float* x, float reciprocal, std::uint8_t* codes) {
  Halves doubt = ~Halves{};
  for (int i = 0; i < kChunk; i += kSide * kLanes) {
    Floats scaled[kSide];
    for (int v = 0; v < kSide; ++v) scaled[v] = load<Floats>(x + i + v * kLanes) * reciprocal;
    store(encode<S, keep>(scaled, doubt), codes + i);
  }
  if (any_below(kDoubtful, doubt)) encode_by_element<S, keep>(x, kChunk, reciprocal, codes);
}

template <Sign S>
void decode_run(const std::uint8_t* codes, float absmax, std::int64_t n, float* x) {
  if (n < kLanes) {
    for (std::int64_t i = 0; i < n; ++i) x[i] = decode<S>(codes[i]) * absmax;
    return;
  }
  std::int64_t begin = 0;
  for (; begin + kChunk <= n; begin += kChunk) decode_chunk<S>(codes + begin, absmax, x + begin);
  if (begin == n) return;
  for_each_vector(n - begin < kLanes ? kLanes : n - begin, [&](std::int64_t i) {
    i += n - begin < kLanes ? n - kLanes : begin;
    store(decode<S>(load_bytes(codes + i)) * absmax, x + i);
  });
}

// The same for a few more or less, and for numbers that are lifted first.
template <Sign S, bool keep>
[[gnu::noinline]] void encode_lifted(const float* x, std::int64_t n, Scale scale, std::uint8_t* codes) {
  for (std::int64_t begin = 0; begin < n; begin += kChunk) {
    const std::int64_t count = n - begin < kChunk ? n - begin : kChunk;
    float lifted[kChunk]{};
    std::uint8_t lifted_codes[kChunk];
    for (std::int64_t i = 0; i < count; ++i) lifted[i] = x[begin + i] * scale.lift;
    encode_chunk<S, keep>(lifted, scale.reciprocal, lifted_codes);
    std::memcpy(codes + begin, lifted_codes, count);
  }
}

// Into codes, divided by `absmax`, at least the largest magnitude among them. `keep`: as `encode` takes it. `first`:
// index in its tensor of x[0].
template <Sign S, bool keep>
void encode_run(const float* x, std::int64_t n, float absmax, Rounding rounding, std::uint32_t stream,
                std::int64_t first, std::uint8_t* codes) {
  const Scale scale(absmax);
  if (!rounding.stochastic) {
    std::int64_t begin = 0;
    if (scale.lift == 1)
      for (; begin + kChunk <= n; begin += kChunk) encode_chunk<S, keep>(x + begin, scale.reciprocal, codes + begin);
    if (begin < n) encode_lifted<S, keep>(x + begin, n - begin, scale, codes + begin);
  } else if (n < kLanes) {
    float padded[kLanes]{};
    std::uint8_t padded_codes[kLanes];
    std::memcpy(padded, x, sizeof(float) * n);
    encode_run<S, keep>(padded, kLanes, absmax, rounding, stream, first, padded_codes);
    std::memcpy(codes, padded_codes, n);
  } else {
    const Noise noise(rounding.key, stream, first);
    for_each_vector(n, [&](std::int64_t i) {
      const Floats scaled = load<Floats>(x + i) * scale.lift * scale.reciprocal;
      store_bytes(encode_stochastic<S, keep>(scaled, uniform(noise[i])), codes + i);
    });
  }
}

}  // namespace BNB_ISA
}  // namespace bnb
