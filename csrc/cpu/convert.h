// A block of a parameter or gradient between its own dtype and float32. Rounds to nearest even, as torch does.
// Branch-free per element, so that the loops vectorise on every instruction set and give the same bits on each.
#pragma once
#include "../batch.h"
#include "noise.h"

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
    const std::uint32_t quiet = magnitude > 0x7c00 ? 0x00400000 : 0;
    const std::uint32_t special = (magnitude << 13) | 0x7f800000 | quiet;  // infinity and NaN
    const std::uint32_t subnormal = bits_of(static_cast<float>(static_cast<std::int32_t>(magnitude)) * 0x1p-24f);
    return float_of(sign | (magnitude < 0x400 ? subnormal : magnitude < 0x7c00 ? normal : special));
  }
  static Float16 narrow(float x, std::uint32_t random) {
    const std::uint32_t sign = (bits_of(x) >> 16) & 0x8000;
    const std::uint32_t magnitude = bits_of(x) & 0x7fffffff;
    const std::uint32_t normal = (magnitude - (112u << 23) + (random & 0x1fff)) >> 13;
    const float share = static_cast<float>(static_cast<std::int32_t>(random >> 8)) * 0x1p-24f;
    const float units = float_of(magnitude) * 0x1p24f + share;  // of the smallest subnormal
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
    const std::uint32_t nan = 0x7e00 | ((magnitude >> 13) & 0x3ff);
    const std::uint32_t special = magnitude > 0x7f800000 ? nan : 0x7c00;
    return {
        static_cast<std::uint16_t>(sign | (magnitude < 0x477ff000 ? finite : special))};  // 65520 and above: infinity
  }
};

#if BNB_LANES > 4 || defined(__aarch64__)
// float16 where the machine converts it, to the same bits.
BNB_LANE Floats widen_halves(const Float16* from) {
#if BNB_LANES == 16
  return reinterpret_cast<Floats>(_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from))));
#elif BNB_LANES == 8
  return reinterpret_cast<Floats>(_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from))));
#else
  return reinterpret_cast<Floats>(vcvt_f32_f16(vreinterpret_f16_u16(load<uint16x4_t>(from))));
#endif
}

BNB_LANE void narrow_halves(Floats x, Float16* to) {
#if BNB_LANES == 16
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm512_cvtps_ph(reinterpret_cast<__m512>(x), 0));
#elif BNB_LANES == 8
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm256_cvtps_ph(reinterpret_cast<__m256>(x), 0));
#else
  store(vreinterpret_u16_f16(vcvt_f16_f32(reinterpret_cast<float32x4_t>(x))), to);
#endif
}
#endif

// float32 and float64 behind the same name.
template <class T>
struct Native {
  T value;
  static float widen(Native x) { return static_cast<float>(x.value); }
};

template <class T>
void read_as(const void* source, int n, float* x) {
  const T* from = static_cast<const T*>(source);
#if BNB_LANES > 4 || defined(__aarch64__)
  if constexpr (std::is_same_v<T, Float16>) {
    if (n == kBlock) {
      for (int i = 0; i < kBlock; i += kLanes) store(widen_halves(from + i), x + i);
      return;
    }
  }
#endif
  if (n == kBlock) {  // a bound that the compiler knows
    for (int i = 0; i < kBlock; ++i) x[i] = T::widen(from[i]);
  } else {
    for (int i = 0; i < n; ++i) x[i] = T::widen(from[i]);
  }
}

constexpr std::int64_t size_of(DType dtype) { return dtype == DType::kFloat64 ? 8 : dtype == DType::kFloat32 ? 4 : 2; }

inline void* at(DType dtype, void* data, std::int64_t index) {
  return static_cast<char*>(data) + size_of(dtype) * index;
}
inline const void* at(DType dtype, const void* data, std::int64_t index) {
  return static_cast<const char*>(data) + size_of(dtype) * index;
}

[[gnu::noinline]] inline void read(DType dtype, const void* source, int n, float* x) {
  switch (dtype) {
    case DType::kFloat32:
      return read_as<Native<float>>(source, n, x);
    case DType::kBFloat16:
      return read_as<BFloat16>(source, n, x);
    case DType::kFloat16:
      return read_as<Float16>(source, n, x);
    case DType::kFloat64:
      return read_as<Native<double>>(source, n, x);
  }
}

template <class T>
void write_as(void* target, int n, const float* x, Rounding rounding, std::int64_t first) {
  constexpr std::uint32_t kStream = 0xffff;  // apart from the states' streams
  T* to = static_cast<T*>(target);
  if (rounding.stochastic) {
    const Noise noise(rounding.key, kStream, first);
    alignas(64) std::uint32_t random[kBlock];
    for (int i = 0; i < kBlock; i += kLanes) store(noise[i], random + i);
    for (int i = 0; i < n; ++i) to[i] = T::narrow(x[i], random[i]);
#if BNB_LANES > 4 || defined(__aarch64__)
  } else if (std::is_same_v<T, Float16> && n == kBlock) {
    for (int i = 0; i < kBlock; i += kLanes) narrow_halves(load<Floats>(x + i), static_cast<Float16*>(target) + i);
#endif
  } else if (n == kBlock) {
    for (int i = 0; i < kBlock; ++i) to[i] = T::narrow(x[i]);
  } else {
    for (int i = 0; i < n; ++i) to[i] = T::narrow(x[i]);
  }
}

// Back into a parameter, whose elements begin at index `first` of their tensor. A float64 parameter is not rounded to
// float32 on the way: for it, `x` is what to add.
[[gnu::noinline]] inline void write(DType dtype, void* target, int n, const float* x, Rounding rounding,
                                    std::int64_t first) {
  switch (dtype) {
    case DType::kFloat32:
      std::memcpy(target, x, sizeof(float) * n);
      return;
    case DType::kBFloat16:
      return write_as<BFloat16>(target, n, x, rounding, first);
    case DType::kFloat16:
      return write_as<Float16>(target, n, x, rounding, first);
    case DType::kFloat64:
      for (int i = 0; i < n; ++i) static_cast<double*>(target)[i] += static_cast<double>(x[i]);
  }
}

}  // namespace BNB_ISA
}  // namespace bnb
