// The 8-bit code in lanes: decoding and encoding by arithmetic on the exponent, without looking codes up in memory.
// Bit for bit what codec.h defines, element by element; tests compare them over all codes and around every midpoint.
#pragma once
#include "../storage.h"
#include "lanes.h"

namespace bnb {
inline namespace BNB_ISA {

constexpr int kChunk = 64;  // elements, a multiple of every vector's
constexpr std::int32_t kSignBit = -0x7fffffff - 1;

#if defined(__x86_64__) && BNB_LANES == 16
// The map's 256 floats by their bytes: byte b of the number of a code. A register holds 64 of them, and AVX-512 VBMI
// picks from two by any index, so this map of four registers a byte is no table in memory.
struct BytePlanes {
  alignas(64) std::uint8_t byte[4][256]{};

  constexpr explicit BytePlanes(const std::array<float, 256>& values) {
    for (int code = 0; code < 256; ++code) {
      const std::uint32_t bits = bits_of_normal(values[code]);
      for (int b = 0; b < 4; ++b) byte[b][code] = static_cast<std::uint8_t>(bits >> 8 * b);
    }
  }

  // The bits of zero or a normal number, in C++17 and at compile time.
  static constexpr std::uint32_t bits_of_normal(float x) {
    if (x == 0) return 0;
    std::uint32_t exponent = 127;
    float magnitude = x < 0 ? -x : x;
    for (; magnitude < 1; magnitude *= 2) --exponent;
    for (; magnitude >= 2; magnitude /= 2) ++exponent;
    const std::uint32_t fraction = static_cast<std::uint32_t>((magnitude - 1) * 0x1p23f);
    return (x < 0 ? 0x80000000u : 0) | exponent << 23 | fraction;
  }
};

template <Sign S>
inline constexpr BytePlanes kBytePlanes{kValues<S>};

template <Sign S>
BNB_LANE void decode_by_bytes(const std::uint8_t* codes, float absmax, float* x) {
  // Bytes are put together within quarters of a register: deal them out such that the floats come in order.
  const __m512i deal = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  const __m512i index = _mm512_permutexvar_epi32(deal, _mm512_loadu_si512(codes));
  const __mmask64 upper = _mm512_movepi8_mask(index);
  __m512i byte[4];
  for (int b = 0; b < 4; ++b) {
    const __m512i* const plane = reinterpret_cast<const __m512i*>(kBytePlanes<S>.byte[b]);
    byte[b] = _mm512_mask_blend_epi8(upper, _mm512_permutex2var_epi8(plane[0], index, plane[1]),
                                     _mm512_permutex2var_epi8(plane[2], index, plane[3]));
  }
  const __m512i low[] = {_mm512_unpacklo_epi8(byte[0], byte[1]), _mm512_unpackhi_epi8(byte[0], byte[1])};
  const __m512i high[] = {_mm512_unpacklo_epi8(byte[2], byte[3]), _mm512_unpackhi_epi8(byte[2], byte[3])};
  for (int half = 0; half < 2; ++half) {
    store(reinterpret_cast<Floats>(_mm512_unpacklo_epi16(low[half], high[half])) * absmax, x + 32 * half);
    store(reinterpret_cast<Floats>(_mm512_unpackhi_epi16(low[half], high[half])) * absmax, x + 32 * half + 16);
  }
}
#endif

// [note: decoding]
// Magnitude number x, counted such that decade e begins at n = first * 2^e, lies half-way between the points i = x - n
// and i + 1 of n + 1 points from 0.1 to 1, times 10^(e-6). The points are made from either end (see grid_point): i
// counts from n or from 2n, whichever is nearer, and so does `anchor`. The exponent of x is the decade. The magnitude 1
// is a decade of its own, kDecades.
template <Sign S>
struct Decades {
  Table step;        // between two points
  Table half_power;  // 10^(e-6) / 2

  static constexpr int slot(int e) { return 127 + e + Magnitudes<S>::kShift; }

  constexpr Decades() {
    for (int e = 0; e < kDecades; ++e) {
      step.set(slot(e), (1.0f - 0.1f) / static_cast<float>(Magnitudes<S>::kFirst << e));
      half_power.set(slot(e), static_cast<float>(kPow10[e]) / 2);
    }
    half_power.set(slot(kDecades), 5.0f);  // of 0.1 + 0.1, with steps of 0
  }
};

template <Sign S>
inline constexpr Decades<S> kByExponent{};

// The numbers of magnitudes 0 to kTop.
template <Sign S>
BNB_LANE Floats magnitude_value(Ints m) {
  const Floats x = to_floats(m + Magnitudes<S>::kShift);
  const Ints bits = as_ints(x), slot = bits >> 23;
  const Floats anchor = as_floats((bits + 0x00400000) & 0x7f800000);  // x, rounded to a power of two
  const Floats i = x - anchor, step = kByExponent<S>.step[slot];
  const Floats end = i < 0 ? all(1.0f) : all(0.1f);
  const Floats value = (fused(step, i, end) + fused(step, i + 1.0f, end)) * kByExponent<S>.half_power[slot];
  return m > 0 ? value : Floats{};
}

template <Sign S>
BNB_LANE Floats decode(Ints code) {
  if (S == Sign::kUnsigned) return magnitude_value<S>(code);
  const Ints m = code - 127;
  const Floats value = magnitude_value<S>(m < 0 ? -m : m);
  return as_floats(as_ints(value) | (m & kSignBit));
}

// kChunk codes to numbers times `absmax`.
template <Sign S>
BNB_LANE void decode_chunk(const std::uint8_t* codes, float absmax, float* x) {
#if defined(__x86_64__) && BNB_LANES == 16
  decode_by_bytes<S>(codes, absmax, x);
#else
  for (int i = 0; i < kChunk; i += kLanes) store(decode<S>(load_bytes(codes + i)) * absmax, x + i);
#endif
}

// [note: encoding]
// Within a decade the number of the nearest magnitude is a line in a, rounded; in the lowest decade the line goes
// through the thresholds, that of zero included. The exponent of a tells the decade or the one below; one comparison
// with the threshold between them decides. The line ends in a float from 128 to 512 that has the magnitude's place (its
// number, counted as in decoding) in bits 16 to 23 and a fraction in the bits below: up to 128, which no decade
// crosses, as 128 + place, above as 2 * place. It is off by less than a bit or two of the fraction (static_assert
// below), so where the fraction is 0 or 1, as kSlack has it, the code may be off by one: codec.h settles those, one in
// thirty thousand.
constexpr float kLeast = 0x1p-21f;  // below the first threshold between decades
constexpr std::int32_t kLeastBits = (127 - 21) << 23;
constexpr float kSlack = 0x1p-16f;
constexpr std::uint16_t kDoubtful = 2;  // fractions below

// The slot of a number's decade or of the one below, for numbers from kLeast to 1, is a line once more: in the upper
// half of the number's bits, exponent and the first of the fraction.
constexpr int kSlotFactor = 5, kSlotShift = 11;
constexpr int slot_of(int upper) { return upper * kSlotFactor >> kSlotShift; }

template <Sign S>
struct Lines {
  using M = Magnitudes<S>;
  Table threshold, slope, offset, most;

  static constexpr int slot(int e) { return slot_of((127 - 21) << 7) + e; }
  static constexpr int count(int e) { return M::kFirst << e; }  // of magnitudes, and the decade's first place
  static constexpr int scale(int e) { return count(e) < 128 ? 1 : 2; }
  static constexpr double line(int e, double place) { return count(e) < 128 ? 128 + place : 2 * place; }

  // Places at a = 0 and per unit of a.
  constexpr void set(int e, double at_zero, double per_unit, int last) {
    slope.set(slot(e), static_cast<float>(scale(e) * per_unit));
    offset.set(slot(e), static_cast<float>(line(e, at_zero + 0.5)) + kSlack);
    most.set(slot(e), static_cast<float>(line(e, last + 0.5)));
  }

  constexpr Lines() {
    for (int e = 0; e < kDecades; ++e) {
      const int n = count(e);
      set(e, n * 8.0 / 9.0 - 0.5, n / (0.9 * kPow10[e]), 2 * n - 1);
      threshold.set(slot(e), kThresholds<S>[2 * n - M::kShift]);
    }
    set(kDecades, count(kDecades), 0, count(kDecades));
    const double zero = kThresholds<S>[1], next = S == Sign::kSigned ? 3 * zero : kThresholds<S>[2];
    set(0, M::kShift + 0.5 - zero / (next - zero), 1 / (next - zero), 2 * count(0) - 1);
  }
};

template <Sign S>
inline constexpr Lines<S> kByDecade{};

template <Sign S>
constexpr bool decades_are_found() {
  double power = kLeast;
  for (int biased = 127 - 21; biased <= 127; ++biased, power *= 2)
    for (int fraction = 0; fraction < 128; ++fraction) {
      const double begin = power * (1 + fraction / 128.0), end = power * (1 + (fraction + 1) / 128.0);
      int first = 0, last = 0;  // decades of the numbers in between
      for (int e = 0; e < kDecades; ++e) {
        first += kByDecade<S>.threshold.at(Lines<S>::slot(e)) < begin;
        last += kByDecade<S>.threshold.at(Lines<S>::slot(e)) < end;
      }
      const int e = slot_of(biased << 7 | fraction) - Lines<S>::slot(0);
      if (e > first || e + 1 < last) return false;
      if (biased == 127) break;  // nothing is above 1
    }
  return true;
}
static_assert(decades_are_found<Sign::kSigned>() && decades_are_found<Sign::kUnsigned>());

// Whether every line passes each threshold so near that, rounded, its fraction there is 0 or 1.
template <Sign S>
constexpr bool lines_are_true() {
  using L = Lines<S>;
  for (int e = 0; e < kDecades; ++e) {
    const int n = L::count(e), slot = L::slot(e);
    const double bit = L::scale(e) * 0x1p-16;
    for (int place = e == 0 ? L::M::kShift + 1 : n + 1; place < 2 * n; ++place) {
      const double line = static_cast<double>(kThresholds<S>[place - L::M::kShift]) * kByDecade<S>.slope.at(slot) +
                          static_cast<double>(kByDecade<S>.offset.at(slot)) - L::line(e, place);
      if (line < -bit / 2 || line >= 1.5 * bit) return false;
    }
  }
  return true;
}
static_assert(lines_are_true<Sign::kSigned>() && lines_are_true<Sign::kUnsigned>());
static_assert(kThresholds<Sign::kUnsigned>[1] < kLeast && kLeast < kThresholds<Sign::kUnsigned>[2]);

// The bits of the lines of numbers from 0 to 1, from those numbers' bits: as integers, floats of one sign compare
// alike, and faster. Every step for all vectors before the next, so that they wait side by side.
template <Sign S, bool keep, int count>
BNB_LANE void lines_at(const Ints (&a)[count], Ints (&line)[count]) {
  Ints slot[count];
  for (int v = 0; v < count; ++v) slot[v] = upper_times(at_least(kLeastBits, a[v]), kSlotFactor);
  for (int v = 0; v < count; ++v) slot[v] = slot[v] >> kSlotShift;
  for (int v = 0; v < count; ++v) line[v] = as_ints(kByDecade<S>.threshold[slot[v]]);
  for (int v = 0; v < count; ++v) slot[v] = a[v] > line[v] ? slot[v] + 1 : slot[v];
  for (int v = 0; v < count; ++v) {
    const Floats offset = kByDecade<S>.offset[slot[v]], slope = kByDecade<S>.slope[slot[v]];
    // Kept from zero: what is above it counts as kLeast at least, which has code 1.
    const Floats number = as_floats(keep ? at_least(kLeastBits, a[v]) : a[v]);
    line[v] = as_ints(keep ? (a[v] > 0 ? fused(number, slope, offset) : offset) : fused(number, slope, offset));
  }
  for (int v = 0; v < count; ++v) {
    const Ints most = as_ints(kByDecade<S>.most[slot[v]]);
    line[v] = line[v] < most ? line[v] : most;
  }
}

// The codes of numbers. `doubt` is lessened to below kDoubtful where a code may be off by one. `keep`: a number above 0
// gets another code than zero.
template <Sign S, bool keep>
BNB_LANE Codes encode(const Floats (&x)[kSide], Halves& doubt) {
  Ints a[kSide], bits[kSide], line[kSide];
  for (int v = 0; v < kSide; ++v) bits[v] = as_ints(x[v]);
  for (int v = 0; v < kSide; ++v)
    a[v] = S == Sign::kSigned ? bits[v] & 0x7fffffff : keep ? bits[v] : at_least(0, bits[v]);
  lines_at<S, keep>(a, line);
  for (int v = 0; v < kSide; ++v) doubt = least(doubt, reinterpret_cast<Halves>(line[v]));
  const Codes place = bytes_of<2>(line);
  if (S == Sign::kUnsigned) return place - 1;
  const auto negative = reinterpret_cast<SignedCodes>(bytes_of<3>(bits)) < 0;
  return negative ? 127 - (place < 127 ? place : Codes{} + 127) : 127 + place;
}

// The same by codec.h, an element at a time.
template <Sign S, bool keep>
[[gnu::noinline, gnu::cold]] void encode_by_element(const float* x, std::int64_t n, float reciprocal,
                                                    std::uint8_t* codes) {
  for (std::int64_t i = 0; i < n; ++i) {
    const float element = x[i] * reciprocal;
    codes[i] = encode<S>(element);
    if (keep && element > 0 && codes[i] == kZeroCode<S>) codes[i] = 1;
  }
}

// The codes of kLanes numbers, in the low bytes, rounded as encode_stochastic of codec.h does.
template <Sign S, bool keep>
BNB_LANE Ints encode_stochastic(Floats x, Floats uniform) {
  const Floats a = magnitude(x);
  const Ints bits[]{as_ints(a)};
  Ints line[1];
  lines_at<S, false>(bits, line);
  const Ints nearest = (line[0] >> 16) - 0x4300 - Magnitudes<S>::kShift;  // or its neighbour
  const Ints below = nearest + (a < magnitude_value<S>(nearest));         // true is -1
  const Ints low = below < Magnitudes<S>::kTop - 1 ? below : Ints{} + (Magnitudes<S>::kTop - 1);
  const Floats value = magnitude_value<S>(low), gap = magnitude_value<S>(low + 1) - value;
  const Ints m = low - (uniform * gap < a - value);
  if (S == Sign::kSigned) return 127 + (x < 0 ? (m < 127 ? -m : Ints{} - 127) : m);
  const Ints least = Ints{} + keep;
  return x > 0 ? (m > least ? m : least) : Ints{};
}

}  // namespace BNB_ISA
}  // namespace bnb
