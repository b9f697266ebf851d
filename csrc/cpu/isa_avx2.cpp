// Kernels for x86-64 with AVX2.
// The target holds from here on: the standard headers come first, so that none of their inline code is compiled for it.
#if defined(__x86_64__)
#include <immintrin.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC target("avx2,fma,f16c")
#endif

#define BNB_ISA avx2
#define BNB_LANES 8
#include "driver.h"

const bnb::cpu::Kernels bnb::cpu::kAvx2 = bnb::avx2::make_kernels("avx2", bnb::AllRules{});

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
