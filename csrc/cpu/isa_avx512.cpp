// Kernels for x86-64 with AVX-512 as Ice Lake and Zen 4 have it.
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

#if defined(__GNUC__) && !defined(__clang__)  // of its own intrinsics, https://gcc.gnu.org/PR105593
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,fma"))), \
                             apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,fma,prefer-vector-width=512")
#endif

#define BNB_ISA avx512
#define BNB_LANES 16
#include "driver.h"

const bnb::cpu::Kernels bnb::cpu::kAvx512 = bnb::avx512::make_kernels("avx512", bnb::AllRules{});

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
