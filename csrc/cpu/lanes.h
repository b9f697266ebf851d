// One vector of an instruction set, in the compiler's vector types, and the few operations that these lack.
// BNB_LANES (16, 8 or 4) chooses the width; the same code over it gives the same bits on every width.
#pragma once
#include <cstdint>
#include <cstring>

#include "../codec.h"

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace bnb {
inline namespace BNB_ISA {

// The compiler must not call what is a few instructions, or it loads the constants again for every vector.
#define BNB_LANE [[gnu::always_inline]] inline

constexpr int kLanes = BNB_LANES;

typedef float Floats __attribute__((vector_size(4 * BNB_LANES)));
typedef std::int32_t Ints __attribute__((vector_size(4 * BNB_LANES)));
typedef std::uint32_t Words __attribute__((vector_size(4 * BNB_LANES)));
typedef std::uint8_t Bytes __attribute__((vector_size(BNB_LANES)));
typedef std::uint16_t Halves __attribute__((vector_size(4 * BNB_LANES)));

// Vectors that are worked on side by side: their bytes, one of each lane, fill a vector.
constexpr int kSide = 4;
typedef std::uint8_t Codes __attribute__((vector_size(4 * BNB_LANES)));
typedef std::int8_t SignedCodes __attribute__((vector_size(4 * BNB_LANES)));

template <class V, class T>
BNB_LANE V load(const T* from) {
  V v;
  std::memcpy(&v, from, sizeof v);
  return v;
}

template <class V, class T>
BNB_LANE void store(const V& v, T* to) {
  std::memcpy(to, &v, sizeof v);
}

BNB_LANE Floats all(float x) { return x - Floats{}; }
BNB_LANE Ints as_ints(Floats x) { return reinterpret_cast<Ints>(x); }
BNB_LANE Floats as_floats(Ints x) { return reinterpret_cast<Floats>(x); }
BNB_LANE Floats magnitude(Floats x) { return as_floats(as_ints(x) & 0x7fffffff); }
BNB_LANE Floats to_floats(Ints x) { return __builtin_convertvector(x, Floats); }

// The next kLanes bytes.
BNB_LANE Ints load_bytes(const std::uint8_t* from) {
#if defined(__x86_64__) && BNB_LANES == 16
  return reinterpret_cast<Ints>(_mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from))));
#elif defined(__x86_64__) && BNB_LANES == 8
  return reinterpret_cast<Ints>(_mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from))));
#else
  return __builtin_convertvector(load<Bytes>(from), Ints);
#endif
}

// a * b + c, rounded once.
BNB_LANE Floats fused(Floats a, Floats b, Floats c) {
#if defined(__x86_64__) && BNB_LANES == 16
  return reinterpret_cast<Floats>(
      _mm512_fmadd_ps(reinterpret_cast<__m512>(a), reinterpret_cast<__m512>(b), reinterpret_cast<__m512>(c)));
#elif defined(__x86_64__) && BNB_LANES == 8
  return reinterpret_cast<Floats>(
      _mm256_fmadd_ps(reinterpret_cast<__m256>(a), reinterpret_cast<__m256>(b), reinterpret_cast<__m256>(c)));
#elif defined(__aarch64__)
  return reinterpret_cast<Floats>(
      vfmaq_f32(reinterpret_cast<float32x4_t>(c), reinterpret_cast<float32x4_t>(a), reinterpret_cast<float32x4_t>(b)));
#else
  // Rounded twice, and never seen: no code's number lies so near a tie, and where an encoder's line does it is in
  // doubt.
  for (int i = 0; i < kLanes; ++i) a[i] = static_cast<float>(static_cast<double>(a[i]) * b[i] + c[i]);
  return a;
#endif
}

