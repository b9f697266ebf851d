// The 8-bit code in a GPU's registers: decoding and encoding by arithmetic, without looking anything up in memory.
// Code for code what codec.h defines; a test compares them on the host, over every float from 0 to 1.
#pragma once
#include "../floats.h"
#include "../storage.h"

namespace bnb {
inline namespace BNB_ISA {

// One of eight numbers by the last three bits of an index: seven selections, for the compiler to keep in registers.
struct Eight {
  float of[8];

  BNB_HD float operator[](std::uint32_t index) const {
    const float a = index & 1 ? of[1] : of[0], b = index & 1 ? of[3] : of[2];
    const float c = index & 1 ? of[5] : of[4], d = index & 1 ? of[7] : of[6];
    const float low = index & 2 ? b : a, high = index & 2 ? d : c;
    return index & 4 ? high : low;
  }
};

// [note: decoding]
// Magnitude number x, counted such that decade e begins at n = first * 2^e, lies half-way between the points i = x - n
// and i + 1 of n + 1 points from 0.1 to 1, times 10^(e-6). The exponent of x is the decade, and the step between two
// points is 0.9 / n. The points are made from either end (see grid_point in codec.h): i counts from n or from 2n,
// whichever is nearer.
template <Sign S>
BNB_HD float magnitude_value(int m) {
  using M = Magnitudes<S>;
  constexpr Eight kHalfPower{{static_cast<float>(kPow10[0]) / 2, static_cast<float>(kPow10[1]) / 2,
                              static_cast<float>(kPow10[2]) / 2, static_cast<float>(kPow10[3]) / 2,
                              static_cast<float>(kPow10[4]) / 2, static_cast<float>(kPow10[5]) / 2,
                              static_cast<float>(kPow10[6]) / 2, 0.0f}};
  const float x = static_cast<float>(m + M::kShift);
  const std::uint32_t bits = bits_of(x);
  const float anchor = float_of((bits + 0x00400000) & 0x7f800000);  // x, rounded to a power of two
  const float step = float_of(bits_of(1.0f - 0.1f) + (127u << 23) - (bits & 0x7f800000));
  const float i = x - anchor, end = i < 0 ? 1.0f : 0.1f;
  const float twice = __builtin_fmaf(step, i, end) + __builtin_fmaf(step, i + 1.0f, end);
  const float value = twice * kHalfPower[(bits >> 23) - (127 + M::kShift)];
  return m == 0 ? 0.0f : m == M::kTop ? 1.0f : value;
}

template <Sign S>
BNB_HD float decode_in_registers(std::uint8_t code) {
  if (S == Sign::kUnsigned) return magnitude_value<S>(code);
  const int m = static_cast<int>(code) - 127;
  const float value = magnitude_value<S>(m < 0 ? -m : m);
  return m < 0 ? -value : value;
}

// [note: encoding]
// Within a decade the number of the nearest magnitude is a line in a, rounded; in the lowest decade the line goes
// through the thresholds, that of zero included. With kHalfUp added, the line is a float from 256 to 512 whose lowest
// 15 bits are a fraction and the next 8 the number. It is off by less than two of the last bits, so where the fraction
// is within two of a whole number, once in eight thousand, the exact threshold decides.
constexpr float kHalfUp = 256.5f;
constexpr int kFractionBits = 15;
constexpr std::uint32_t kDoubt = 2;  // in last bits

template <Sign S>
struct Lines {
  using M = Magnitudes<S>;
  static constexpr float slope(int e) {
    return static_cast<float>(e == 0 ? 1 / (next() - zero()) : (M::kFirst << e) / (0.9 * kPow10[e]));
  }
  static constexpr float kFirstOffset() { return static_cast<float>(0.5 - zero() / (next() - zero()) + kHalfUp); }
  static constexpr float threshold(int e) { return kThresholds<S>[(M::kFirst << e) - M::kShift]; }  // of decade e

 private:
  static constexpr double zero() { return kThresholds<S>[1]; }
  static constexpr double next() { return S == Sign::kSigned ? 3 * zero() : kThresholds<S>[2]; }
};

template <Sign S, int e>
BNB_HD void climb(float a, float& slope, float& n) {
  constexpr float kThreshold = Lines<S>::threshold(e), kSlope = Lines<S>::slope(e);
  constexpr float kNumber = static_cast<float>(Magnitudes<S>::kFirst << e);
  const bool above = a > kThreshold;
  slope = above ? kSlope : slope;
  n = above ? kNumber : n;
}

// The line of a in [0, 1], as bits. NaN gives an arbitrary one.
template <Sign S>
BNB_HD std::uint32_t line_at(float a) {
  using M = Magnitudes<S>;
  constexpr float kSlope = Lines<S>::slope(0), kOffset = Lines<S>::kFirstOffset(), kShift = kHalfUp - M::kShift;
  constexpr float kTop = Lines<S>::threshold(kDecades);
  float slope = kSlope, n = M::kFirst;
  climb<S, 1>(a, slope, n);
  climb<S, 2>(a, slope, n);
  climb<S, 3>(a, slope, n);
  climb<S, 4>(a, slope, n);
  climb<S, 5>(a, slope, n);
  climb<S, 6>(a, slope, n);
  static_assert(kDecades == 7, "a line for every decade");
  const float offset = n == M::kFirst ? kOffset : __builtin_fmaf(n, static_cast<float>(8.0 / 9.0), kShift - 0.5f);
  const float line = __builtin_fmaf(a, slope, offset), most = n + n + (kShift - 1.0f);
  const float bounded = line < most ? line : most;
  return bits_of(a > kTop ? M::kTop + kHalfUp : bounded);
}

BNB_HD int number_on(std::uint32_t line) { return static_cast<int>((line >> kFractionBits) & 0xff); }

BNB_HD bool is_in_doubt(std::uint32_t line) { return ((line + kDoubt) & ((1 << kFractionBits) - 1)) < 2 * kDoubt; }

// The nearest magnitude's number where the line is in doubt.
template <Sign S>
BNB_HD int settled(float a, std::uint32_t line) {
  const int m = number_on(line + kDoubt);  // or one less
  const double sum = static_cast<double>(magnitude_value<S>(m - 1)) + magnitude_value<S>(m);
  return 2 * static_cast<double>(a) > sum ? m : m - 1;
}

template <Sign S>
BNB_HD int nearest_in_registers(float a) {
  const std::uint32_t line = line_at<S>(a);
  return is_in_doubt(line) ? settled<S>(a, line) : number_on(line);
}

// One of the two numbers around a, as encode_stochastic of codec.h chooses.
template <Sign S>
BNB_HD int drawn_in_registers(float a, float uniform) {
  constexpr int kLast = Magnitudes<S>::kTop - 1;
  const int nearest = number_on(line_at<S>(a));  // or, in doubt, its neighbour on the other side of a
  const int below = nearest - (a < magnitude_value<S>(nearest) ? 1 : 0);
  const int low = below < kLast ? below : kLast;
  const float value = magnitude_value<S>(low), gap = magnitude_value<S>(low + 1) - value;
  return low + (uniform * gap < a - value ? 1 : 0);
}

// A second moment above zero that got code 0 would turn its first moment into an update without bound.
template <Sign S>
BNB_HD std::uint8_t kept_code(float x, int magnitude) {
  if (S == Sign::kSigned) return code_of<S>(magnitude, x < 0);
  return x > 0 ? code_of<S>(magnitude > 1 ? magnitude : 1, false) : kZeroCode<S>;
}

}  // namespace BNB_ISA
}  // namespace bnb
