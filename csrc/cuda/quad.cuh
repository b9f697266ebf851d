// Four neighbouring elements between memory and registers, in whatever dtype they lie: one access where the tensor is
// aligned for it and all four exist, else one by one. It must not know what they are for.
#pragma once
#include "../batch.h"
#include "../random.h"
#include "code.cuh"

namespace bnb {
inline namespace BNB_ISA {

constexpr int kQuad = 4;

template <class T>
struct alignas(kQuad * sizeof(T)) Four {
  T of[kQuad];
};

// Elements [first, first + count) of a tensor; a block's last quads may be short or empty.
struct Quad {
  std::int64_t first;
  int count;
  bool aligned;         // to kQuad elements, for certain
  std::int64_t origin;  // index of the block's first element in the whole tensor, of which this one may be a part
  int offset;           // of the first one within the block
};

template <class T>
__device__ bool in_one_piece(const T* tensor, Quad quad) {
  const bool aligned = quad.aligned || reinterpret_cast<std::uintptr_t>(tensor + quad.first) % sizeof(Four<T>) == 0;
  return aligned && quad.count == kQuad;
}

template <class T>
__device__ Four<T> load(const T* tensor, Quad quad, T beyond) {
  if (in_one_piece(tensor, quad)) return *reinterpret_cast<const Four<T>*>(tensor + quad.first);
  Four<T> four;
  BNB_UNROLL
  for (int j = 0; j < kQuad; ++j) four.of[j] = j < quad.count ? tensor[quad.first + j] : beyond;
  return four;
}

template <class T>
__device__ void store(const Four<T>& four, T* tensor, Quad quad) {
  if (in_one_piece(tensor, quad)) {
    *reinterpret_cast<Four<T>*>(tensor + quad.first) = four;
    return;
  }
  BNB_UNROLL
  for (int j = 0; j < kQuad; ++j)
    if (j < quad.count) tensor[quad.first + j] = four.of[j];
}

// float32 behind the same names as the 16-bit floats.
struct Float32 {
  float value;
  static __device__ float widen(Float32 x) { return x.value; }
  static __device__ Float32 narrow(float x) { return {x}; }
  static __device__ Float32 narrow(float x, std::uint32_t) { return {x}; }
};

#if __CUDA_ARCH__ >= 800  // which has an instruction for two
template <class T>
__device__ std::uint32_t narrow_two(float low, float high) {
  std::uint32_t two;
  if constexpr (std::is_same_v<T, BFloat16>)
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(two) : "f"(high), "f"(low));
  else
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(two) : "f"(high), "f"(low));
  return two;
}
#endif

template <class T>
__device__ Four<T> narrow(const float* x) {
#if __CUDA_ARCH__ >= 800
  if constexpr (sizeof(T) == 2) {
    const std::uint32_t words[] = {narrow_two<T>(x[0], x[1]), narrow_two<T>(x[2], x[3])};
    Four<T> four;
    std::memcpy(&four, words, sizeof four);
    return four;
  } else
#endif
    return {{T::narrow(x[0]), T::narrow(x[1]), T::narrow(x[2]), T::narrow(x[3])}};
}

// A quad as it lies in memory, or in float32 if that is float64.
struct Raw {
  std::uint32_t words[kQuad];
};

template <class T>
__device__ Raw load_raw(const void* tensor, Quad quad) {
  const Four<T> four = load(static_cast<const T*>(tensor), quad, T{0});
  Raw raw;
  std::memcpy(&raw, &four, sizeof four);
  return raw;
}

// Zeros beyond the end. Nothing is made of it here, so that a lane does not wait before its next load.
__device__ Raw load_raw(DType dtype, const void* tensor, Quad quad) {
  switch (dtype) {
    case DType::kFloat32:
      return load_raw<std::uint32_t>(tensor, quad);
    case DType::kFloat64: {
      Raw raw{};
      BNB_UNROLL
      for (int j = 0; j < kQuad; ++j)
        if (j < quad.count)
          raw.words[j] = bits_of(static_cast<float>(static_cast<const double*>(tensor)[quad.first + j]));
      return raw;
    }
    default:
      return load_raw<std::uint16_t>(tensor, quad);
  }
}