BNB_LANE Ints at_least(std::int32_t bound, Ints x) {
#if defined(__x86_64__) && BNB_LANES == 16
  return reinterpret_cast<Ints>(_mm512_max_epi32(reinterpret_cast<__m512i>(x), _mm512_set1_epi32(bound)));
#elif defined(__x86_64__) && BNB_LANES == 8
  return reinterpret_cast<Ints>(_mm256_max_epi32(reinterpret_cast<__m256i>(x), _mm256_set1_epi32(bound)));
#else
  return x > bound ? x : Ints{} + bound;
#endif
}

BNB_LANE Halves least(Halves a, Halves b) { return a < b ? a : b; }

// The upper half of every lane, which is not negative, times `factor`.
BNB_LANE Ints upper_times(Ints x, std::int16_t factor) {
#if defined(__x86_64__) && BNB_LANES == 16
  return reinterpret_cast<Ints>(_mm512_madd_epi16(reinterpret_cast<__m512i>(x), _mm512_set1_epi32(factor << 16)));
#elif defined(__x86_64__) && BNB_LANES == 8
  return reinterpret_cast<Ints>(_mm256_madd_epi16(reinterpret_cast<__m256i>(x), _mm256_set1_epi32(factor << 16)));
#else
  return (x >> 16) * factor;
#endif
}

// Eight numbers that a lane picks from by the last three bits of its index.
struct Table {
  alignas(64) float entries[kLanes > 8 ? kLanes : 8]{};

  constexpr float at(int index) const { return entries[index & 7]; }

  constexpr void set(int index, float x) {
    for (int i = index & 7; i < static_cast<int>(sizeof entries / sizeof x); i += 8) entries[i] = x;
  }

  BNB_LANE Floats operator[](Ints index) const {
#if defined(__x86_64__) && BNB_LANES == 16
    return reinterpret_cast<Floats>(_mm512_permutexvar_ps(reinterpret_cast<__m512i>(index), _mm512_load_ps(entries)));
#elif defined(__x86_64__) && BNB_LANES == 8
    return reinterpret_cast<Floats>(
        _mm256_permutevar8x32_ps(_mm256_load_ps(entries), reinterpret_cast<__m256i>(index)));
#elif defined(__aarch64__)
    const Ints bytes = (index & 7) * 0x04040404 + 0x03020100;
    const uint8x16x2_t table = vld1q_u8_x2(reinterpret_cast<const std::uint8_t*>(entries));
    return reinterpret_cast<Floats>(vqtbl2q_u8(table, reinterpret_cast<uint8x16_t>(bytes)));
#else
    Floats picked;
    for (int i = 0; i < kLanes; ++i) picked[i] = entries[index[i] & 7];
    return picked;
#endif
  }
};

BNB_LANE std::int32_t largest(Ints x) {
#if defined(__x86_64__) && BNB_LANES == 16
  return _mm512_reduce_max_epi32(reinterpret_cast<__m512i>(x));
#elif defined(__x86_64__) && BNB_LANES == 8
  __m128i most = _mm_max_epi32(_mm256_castsi256_si128(reinterpret_cast<__m256i>(x)),
                               _mm256_extracti128_si256(reinterpret_cast<__m256i>(x), 1));
  most = _mm_max_epi32(most, _mm_shuffle_epi32(most, 0x4e));
  return _mm_cvtsi128_si32(_mm_max_epi32(most, _mm_shuffle_epi32(most, 0xb1)));
#elif defined(__aarch64__)
  return vmaxvq_s32(reinterpret_cast<int32x4_t>(x));
#else
  std::int32_t most = x[0];
  for (int i = 1; i < kLanes; ++i) most = x[i] > most ? x[i] : most;
  return most;
#endif
}

BNB_LANE bool any_below(std::uint16_t bound, Halves x) {
#if defined(__x86_64__) && BNB_LANES == 16
  return _mm512_cmplt_epu16_mask(reinterpret_cast<__m512i>(x), _mm512_set1_epi16(bound)) != 0;
#elif defined(__x86_64__) && BNB_LANES == 8
  const __m256i halves = reinterpret_cast<__m256i>(x);
  return _mm256_movemask_epi8(_mm256_cmpeq_epi16(_mm256_min_epu16(halves, _mm256_set1_epi16(bound - 1)), halves)) != 0;
#elif defined(__aarch64__)
  return vminvq_u16(reinterpret_cast<uint16x8_t>(x)) < bound;
#else
  bool any = false;
  for (int i = 0; i < 2 * kLanes; ++i) any |= x[i] < bound;
  return any;
#endif
}

