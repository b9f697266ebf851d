// The 8-bit code in a GPU's registers: decoding and encoding by arithmetic on exponents, no memory asked for an
// element. Code for code what codec.h defines; a test compares them, over every float from 0 to 1.
//
// What differs from decade to decade is in tables of 32 numbers, found by the last five bits of some float's exponent,
// so that a warp can keep a table in one register, a number in each lane, and look up by a shuffle (warp.cuh). Hence
// all lanes of a warp must call what takes tables. A table, `E`:
//
//   table[i]      its number i % 32
//   E::any(b)     whether b is true for one of those who call
#pragma once
#include "../floats.h"
#include "../storage.h"

// An array stays in registers only if every index is known when compiling.
#if defined(__CUDACC__)
#define BNB_UNROLL _Pragma("unroll")
#define BNB_ROLL _Pragma("unroll 1")
#else
#define BNB_UNROLL
#define BNB_ROLL
#endif

namespace bnb {
inline namespace BNB_ISA {

template <class E>
struct Lines {
  E up, slope, offset, most;  // see [note: encoding]
};

template <class E>
struct Tables {
  E power;         // see [note: decoding]
  Lines<E> of[2];  // by Sign
};

// A whole table.
struct Numbers {
  float at[32];
  __device__ float operator[](std::uint32_t i) const { return at[i % 32]; }
  __device__ static bool any(bool b) { return b; }
};

constexpr int kBias = 127;         // of a float's exponent
constexpr int kFractionBits = 23;  // below it

constexpr float power_of_two(int exponent) {
  float x = 1;
  for (int i = exponent; i > 0; --i) x *= 2;
  for (int i = exponent; i < 0; ++i) x /= 2;
  return x;
}

// (a & b) ^ c, one instruction on a GPU, whose compiler makes two of it where b and c are constants.
__device__ inline std::uint32_t and_xor(std::uint32_t a, std::uint32_t b, std::uint32_t c) {
#if defined(__CUDA_ARCH__)
  std::uint32_t result;
  asm("lop3.b32 %0, %1, %2, %3, 0x6a;" : "=r"(result) : "r"(a), "r"(b), "r"(c));
  return result;
#else
  return (a & b) ^ c;
#endif
}

// Byte j of a word as a float: in the lowest bits of 2^23, without a conversion.
__device__ inline float byte_above_2_23(std::uint32_t word, int j) {
#if defined(__CUDA_ARCH__)
  return float_of(__byte_perm(word, 0x4b000000, 0x7440 | j));
#else
  return float_of(0x4b000000 | (word >> 8 * j & 0xff));
#endif
}

// x, not below 0 and not above 1; for NaN 0. The GPU's multiplication does it by the way.
__device__ inline float saturated(float x) {
#if defined(__CUDA_ARCH__)
  return __saturatef(x);
#else
  return x > 0 ? (x < 1 ? x : 1.0f) : 0.0f;
#endif
}

// [note: decoding]
// Magnitude number m has place x = m + shift, such that decade e begins at place n = first * 2^e. It lies half-way
// between the points i = x - n and i + 1 of n + 1 points from 0.1 to 1, times 10^(e-6). With x = y * n, y in [1, 2),
// and h = 1/n these are the points at 0.1 + 0.9 (y - 1) and at the same with y + h. They are made from either end (see
// grid_point in codec.h): from y = 2, with 1 for 0.1, where that is nearer. The highest bit of y's fraction, inverted,
// moves y by a half to where either end is 1.5.
// Places come multiplied by a power of two that moves their exponents apart, modulo 32, from those of the other sign.
// A place of 0, signed zero, has exponent 0. Both zeros find a power of 0, and the top, which is no half-way, one that
// makes more than 1 of it, which is cut off.
template <Sign S>
struct Place {
  static constexpr int kLift = S == Sign::kSigned ? 2 : 18;
  static constexpr float kScale = power_of_two(kLift);
  static constexpr int slot(int e) { return (kBias + kLift + e) % 32; }  // e: exponent of the place
  // With a place's exponent inverted but for the highest bit, a float is 1/n divided by kStep.
  static constexpr std::uint32_t kInverted = 0x3f800000;
  static constexpr float kStep = power_of_two(kLift - 1);
};

template <Sign S>
constexpr void put_powers(Numbers& power) {
  using M = Magnitudes<S>;
  int e = M::kShift;  // exponent of a place; below it lies zero, or it is zero's
  for (int decade = 0; decade < kDecades; ++decade, ++e)
    power.at[Place<S>::slot(e)] = static_cast<float>(kPow10[decade]) / 2;
  power.at[Place<S>::slot(e)] = 10;
}

template <Sign S, class E>
__device__ float value_at(float place, const Tables<E>& tables) {
  const std::uint32_t bits = bits_of(place);
  const float i = float_of(and_xor(bits, 0x007fffff, 0x3fc00000)) - 1.5f, h = float_of(~bits & Place<S>::kInverted);
  const float end = i < 0 ? 1.0f : 0.1f, step = 1.0f - 0.1f;
  const float twice = __builtin_fmaf(step, i, end) + __builtin_fmaf(step, __builtin_fmaf(h, Place<S>::kStep, i), end);
  return saturated(twice * tables.power[bits >> kFractionBits]);
}

// Byte j of a word, less `from`, lifted.
template <Sign S>
__device__ float place_of(std::uint32_t word, int j, int from) {
  constexpr float kScale = Place<S>::kScale;
  return __builtin_fmaf(byte_above_2_23(word, j), kScale, -(0x1p23f + static_cast<float>(from)) * kScale);
}

template <Sign S, class E>
__device__ float magnitude_value(int m, const Tables<E>& tables) {
  return value_at<S>(place_of<S>(m, 0, -Magnitudes<S>::kShift), tables);
}

// The number of which byte j of a word is the code.
template <Sign S, class E>
__device__ float decode_in_registers(std::uint32_t word, int j, const Tables<E>& tables) {
  const bool is_signed = S == Sign::kSigned;
  const float place = place_of<S>(word, j, is_signed ? kZeroCode<S> : -Magnitudes<S>::kShift);
  const float magnitude = value_at<S>(place, tables);
  return is_signed ? float_of(bits_of(magnitude) | (bits_of(place) & 0x80000000)) : magnitude;
}

// [note: encoding]
// Within a decade the number of the magnitude nearest to a is a line in a, rounded, and at most the decade's last; in
// the lowest decade the line goes through the thresholds, that of zero included. The exponent of a + kLeast tells the
// decade of a or the one below. If a threshold between decades has that exponent, `up` is what takes the first float
// above it to the next exponent: that of a + up tells the decade. The top is one more, of one number.
// The line ends in a float from 256 to 512 whose lowest 15 bits are a fraction and the next 8 the number. It is off by
// less than two of the last bits, so where the fraction is within two of a half, once in eight thousand, the exact
// threshold decides.
constexpr float kHigh = 256;
constexpr int kLeastExponent = -29;  // so small that no threshold is nearer to the next power of two
constexpr float kLeast = power_of_two(kLeastExponent);
constexpr int kPartBits = 15;
constexpr std::uint32_t kHalf = 1u << (kPartBits - 1), kDoubt = 2;  // in last bits

template <Sign S>
struct Decades {
  using M = Magnitudes<S>;

  // What a number must exceed to be of decade e, or the top.
  static constexpr float threshold(int e) { return kThresholds<S>[e < kDecades ? first(e) : M::kTop]; }
  static constexpr float slope(int e) {
    if (e == kDecades) return 0;
    return static_cast<float>(e == 0 ? 1 / (next() - zero()) : (M::kFirst << e) / (0.9 * kPow10[e]));
  }
  static constexpr float offset(int e) {
    if (e == kDecades) return most(e);
    if (e == 0) return static_cast<float>(0.5 - zero() / (next() - zero()) + kHigh);
    return static_cast<float>((M::kFirst << e) * (8.0 / 9.0) - 0.5 - M::kShift + kHigh);
  }
  static constexpr float most(int e) { return (e < kDecades ? first(e + 1) - 1 : M::kTop) + kHigh; }

 private:
  static constexpr int first(int e) { return (M::kFirst << e) - M::kShift; }
  static constexpr double zero() { return kThresholds<S>[1]; }
  static constexpr double next() { return S == Sign::kSigned ? 3 * zero() : kThresholds<S>[2]; }
};

// The numbers of an exponent are those from `low` to below `high`.
template <Sign S>
constexpr Lines<Numbers> make_lines() {
  Lines<Numbers> lines{};
  int e = 0;
  for (int exponent = kLeastExponent; exponent <= 0; ++exponent) {
    const int slot = (kBias + exponent) % 32;
    const float low = power_of_two(exponent), high = 2 * low - kLeast;
    lines.slope.at[slot] = Decades<S>::slope(e);
    lines.offset.at[slot] = Decades<S>::offset(e);
    lines.most.at[slot] = Decades<S>::most(e);
    lines.up.at[slot] = kLeast;
    if (e < kDecades && Decades<S>::threshold(e + 1) < high) {
      ++e;
      const float above = Decades<S>::threshold(e) + low * power_of_two(-kFractionBits);
      lines.up.at[slot] = 2 * low - above;
    }
  }
  return lines;
}

constexpr Tables<Numbers> make_tables() {
  Tables<Numbers> tables{};
  put_powers<Sign::kSigned>(tables.power);
  put_powers<Sign::kUnsigned>(tables.power);
  tables.of[static_cast<int>(Sign::kUnsigned)] = make_lines<Sign::kUnsigned>();
  tables.of[static_cast<int>(Sign::kSigned)] = make_lines<Sign::kSigned>();
  return tables;
}

__device__ const Tables<Numbers> kTables = make_tables();

// The line at a in [0, 1], as bits. NaN gives an arbitrary one.
template <Sign S, class E>
__device__ std::uint32_t line_at(float a, const Tables<E>& tables) {
  const Lines<E>& lines = tables.of[static_cast<int>(S)];
  const float up = lines.up[bits_of(a + kLeast) >> kFractionBits];
  const std::uint32_t slot = bits_of(a + up) >> kFractionBits;
  const std::uint32_t line = bits_of(__builtin_fmaf(a, lines.slope[slot], lines.offset[slot]));
  const std::uint32_t most = bits_of(lines.most[slot]);
  return line < most ? line : most;
}

__device__ inline int number_on(std::uint32_t line) { return static_cast<int>(((line + kHalf) >> kPartBits) & 0xff); }

// The line where it is a whole number.
__device__ inline std::uint32_t line_of(int number) { return bits_of(kHigh) + (number << kPartBits); }

// Small if the line is near a half.
__device__ inline std::uint32_t doubt_of(std::uint32_t line) {
  constexpr int kAbove = 32 - kPartBits;
  return line * (1u << kAbove) + ((kHalf + kDoubt) << kAbove);
}

__device__ inline bool is_in_doubt(std::uint32_t doubt) { return doubt < (2 * kDoubt) << (32 - kPartBits); }

template <Sign S>
__device__ const auto kExactThresholds = make_thresholds<S>();

// Where the line is in doubt, that of the nearest magnitude's number.
template <Sign S>
__device__ std::uint32_t settled(float a, std::uint32_t line) {
  if (!is_in_doubt(doubt_of(line))) return line;
  const int m = number_on(line + kDoubt);  // or one less
  return line_of(a > kExactThresholds<S>[m] ? m : m - 1);
}

// The lines where they are those of the nearest magnitudes. Few are in doubt.
template <Sign S, int count, class E>
__device__ void nearest(const float* a, std::uint32_t* line, const Tables<E>& tables) {
  std::uint32_t least = ~0u;
  BNB_UNROLL
  for (int j = 0; j < count; ++j) {
    line[j] = line_at<S>(a[j], tables);
    const std::uint32_t doubt = doubt_of(line[j]);
    least = doubt < least ? doubt : least;
  }
  if (!E::any(is_in_doubt(least))) return;
  BNB_UNROLL
  for (int j = 0; j < count; ++j) line[j] = settled<S>(a[j], line[j]);
}

// One of the two numbers around a, as encode_stochastic of codec.h chooses; as a line.
template <Sign S, class E>
__device__ std::uint32_t drawn(float a, float uniform, const Tables<E>& tables) {
  constexpr int kLast = Magnitudes<S>::kTop - 1;
  const int nearest = number_on(line_at<S>(a, tables));  // or, in doubt, its neighbour on the other side of a
  const int below = nearest - (a < magnitude_value<S>(nearest, tables) ? 1 : 0);
  const int low = below < kLast ? below : kLast;
  const float value = magnitude_value<S>(low, tables), gap = magnitude_value<S>(low + 1, tables) - value;
  return line_of(low + (uniform * gap < a - value ? 1 : 0));
}

// x in [-1, 1] as what is encoded: for an unsigned code, what is not above zero is zero.
template <Sign S>
__device__ float encodable(float x) {
  return S == Sign::kSigned ? x : saturated(x);
}

// How an unsigned number above zero is encoded that is nearest to zero. A second moment with code 0 would turn its
// first moment into an update without bound.
enum class Tiny { kToZero, kKept };

// The code of x, of which the line is known; the lowest may come out as a number below zero (see as_byte). The bits of
// a whole number of the smallest floats are that number.
template <Sign S, Tiny tiny>
__device__ std::int32_t code_on(std::uint32_t line, float x) {
  constexpr float kOne = 0x1p-149f;
  if (S == Sign::kSigned) {
    const float number = float_of(bits_of(float_of(line) - kHigh) | (bits_of(x) & 0x80000000));
    return static_cast<std::int32_t>(bits_of(__builtin_fmaf(number, kOne, kZeroCode<S> * kOne)));
  }
  const std::int32_t number = static_cast<std::int32_t>(bits_of(__builtin_fmaf(float_of(line), kOne, -kHigh * kOne)));
  const std::int32_t bits = static_cast<std::int32_t>(bits_of(x)), least = bits < 1 ? bits : 1;
  return tiny == Tiny::kKept && number < least ? least : number;
}

__device__ inline std::uint8_t as_byte(std::int32_t code) { return static_cast<std::uint8_t>(code < 0 ? 0 : code); }

// Four of them in a word, the first one lowest.
__device__ inline std::uint32_t as_bytes(const std::int32_t* code) {
#if defined(__CUDA_ARCH__)
  std::uint32_t word = 0;
  asm("cvt.pack.sat.u8.s32.b32 %0, %1, %2, %0;" : "+r"(word) : "r"(code[3]), "r"(code[2]));
  asm("cvt.pack.sat.u8.s32.b32 %0, %1, %2, %0;" : "+r"(word) : "r"(code[1]), "r"(code[0]));
  return word;
#else
  std::uint32_t word = 0;
  for (int j = 0; j < 4; ++j) word |= static_cast<std::uint32_t>(as_byte(code[j])) << 8 * j;
  return word;
#endif
}

}  // namespace BNB_ISA
}  // namespace bnb
