// The 8-bit code: 256 numbers in [-1, 1] (signed) or [0, 1] (unsigned), dense near zero, and the nearest-code encoder.
// Block-wise dynamic quantisation, Dettmers et al. 2021, https://arxiv.org/abs/2110.02861
// Pure arithmetic on floats: knows neither torch nor CUDA, neither tensors nor blocks.
#pragma once
#include <array>
#include <cstdint>

#if defined(__CUDACC__)
#define BNB_HD __host__ __device__ __forceinline__
#else
#define BNB_HD inline
#endif

// Objects built for different instruction sets must not share inline symbols, or the linker keeps an arbitrary one.
#ifndef BNB_ISA
#define BNB_ISA portable
#endif

namespace bnb {
inline namespace BNB_ISA {

enum class Sign { kUnsigned, kSigned };

constexpr int kBlock = 256;  // elements that share one absmax in an optimizer state
constexpr int kDecades = 7;  // powers of ten that the map spans: 1e-6 .. 1

// [note: magnitudes]
// A map is symmetric but for its ends, so it is stored as magnitudes v[0] = 0 < v[1] < ... < v[top] = 1.
//   signed    code = 127 + m for x >= 0 (m in 0..128), 127 - m for x < 0 (m in 0..127): there is no -1
//   unsigned  code = m (m in 0..255)
// Decade e holds n = first * 2^e magnitudes, evenly spaced in 10^(e-6) * [0.1, 1], starting at index n (signed: first =
// 1) or n - 1 (unsigned: first = 2).
template <Sign S>
struct Magnitudes {
  static constexpr int kFirst = S == Sign::kSigned ? 1 : 2;  // magnitudes in decade 0
  static constexpr int kShift = S == Sign::kSigned ? 0 : 1;  // decade e starts at n - kShift
  static constexpr int kTop = S == Sign::kSigned ? 128 : 255;
};

constexpr double kPow10[kDecades] = {1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0};

// Point i of n + 1 from 0.1 to 1, rounded as torch.linspace rounds in float32 with fused multiply-add: the published
// maps were made with it, so the last bit of 256 constants depends on it. The double product is exact, hence the cast
// is the FMA.
constexpr float grid_point(int i, int n) {
  const float step = (1.0f - 0.1f) / static_cast<float>(n);
  return i < (n + 1) / 2 ? static_cast<float>(static_cast<double>(0.1f) + static_cast<double>(step) * i)
                         : static_cast<float>(1.0 - static_cast<double>(step) * (n - i));
}

template <Sign S>
constexpr std::array<float, Magnitudes<S>::kTop + 1> make_magnitudes() {
  using M = Magnitudes<S>;
  std::array<float, M::kTop + 1> v{};
  for (int e = 0; e < kDecades; ++e) {
    const int n = M::kFirst << e;
    for (int i = 0; i < n; ++i) {
      const float middle = (grid_point(i, n) + grid_point(i + 1, n)) / 2.0f;
      v[n - M::kShift + i] = static_cast<float>(kPow10[e]) * middle;
    }
  }
  v[M::kTop] = 1.0f;
  return v;
}

// The largest float that is not above x >= 0.
constexpr float round_down(double x) {
  float f = static_cast<float>(x);
  if (static_cast<double>(f) <= x) return f;
  // Step to the neighbour below by bisection between f/2 and f: std::nextafter is not constexpr in C++17.
  float low = f / 2;
  for (int i = 0; i < 60; ++i) {
    const float mid = static_cast<float>((static_cast<double>(low) + f) / 2);
    if (static_cast<double>(mid) <= x)
      low = mid;
    else
      f = mid;
  }
  return low;
}

// threshold[m]: a magnitude above it is nearer to v[m] than to v[m - 1]; a tie stays at m - 1, towards zero.
// threshold[0] unused.
template <Sign S>
constexpr std::array<float, Magnitudes<S>::kTop + 1> make_thresholds() {
  constexpr auto v = make_magnitudes<S>();
  std::array<float, Magnitudes<S>::kTop + 1> t{};
  for (int m = 1; m <= Magnitudes<S>::kTop; ++m) t[m] = round_down((static_cast<double>(v[m - 1]) + v[m]) / 2);
  return t;
}

template <Sign S>
constexpr std::array<float, 256> make_values() {
  constexpr auto v = make_magnitudes<S>();
  std::array<float, 256> values{};
  for (int code = 0; code < 256; ++code)
    values[code] = S == Sign::kUnsigned ? v[code] : code < 127 ? -v[127 - code] : v[code - 127];
  return values;
}

template <Sign S>
inline constexpr auto kValues = make_values<S>();  // code -> number, sorted
template <Sign S>
inline constexpr auto kMagnitudes = make_magnitudes<S>();
template <Sign S>
inline constexpr auto kThresholds = make_thresholds<S>();

template <Sign S>
constexpr std::uint8_t kZeroCode = S == Sign::kSigned ? 127 : 0;

template <Sign S>
BNB_HD float decode(std::uint8_t code) {
  return kValues<S>[code];
}

// Index of the magnitude nearest to a in [0, 1], ties towards zero. NaN gives an arbitrary one; the block's absmax
// carries the NaN. No branch and one table look-up, so that a loop over it vectorises: comparisons find the decade, a
// line gives the index or one less (the quarter absorbs all rounding), one exact threshold decides between the two.
template <Sign S>
BNB_HD int nearest_magnitude(float a) {
  using M = Magnitudes<S>;
  float n = M::kFirst;  // magnitudes in the decade of a
  float slope = static_cast<float>(M::kFirst / 0.9e-6);
  for (int e = 1; e < kDecades; ++e) {
    const bool above = a > kThresholds<S>[(M::kFirst << e) - M::kShift];
    n = above ? static_cast<float>(M::kFirst << e) : n;
    slope = above ? static_cast<float>((M::kFirst << e) / (0.9 * kPow10[e])) : slope;
  }
  const float line = a * slope + n * static_cast<float>(8.0 / 9.0) - (M::kShift + 0.25f);
  const float last = n + n - (M::kShift + 0.5f);
  const int below = static_cast<int>(line < last ? line : last);  // the comparison turns NaN into `last`
  return below + (a > kThresholds<S>[below + 1] ? 1 : 0);
}

template <Sign S>
BNB_HD std::uint8_t code_of(int magnitude, bool negative) {
  if (S == Sign::kUnsigned) return static_cast<std::uint8_t>(negative ? 0 : magnitude);
  return static_cast<std::uint8_t>(127 + (negative ? -(magnitude < 127 ? magnitude : 127) : magnitude));
}

// The nearest code of x in [-1, 1] (unsigned: [0, 1]).
template <Sign S>
BNB_HD std::uint8_t encode(float x) {
  return code_of<S>(nearest_magnitude<S>(__builtin_fabsf(x)), x < 0);
}

// One of the two codes around x, the upper one with the probability of x's place between them: x is the mean. `uniform`
// is in [0, 1). A number that has a code gets it.
template <Sign S>
BNB_HD std::uint8_t encode_stochastic(float x, float uniform) {
  constexpr int kLast = Magnitudes<S>::kTop - 1;
  const float a = __builtin_fabsf(x);
  const int nearest = nearest_magnitude<S>(a);
  const int below = nearest - (a < kMagnitudes<S>[nearest] ? 1 : 0);
  const int low = below < kLast ? below : kLast;
  const float gap = kMagnitudes<S>[low + 1] - kMagnitudes<S>[low];
  return code_of<S>(low + (uniform * gap < a - kMagnitudes<S>[low] ? 1 : 0), x < 0);
}

}  // namespace BNB_ISA
}  // namespace bnb