// The lowest byte of every lane.
BNB_LANE void store_bytes(Ints x, std::uint8_t* to) {
#if defined(__x86_64__) && BNB_LANES == 16
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm512_cvtepi32_epi8(reinterpret_cast<__m512i>(x)));
#elif defined(__x86_64__) && BNB_LANES == 8
  const __m256i first = _mm256_set1_epi32(0x0c080400);  // of every four, in each half
  const __m256i packed = _mm256_shuffle_epi8(reinterpret_cast<__m256i>(x), first);
  const __m128i both = _mm_unpacklo_epi32(_mm256_castsi256_si128(packed), _mm256_extracti128_si256(packed, 1));
  _mm_storel_epi64(reinterpret_cast<__m128i*>(to), both);
#else
  store(__builtin_convertvector(x, Bytes), to);
#endif
}

// Byte `byte`, counted from the lowest, of every lane.
template <int byte>
BNB_LANE Codes bytes_of(const Ints (&x)[kSide]) {
#if defined(__x86_64__) && BNB_LANES == 16
  const __m512i pick =
      _mm512_add_epi8(_mm512_set_epi64(0x7c7874706c686460, 0x5c5854504c484440, 0x3c3834302c282420, 0x1c1814100c080400,
                                       0x7c7874706c686460, 0x5c5854504c484440, 0x3c3834302c282420, 0x1c1814100c080400),
                      _mm512_set1_epi8(byte));
  const __m512i first =
      _mm512_permutex2var_epi8(reinterpret_cast<__m512i>(x[0]), pick, reinterpret_cast<__m512i>(x[1]));
  const __m512i last = _mm512_permutex2var_epi8(reinterpret_cast<__m512i>(x[2]), pick, reinterpret_cast<__m512i>(x[3]));
  return reinterpret_cast<Codes>(_mm512_mask_blend_epi64(0xf0, first, last));
#elif defined(__x86_64__) && BNB_LANES == 8
  const __m256i pick = _mm256_set1_epi32(0x0c080400 + 0x01010101 * byte);  // of every four, in each half
  __m256i four[kSide];
  for (int v = 0; v < kSide; ++v) four[v] = _mm256_shuffle_epi8(reinterpret_cast<__m256i>(x[v]), pick);
  const __m256i first = _mm256_blend_epi32(four[0], four[1], 0xaa), last = _mm256_blend_epi32(four[2], four[3], 0xaa);
  const __m256i all = _mm256_blend_epi32(first, last, 0xcc);
  return reinterpret_cast<Codes>(_mm256_permutevar8x32_epi32(all, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7)));
#elif defined(__aarch64__)
  const uint8x16_t pick =
      vaddq_u8(reinterpret_cast<uint8x16_t>(Words{0x0c080400, 0x1c181410, 0x2c282420, 0x3c383430}), vdupq_n_u8(byte));
  const uint8x16x4_t bytes{reinterpret_cast<uint8x16_t>(x[0]), reinterpret_cast<uint8x16_t>(x[1]),
                           reinterpret_cast<uint8x16_t>(x[2]), reinterpret_cast<uint8x16_t>(x[3])};
  return reinterpret_cast<Codes>(vqtbl4q_u8(bytes, pick));
#else
  Codes bytes;
  for (int v = 0; v < kSide; ++v)
    store(__builtin_convertvector(x[v] >> 8 * byte, Bytes), reinterpret_cast<std::uint8_t*>(&bytes) + v * kLanes);
  return bytes;
#endif
}

}  // namespace BNB_ISA
}  // namespace bnb
