// A block of a parameter or gradient between its own dtype and float32: loops that vectorise on every instruction set
// and give the same bits on each.
#pragma once
#include "../batch.h"
#include "../floats.h"
#include "noise.h"

namespace bnb {
inline namespace BNB_ISA {

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