template <class T>
__device__ void widen(const Raw& raw, float* x) {
  Four<T> four;
  std::memcpy(&four, &raw, sizeof four);
  BNB_UNROLL
  for (int j = 0; j < kQuad; ++j) x[j] = T::widen(four.of[j]);
}

__device__ void widen(DType dtype, const Raw& raw, float* x) {
  switch (dtype) {
    case DType::kBFloat16:
      return widen<BFloat16>(raw, x);
    case DType::kFloat16:
      return widen<Float16>(raw, x);
    default:
      return widen<Float32>(raw, x);
  }
}

// The random bits of a quad's element j.
__device__ std::uint32_t noise(std::uint64_t key, std::uint32_t stream, Quad quad, int j) {
  const std::uint64_t origin = static_cast<std::uint64_t>(quad.origin);
  return random_bits(key, random_base(key, stream, origin), static_cast<std::uint32_t>(origin) + quad.offset + j);
}

// Of [0, 1).
__device__ inline float uniform(std::uint32_t bits) {
  return static_cast<float>(static_cast<std::int32_t>(bits >> 8)) * 0x1p-24f;
}

template <class T>
__device__ void write_as(void* tensor, Quad quad, const float* x, Rounding rounding) {
  constexpr std::uint32_t kStream = 0xffff;  // apart from the states' streams
  if (rounding.stochastic && sizeof(T) == 2) {
    Four<T> four;
    BNB_UNROLL
    for (int j = 0; j < kQuad; ++j) four.of[j] = T::narrow(x[j], noise(rounding.key, kStream, quad, j));
    store(four, static_cast<T*>(tensor), quad);
  } else {
    store(narrow<T>(x), static_cast<T*>(tensor), quad);
  }
}

// A float64 parameter is not rounded to float32 on the way: for it, `x` is what to add.
__device__ void write(DType dtype, void* tensor, Quad quad, const float* x, Rounding rounding) {
  switch (dtype) {
    case DType::kFloat32:
      return write_as<Float32>(tensor, quad, x, rounding);
    case DType::kBFloat16:
      return write_as<BFloat16>(tensor, quad, x, rounding);
    case DType::kFloat16:
      return write_as<Float16>(tensor, quad, x, rounding);
    case DType::kFloat64:
      BNB_UNROLL
      for (int j = 0; j < kQuad; ++j)
        if (j < quad.count) static_cast<double*>(tensor)[quad.first + j] += static_cast<double>(x[j]);
  }
}

// Of a state that may not be there; it then reads as zero.
__device__ inline float absmax_of(const State& state, std::int64_t block) {
  return state.absmax == nullptr ? 0.0f : state.absmax[state.whole ? 0 : block];
}

__device__ inline std::uint32_t load_codes(const std::uint8_t* codes, Quad quad, std::uint8_t beyond) {
  std::uint32_t word = beyond * 0x01010101u;
  if (codes == nullptr) quad.count = 0;
  if (in_one_piece(codes, quad))
    word = *reinterpret_cast<const std::uint32_t*>(codes + quad.first);
  else
    for (int j = 0; j < quad.count; ++j) word ^= static_cast<std::uint32_t>(codes[quad.first + j] ^ beyond) << 8 * j;
  return word;
}

// Of a state in float32, or of one that is not there and reads as zero.
__device__ inline void load_values(const float* values, Quad quad, float* x) {
  if (values == nullptr) quad.count = 0;
  const Four<float> four = load(values, quad, 0.0f);
  BNB_UNROLL
  for (int j = 0; j < kQuad; ++j) x[j] = four.of[j];
}

__device__ void write_codes(std::uint8_t* codes, Quad quad, const std::int32_t* code) {
  const std::uint32_t word = as_bytes(code);
  std::uint8_t* const first = codes + quad.first;
  if (in_one_piece(codes, quad))
    *reinterpret_cast<std::uint32_t*>(first) = word;
  else
    for (int j = 0; j < quad.count; ++j) first[j] = static_cast<std::uint8_t>(word >> 8 * j);
}

}  // namespace BNB_ISA
}  // namespace bnb
