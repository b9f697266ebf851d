// The 8-bit code in lanes: decoding and encoding by arithmetic on the exponent, without looking codes up in memory.
// Bit for bit what codec.h defines, element by element; tests compare them over all codes and around every midpoint.
#pragma once
#include "lanes.h"

namespace bnb {
inline namespace BNB_ISA {

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
  const Ints bits = reinterpret_cast<Ints>(x), slot = bits >> 23;
  const Floats anchor = reinterpret_cast<Floats>((bits + 0x00400000) & 0x7f800000);  // x, rounded to a power of two
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
  return reinterpret_cast<Floats>(reinterpret_cast<Ints>(value) | (m & static_cast<std::int32_t>(0x80000000)));
}

// [note: encoding]
// Within a decade the number of the nearest magnitude is a line in a, rounded. The exponent of a tells the decade or
// the one below; one comparison with the threshold between them decides. The line is off by less than kBand / 2, so a
// lane that comes nearer to a tie than kBand is settled by codec.h: one in two thousand.
constexpr float kBand = 0x1p-12f;
constexpr float kLeast = 0x1p-21f;  // what is smaller is coded as this is, or as 0

// From the biased exponent of a number from kLeast to 1 to the slot of its decade or of the one below: a line once
// more, in sixteenths. `T`: int or Ints.
template <class T>
constexpr T slot_of_exponent(T biased) {
  return biased * 5 >> 4;
}

template <Sign S>
struct Lines {
  Table threshold, slope, offset, last;

  static constexpr int kFirstSlot = slot_of_exponent(127 - 21);

  constexpr Lines() {
    using M = Magnitudes<S>;
    for (int e = 0; e < kDecades; ++e) {
      const int n = M::kFirst << e, slot = kFirstSlot + e;
      slope.set(slot, static_cast<float>(n / (0.9 * kPow10[e])));
      offset.set(slot, static_cast<float>(n * 8.0 / 9.0 - M::kShift - 0.5));
      last.set(slot, static_cast<float>(2 * n - 1 - M::kShift));
      threshold.set(slot, kThresholds<S>[2 * n - M::kShift]);
    }
    offset.set(kFirstSlot + kDecades, M::kTop);
    last.set(kFirstSlot + kDecades, M::kTop);
  }
};

template <Sign S>
inline constexpr Lines<S> kByDecade{};

template <Sign S>
constexpr bool decades_are_found() {
  double power = 1;  // 2^(biased - 127)
  for (int biased = 127; power >= kLeast; --biased, power /= 2) {
    int first = 0, last = 0;  // decades of the numbers in [power, 2 * power)
    for (int e = 0; e < kDecades; ++e) {
      first += kByDecade<S>.threshold.entries[(Lines<S>::kFirstSlot + e) & 7] < power;
      last += kByDecade<S>.threshold.entries[(Lines<S>::kFirstSlot + e) & 7] < 2 * power;
    }
    const int e = slot_of_exponent(biased) - Lines<S>::kFirstSlot;
    if (e > first || e + 1 < last) return false;
  }
  return true;
}
static_assert(decades_are_found<Sign::kSigned>() && decades_are_found<Sign::kUnsigned>());

// The number of the nearest magnitude before it is rounded, for a from kLeast to 1.
template <Sign S>
BNB_LANE Floats position(Floats a) {
  Ints slot = slot_of_exponent(reinterpret_cast<Ints>(a) >> 23);
  slot = a > kByDecade<S>.threshold[slot] ? slot + 1 : slot;
  const Floats line = fused(a, kByDecade<S>.slope[slot], kByDecade<S>.offset[slot]), last = kByDecade<S>.last[slot];
  return line < last ? line : last;
}

// Numbers above `above` get another code than zero. By itself that is the nearest code's threshold; 0 where a positive
// number must not become zero.
template <Sign S>
struct Zero {
  float above = kThresholds<S>[1];
};

// By value, a vector in memory: out of the way of the loop that calls it once in a while.
template <Sign S>
[[gnu::noinline, gnu::cold]] void encode_by_element(Floats x, Zero<S> zero, std::uint8_t* codes) {
  for (int i = 0; i < kLanes; ++i) {
    const float element = x[i];
    codes[i] = encode<S>(element);
    if (zero.above == 0 && element > 0 && codes[i] == kZeroCode<S>) codes[i] = 1;
  }
}

// Stores the codes of kLanes numbers. Which become zero is `zero`'s to say.
template <Sign S>
BNB_LANE void encode(Floats x, Zero<S> zero, std::uint8_t* codes) {
  constexpr float kMagic = 0x1.8p23f + kZeroCode<S>;  // added to y, it leaves the nearest integer in the low bits
  const Floats a = S == Sign::kSigned ? magnitude(x) : x;
  Floats y = position<S>(at_least(kLeast, a));
  y = a > zero.above ? y : Floats{};
  if (S == Sign::kSigned) {
    y = reinterpret_cast<Floats>(reinterpret_cast<Ints>(y) |
                                 (reinterpret_cast<Ints>(x) & static_cast<std::int32_t>(0x80000000)));
    y = at_least(-127.0f, y);  // there is no -1
  }
  const Floats shifted = y + kMagic;
  store_bytes(reinterpret_cast<Ints>(shifted), codes);
  if (any_above(magnitude(y - (shifted - kMagic)), 0.5f - kBand)) encode_by_element<S>(x, zero, codes);
}

// The same for encode_stochastic.
template <Sign S>
BNB_LANE void encode_stochastic(Floats x, Floats uniform, Zero<S> zero, std::uint8_t* codes) {
  const Floats a = magnitude(x);
  const Floats y = a > kThresholds<S>[1] ? position<S>(at_least(kLeast, a)) : Floats{};
  const Ints nearest = __builtin_convertvector(y + 0.5f, Ints);
  const Ints below = nearest + (a < magnitude_value<S>(nearest));  // true is -1
  const Ints low = below < Magnitudes<S>::kTop - 1 ? below : Ints{} + (Magnitudes<S>::kTop - 1);
  const Floats value = magnitude_value<S>(low), gap = magnitude_value<S>(low + 1) - value;
  Ints m = low - (uniform * gap < a - value);
  if (S == Sign::kSigned) {
    m = 127 + (x < 0 ? (m < 127 ? -m : Ints{} - 127) : m);
  } else {
    const Ints least = Ints{} + (zero.above == 0);
    m = x > 0 ? (m > least ? m : least) : Ints{};
  }
  store_bytes(m, codes);
}

}  // namespace BNB_ISA
}  // namespace bnb
