// A block of a parameter or gradient between its own dtype and float32. Rounds to nearest even, as torch does.
// Branch-free per element, so that the loops vectorise on every instruction set and give the same bits on each.
#pragma once
#include <cstdint>
#include <cstring>

#include "../batch.h"

namespace bnb {
inline namespace BNB_ISA {

inline std::uint32_t bits_of(float x) {
  std::uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits;
}

inline float float_of(std::uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}

struct BFloat16 {
  std::uint16_t bits;
  static float widen(BFloat16 x) { return float_of(static_cast<std::uint32_t>(x.bits) << 16); }
  static BFloat16 narrow(float x) {
    const std::uint32_t bits = bits_of(x);
    const std::uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    return {static_cast<std::uint16_t>(x != x ? 0x7fc0 : rounded)};
  }
  static BFloat16 narrow(float x, std::uint32_t random) {
    const std::uint32_t bits = bits_of(x);
    const bool finite = (bits & 0x7f800000) != 0x7f800000;
    const std::uint32_t up = (bits + (random & 0xffff)) >> 16;
    const std::uint32_t largest = (up & 0x7fff) == 0x7f80 ? up - 1 : up;  // chance makes no infinity
    return {static_cast<std::uint16_t>(finite ? largest : narrow(x).bits)};
  }
};

struct Float16 {
  std::uint16_t bits;
  static float widen(Float16 x) {
    const std::uint32_t sign = static_cast<std::uint32_t>(x.bits & 0x8000) << 16;
    const std::uint32_t magnitude = x.bits & 0x7fff;
    const std::uint32_t normal = (magnitude << 13) + (112u << 23);  // re-bias the exponent
    const std::uint32_t special = (magnitude << 13) | 0x7f800000;   // infinity and NaN
    const std::uint32_t subnormal = bits_of(static_cast<float>(static_cast<std::int32_t>(magnitude)) * 0x1p-24f);
    return float_of(sign | (magnitude < 0x400 ? subnormal : magnitude < 0x7c00 ? normal : special));
  }
  static Float16 narrow(float x, std::uint32_t random) {
    const std::uint32_t sign = (bits_of(x) >> 16) & 0x8000;
    const std::uint32_t magnitude = bits_of(x) & 0x7fffffff;
    const std::uint32_t normal = (magnitude - (112u << 23) + (random & 0x1fff)) >> 13;
    const float units = float_of(magnitude) * 0x1p24f + uniform(random);  // of the smallest subnormal
    const std::uint32_t subnormal = static_cast<std::uint32_t>(static_cast<std::int32_t>(units < 1024 ? units : 1024));
    const std::uint32_t largest = normal < 0x7bff ? normal : 0x7bff;  // chance makes no infinity
    const std::uint32_t finite = magnitude < (113u << 23) ? subnormal : largest;
    return {static_cast<std::uint16_t>(magnitude < 0x477ff000 ? sign | finite : narrow(x).bits)};
  }
  static Float16 narrow(float x) {
    const std::uint32_t sign = (bits_of(x) >> 16) & 0x8000;
    const std::uint32_t magnitude = bits_of(x) & 0x7fffffff;
    const std::uint32_t normal = (magnitude - (112u << 23) + 0xfff + ((magnitude >> 13) & 1)) >> 13;
    const std::uint32_t subnormal = bits_of(float_of(magnitude) + 0.5f) - bits_of(0.5f);  // 0.5's last bit is 2^-24
    const std::uint32_t finite = magnitude < (113u << 23) ? subnormal : normal;
    const std::uint32_t special = magnitude > 0x7f800000 ? 0x7e00 : 0x7c00;
    return {
        static_cast<std::uint16_t>(sign | (magnitude < 0x477ff000 ? finite : special))};  // 65520 and above: infinity
  }
};

// float32 and float64 behind the same two names.
template <class T>
struct Native {
  T value;
  static float widen(Native x) { return static_cast<float>(x.value); }
};

template <class T>
void read_as(const void* source, std::int64_t begin, int n, float* x) {
  const T* from = static_cast<const T*>(source) + begin;
  for (int i = 0; i < n; ++i) x[i] = T::widen(from[i]);
}

[[gnu::noinline]] inline void read(DType dtype, const void* source, std::int64_t begin, int n, float* x) {
  switch (dtype) {
    case DType::kFloat32:
      return read_as<Native<float>>(source, begin, n, x);
    case DType::kBFloat16:
      return read_as<BFloat16>(source, begin, n, x);
    case DType::kFloat16:
      return read_as<Float16>(source, begin, n, x);
    case DType::kFloat64:
      return read_as<Native<double>>(source, begin, n, x);
  }
}

template <class T>
void write_as(void* target, std::int64_t begin, int n, const float* x, Rounding rounding) {
  constexpr std::uint32_t kStream = 0xffff;  // apart from the states' streams
  T* to = static_cast<T*>(target) + begin;
  if (rounding.stochastic) {
    for (int i = 0; i < n; ++i) to[i] = T::narrow(x[i], random_bits(rounding.key, kStream, begin + i));
  } else {
    for (int i = 0; i < n; ++i) to[i] = T::narrow(x[i]);
  }
}

// param -= delta, where p holds the block as `read` gave it (p is overwritten). A float64 parameter is not rounded to
// float32.
[[gnu::noinline]] inline void descend(DType dtype, void* param, std::int64_t begin, int n, float* p, const float* delta,
                                      Rounding rounding) {
  if (dtype == DType::kFloat64) {
    double* exact = static_cast<double*>(param) + begin;
    for (int i = 0; i < n; ++i) exact[i] -= static_cast<double>(delta[i]);
    return;
  }
  for (int i = 0; i < n; ++i) p[i] -= delta[i];
  if (dtype == DType::kFloat32)
    std::memcpy(static_cast<float*>(param) + begin, p, sizeof(float) * n);
  else if (dtype == DType::kBFloat16)
    write_as<BFloat16>(param, begin, n, p, rounding);
  else
    write_as<Float16>(param, begin, n, p, rounding);
}

}  // namespace BNB_ISA
}  // namespace bnb
