// As much of a GPU as csrc/cuda asks for, on the host, in place of CUDA's header of this name. A thread is a fiber. The
// threads of a block take turns, and blocks follow each other, in an order drawn anew for every launch: what depends on
// an order gives another result with another seed. Where threads must meet and one of them cannot come any more, a GPU
// hangs or computes anything; here the launch is an error.
#pragma once
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>

#define __global__
#define __device__
#define __grid_constant__
#define __launch_bounds__(...)
#define __shared__ static  // one block runs at a time

struct dim3 {
  unsigned x, y = 1, z = 1;
  dim3(unsigned x = 1) : x(x) {}
};
extern dim3 threadIdx, blockIdx, blockDim;

using cudaStream_t = void*;
enum cudaError_t { cudaSuccess, cudaErrorInvalidConfiguration, cudaErrorLaunchFailure };
const char* cudaGetErrorString(cudaError_t error);  // of the latest error of its kind

namespace gpu_on_host {

cudaError_t run(unsigned blocks, unsigned threads, const std::function<void()>& kernel);

// Returns when all threads of the block have called it.
void meet_block(const char* what);
// Returns what each lane of the warp has brought, when all have called it with the same `what`.
const std::uint64_t* meet_warp(const char* what, unsigned mask, std::uint64_t mine);

void draw_order(std::uint64_t seed);
std::int64_t launches();  // since the process began

}  // namespace gpu_on_host

template <class Argument>
cudaError_t cudaLaunchKernel(void (*kernel)(Argument), dim3 blocks, dim3 threads, void** arguments, std::size_t,
                             cudaStream_t) {
  const Argument argument = *static_cast<const Argument*>(arguments[0]);
  return gpu_on_host::run(blocks.x, threads.x, [&] { kernel(argument); });
}

inline void __syncthreads() { gpu_on_host::meet_block("__syncthreads"); }

inline bool __any_sync(unsigned mask, bool mine) {
  const std::uint64_t* const all = gpu_on_host::meet_warp("__any_sync", mask, mine);
  bool any = false;
  for (int lane = 0; lane < 32; ++lane) any |= all[lane] != 0;
  return any;
}

template <class T>
T __shfl_xor_sync(unsigned mask, T mine, int distance) {
  static_assert(sizeof(T) <= sizeof(std::uint64_t));
  std::uint64_t bits = 0;
  std::memcpy(&bits, &mine, sizeof(T));
  const std::uint64_t* const all = gpu_on_host::meet_warp("__shfl_xor_sync", mask, bits);
  std::memcpy(&mine, &all[threadIdx.x % 32 ^ distance], sizeof(T));
  return mine;
}

template <class T>
T __shfl_sync(unsigned mask, T mine, int lane) {
  static_assert(sizeof(T) <= sizeof(std::uint64_t));
  std::uint64_t bits = 0;
  std::memcpy(&bits, &mine, sizeof(T));
  const std::uint64_t* const all = gpu_on_host::meet_warp("__shfl_sync", mask, bits);
  std::memcpy(&mine, &all[static_cast<unsigned>(lane) % 32], sizeof(T));
  return mine;
}

inline void atomicMax(std::int32_t* most, std::int32_t value) { *most = value > *most ? value : *most; }
