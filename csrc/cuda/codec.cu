// The codec's operators: a thread block for each block of the format, which may be of any size.
#include <cuda_runtime.h>

#include "../ops.h"
#include "stream.h"
#include "warp.cuh"

namespace bnb::cuda {

constexpr int kThreadsOfCodec = 256;

__device__ std::int64_t end_of(const Quantized& q) {
  const std::int64_t end = (static_cast<std::int64_t>(blockIdx.x) + 1) * q.blocksize;
  return end < q.numel ? end : q.numel;
}

template <Sign S>
__global__ void __launch_bounds__(kThreadsOfCodec) quantize(const Quantized q) {
  __shared__ std::int32_t most;
  if (threadIdx.x == 0) most = 0;
  __syncthreads();
  const std::int64_t begin = blockIdx.x * q.blocksize + threadIdx.x, end = end_of(q);
  std::int32_t mine = 0;
  for (std::int64_t i = begin; i < end; i += kThreadsOfCodec) {
    const std::int32_t bits = magnitude_bits(q.values[i]);
    mine = bits > mine ? bits : mine;
  }
  atomicMax(&most, mine);
  __syncthreads();
  const float absmax = float_of(most);
  if (threadIdx.x == 0) q.absmax[blockIdx.x] = absmax;
  const Scale scale(absmax);
  const warp::Code code = warp::my_code();
  for (std::int64_t i = begin; i - threadIdx.x < end; i += kThreadsOfCodec) {  // the same turns for all threads
    const float x = encodable<S>(i < end ? q.values[i] * scale.lift * scale.reciprocal : 0.0f);
    const float a = __builtin_fabsf(x);
    std::uint32_t line;
    nearest<S, 1>(&a, &line, code);
    if (i < end) q.codes[i] = as_byte(code_on<S, Tiny::kToZero>(line, x));
  }
}

template <Sign S>
__global__ void __launch_bounds__(kThreadsOfCodec) dequantize(const Quantized q) {
  const float absmax = q.absmax[blockIdx.x];
  const warp::Code code = warp::my_code();
  const std::int64_t end = end_of(q);
  for (std::int64_t i = blockIdx.x * q.blocksize + threadIdx.x; i - threadIdx.x < end; i += kThreadsOfCodec) {
    const float value = decode_in_registers<S>(i < end ? q.codes[i] : kZeroCode<S>, 0, code);
    if (i < end) q.values[i] = value * absmax;
  }
}

using Coder = void (*)(Quantized);

void launch_coder(Coder coder, const Tensor& values, const Quantized& q) {
  if (q.numel == 0) return;
  const OnDevice guard(values.get_device_index());
  run(coder, blocks_of(q.numel, q.blocksize), kThreadsOfCodec, q, guard.stream());
}

void quantize_blockwise(const Tensor& values, const Tensor& codes, const Tensor& absmax, bool is_signed,
                        std::int64_t blocksize) {
  launch_coder(is_signed ? quantize<Sign::kSigned> : quantize<Sign::kUnsigned>, values,
               make_quantized("quantize_blockwise", values, codes, absmax, blocksize));
}

void dequantize_blockwise(const Tensor& values, const Tensor& codes, const Tensor& absmax, bool is_signed,
                          std::int64_t blocksize) {
  launch_coder(is_signed ? dequantize<Sign::kSigned> : dequantize<Sign::kUnsigned>, values,
               make_quantized("dequantize_blockwise", values, codes, absmax, blocksize));
}

}  // namespace bnb::cuda

STABLE_TORCH_LIBRARY_IMPL(torch_bnb_codec, CUDA, m) {
  m.impl("quantize_blockwise", TORCH_BOX(&bnb::cuda::quantize_blockwise));
  m.impl("dequantize_blockwise", TORCH_BOX(&bnb::cuda::dequantize_blockwise));
}
