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
// with the threshold between them decides. With kHalfUp added (and, where there is a sign, the zero's code) the line is
// a float from 256 to 512, whose lowest 15 bits are a fraction and the next 8 the code. It is off by less than the last
// bit (static_assert below), so where the fraction is all zeros or all ones the code may be off by one: codec.h settles
// those, one in sixteen thousand.
constexpr int kFractionBits = 15;
constexpr float kHalfUp = 256.5f;
constexpr float kLeast = 0x1p-21f;  // below the first threshold between decades

// As bits of floats: kLeast and -127.
constexpr std::int32_t kLeastBits = (127 - 21) << 23;
constexpr std::uint32_t kMinus127 = 0xc2fe0000;

// The slot of a number's decade or of the one below, for numbers from kLeast to 1, is a line once more: in the upper
// half of the number's bits, exponent and the first of the fraction.
constexpr int kSlotFactor = 5, kSlotShift = 11;
constexpr int slot_of(int upper) { return upper * kSlotFactor >> kSlotShift; }

template <Sign S>
struct Lines {
  Table threshold, slope, offset, most;

  static constexpr float kBase = S == Sign::kUnsigned ? kHalfUp : 0.0f;  // added already
  static constexpr int slot(int e) { return slot_of((127 - 21) << 7) + e; }

  constexpr Lines() {
    using M = Magnitudes<S>;
    for (int e = 0; e < kDecades; ++e) {
      const int n = M::kFirst << e;
      slope.set(slot(e), static_cast<float>(n / (0.9 * kPow10[e])));
      offset.set(slot(e), static_cast<float>(n * 8.0 / 9.0 - M::kShift - 0.5 + kBase));
      most.set(slot(e), 2 * n - 1 - M::kShift + kBase);
      threshold.set(slot(e), kThresholds<S>[2 * n - M::kShift]);
    }
    offset.set(slot(kDecades), M::kTop + kBase);
    most.set(slot(kDecades), M::kTop + kBase);
    const double zero = kThresholds<S>[1], next = S == Sign::kSigned ? 3 * zero : kThresholds<S>[2];
    slope.set(slot(0), static_cast<float>(1 / (next - zero)));
    offset.set(slot(0), static_cast<float>(0.5 - zero / (next - zero) + kBase));
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

// Whether every line passes each threshold near enough: with its rounding (a quarter of the last bit where the sign is
// yet to come, then half of it) less than the last bit off.
template <Sign S>
constexpr bool lines_are_true() {
  constexpr double kBit = 1.0 / (1 << kFractionBits), kMost = S == Sign::kUnsigned ? kBit / 2 : kBit / 4;
  for (int e = 0; e < kDecades; ++e) {
    const int n = Magnitudes<S>::kFirst << e, slot = Lines<S>::slot(e);
    for (int m = e == 0 ? 1 : n - Magnitudes<S>::kShift + 1; m < 2 * n - Magnitudes<S>::kShift; ++m) {
      const double line = static_cast<double>(kThresholds<S>[m]) * kByDecade<S>.slope.at(slot) +
                          static_cast<double>(kByDecade<S>.offset.at(slot) - Lines<S>::kBase) - (m - 0.5);
      if (line > kMost || line < -kMost) return false;
    }
  }
  return true;
}
static_assert(lines_are_true<Sign::kSigned>() && lines_are_true<Sign::kUnsigned>());
static_assert(kThresholds<Sign::kUnsigned>[1] < kLeast && kLeast < kThresholds<Sign::kUnsigned>[2]);

// The bits of the line of a number from 0 to 1, from that number's bits: as integers, floats of one sign compare alike,
// and faster. `in_decades`: the same, at least kLeast.
template <Sign S>
BNB_LANE Ints line_at(Ints a, Ints in_decades) {
  Ints slot = upper_times(in_decades, kSlotFactor) >> kSlotShift;
  slot = a > as_ints(kByDecade<S>.threshold[slot]) ? slot + 1 : slot;
  const Ints line = as_ints(fused(as_floats(a), kByDecade<S>.slope[slot], kByDecade<S>.offset[slot]));
  const Ints most = as_ints(kByDecade<S>.most[slot]);
  return line < most ? line : most;
}

// The codes of kLanes numbers, in the low bytes. `doubt`: 0 in a lane whose code may be off by one, else less than
// before or more. `keep`: a number above 0 gets another code than zero.
template <Sign S, bool keep>
BNB_LANE Ints encode(Floats x, Ints& doubt) {
  Ints line;  // with kHalfUp
  if (S == Sign::kSigned) {
    const Ints a = as_ints(magnitude(x)), line_of_a = line_at<S>(a, at_least(kLeastBits, a));
    const Ints at_least_minus_127 = at_most(kMinus127, signed_as(as_ints(x), line_of_a));  // there is no -1
    line = as_ints(as_floats(at_least_minus_127) + (kHalfUp + kZeroCode<S>));
  } else {
    const Ints a = at_least(keep ? kLeastBits : 0, as_ints(x));  // kLeast has code 1
    line = line_at<S>(a, keep ? a : at_least(kLeastBits, a));
  }
  const Ints fraction = (line + 1) & ((1 << kFractionBits) - 2);
  doubt = fraction < doubt ? fraction : doubt;
  const Ints code = line >> kFractionBits;
  return keep ? (as_ints(x) > 0 ? code : Ints{}) : code;
}

// The same by codec.h, an element at a time.
template <Sign S, bool keep>
[[gnu::noinline, gnu::cold]] void encode_by_element(const float* x, std::int64_t n, Scale scale, std::uint8_t* codes) {
  for (std::int64_t i = 0; i < n; ++i) {
    const float element = x[i] * scale.lift * scale.reciprocal;
    codes[i] = encode<S>(element);
    if (keep && element > 0 && codes[i] == kZeroCode<S>) codes[i] = 1;
  }
}

// The codes of kLanes numbers, rounded as encode_stochastic of codec.h does.
template <Sign S, bool keep>
BNB_LANE Ints encode_stochastic(Floats x, Floats uniform) {
  const Floats a = magnitude(x);
  const Floats line = as_floats(line_at<S>(as_ints(a), at_least(kLeastBits, as_ints(a))));
  const Ints nearest = __builtin_convertvector(line + (0.5f - Lines<S>::kBase), Ints);  // or its neighbour
  const Ints below = nearest + (a < magnitude_value<S>(nearest));                       // true is -1
  const Ints low = below < Magnitudes<S>::kTop - 1 ? below : Ints{} + (Magnitudes<S>::kTop - 1);
  const Floats value = magnitude_value<S>(low), gap = magnitude_value<S>(low + 1) - value;
  const Ints m = low - (uniform * gap < a - value);
  if (S == Sign::kSigned) return 127 + (x < 0 ? (m < 127 ? -m : Ints{} - 127) : m);
  const Ints least = Ints{} + keep;
  return x > 0 ? (m > least ? m : least) : Ints{};
}

}  // namespace BNB_ISA
}  // namespace bnb
