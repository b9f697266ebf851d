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
  std::int64_t origin;  // index of the block's first element in the whole tensor, of which this one may be a part
  int offset;           // of the first one within the block
};

template <class T>
__device__ bool in_one_piece(const void* tensor, Quad quad) {
  const T* const first = static_cast<const T*>(tensor) + quad.first;
  return quad.count == kQuad && reinterpret_cast<std::uintptr_t>(first) % sizeof(Four<T>) == 0;
}

// Of a quad in one piece.
template <class T>
__device__ Four<T> load_whole(const void* tensor, Quad quad) {
  return *reinterpret_cast<const Four<T>*>(static_cast<const T*>(tensor) + quad.first);
}

template <class T>
__device__ Four<T> load(const T* tensor, Quad quad, T beyond) {
  if (in_one_piece<T>(tensor, quad)) return load_whole<T>(tensor, quad);
  Four<T> four;
  BNB_UNROLL
  for (int j = 0; j < kQuad; ++j) four.of[j] = j < quad.count ? tensor[quad.first + j] : beyond;
  return four;
}

template <class T>
__device__ void store(const Four<T>& four, T* tensor, Quad quad) {
  if (in_one_piece<T>(tensor, quad)) {
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

template <class T>
__device__ void read_as(const void* tensor, Quad quad, float* x) {
  const Four<T> four = load(static_cast<const T*>(tensor), quad, T{});
  BNB_UNROLL
  for (int j = 0; j < kQuad; ++j) x[j] = T::widen(four.of[j]);
}

// Zeros beyond the end.
__device__ void read(DType dtype, const void* tensor, Quad quad, float* x) {
  switch (dtype) {
    case DType::kFloat32:
      return read_as<Float32>(tensor, quad, x);
    case DType::kBFloat16:
      return read_as<BFloat16>(tensor, quad, x);
    case DType::kFloat16:
      return read_as<Float16>(tensor, quad, x);
    case DType::kFloat64:
      BNB_UNROLL
      for (int j = 0; j < kQuad; ++j)
        x[j] = j < quad.count ? static_cast<float>(static_cast<const double*>(tensor)[quad.first + j]) : 0.0f;
  }
}

// The random bits of a quad's element j.
__device__ std::uint32_t noise(std::uint64_t key, std::uint32_t stream, Quad quad, int j) {
  const std::uint64_t origin = static_cast<std::uint64_t>(quad.origin);
  return random_bits(key, random_base(key, stream, origin), static_cast<std::uint32_t>(origin) + quad.offset + j);
}

template <class T>
__device__ void write_as(void* tensor, Quad quad, const float* x, Rounding rounding) {
  constexpr std::uint32_t kStream = 0xffff;  // apart from the states' streams
  Four<T> four;
  BNB_UNROLL
  for (int j = 0; j < kQuad; ++j)
    four.of[j] = rounding.stochastic && sizeof(T) == 2 ? T::narrow(x[j], noise(rounding.key, kStream, quad, j))
                                                       : T::narrow(x[j]);
  store(four, static_cast<T*>(tensor), quad);
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

__device__ inline float absmax_of(const State& state, std::int64_t block) {
  return state.absmax[state.whole ? 0 : block];
}

template <Sign S, class E>
__device__ void read_state(const State& state, std::int64_t block, Quad quad, float* x, const Tables<E>& tables) {
  if (state.codes) {
    const float absmax = absmax_of(state, block);
    const Four<std::uint8_t> codes = load(state.codes, quad, kZeroCode<S>);
    BNB_UNROLL
    for (int j = 0; j < kQuad; ++j) x[j] = decode_in_registers<S>(codes.of[j], tables) * absmax;
  } else if (state.values) {
    read_as<Float32>(state.values, quad, x);
  } else {
    BNB_UNROLL
    for (int j = 0; j < kQuad; ++j) x[j] = 0;
  }
}

// Into codes, divided by an absmax that is at least the largest magnitude among them.
template <Sign S, class E>
__device__ void write_codes(std::uint8_t* codes, Quad quad, const float* x, Scale scale, Rounding rounding,
                            std::uint32_t stream, const Tables<E>& tables) {
  float scaled[kQuad], a[kQuad];
  std::uint32_t line[kQuad];
  BNB_UNROLL
  for (int j = 0; j < kQuad; ++j) {
    scaled[j] = encodable<S>(x[j] * scale.lift * scale.reciprocal);
    a[j] = __builtin_fabsf(scaled[j]);
  }
  if (rounding.stochastic) {
    BNB_UNROLL
    for (int j = 0; j < kQuad; ++j) {
      const std::uint32_t bits = noise(rounding.key, stream, quad, j);
      line[j] = drawn<S>(a[j], static_cast<float>(static_cast<std::int32_t>(bits >> 8)) * 0x1p-24f, tables);
    }
  } else {
    nearest<S, kQuad>(a, line, tables);
  }
  Four<std::uint8_t> four;
  BNB_UNROLL
  for (int j = 0; j < kQuad; ++j) four.of[j] = code_on<S, Tiny::kKept>(line[j], scaled[j]);
  store(four, codes, quad);
}

}  // namespace BNB_ISA
}  // namespace bnb
