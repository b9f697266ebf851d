// Random bits by counter: a function of a key and an element's index, so that they do not depend on the order of work,
// the number of threads or the layout. Two rounds of a 32-bit integer hash (lowbias32,
// https://nullprogram.com/blog/2018/07/31/).
#pragma once
#include <cstdint>

#include "codec.h"

namespace bnb {
inline namespace BNB_ISA {

BNB_HD std::uint32_t hash32(std::uint32_t x) {
  x ^= x >> 16;
  x *= 0x7feb352du;
  x ^= x >> 15;
  x *= 0x846ca68bu;
  return x ^ (x >> 16);
}

// `stream` tells apart what draws with one key: the states of a parameter, and its weight.
BNB_HD std::uint32_t random_bits(std::uint64_t key, std::uint32_t stream, std::uint64_t index) {
  const std::uint32_t low = hash32(static_cast<std::uint32_t>(index) + static_cast<std::uint32_t>(key));
  return hash32(low ^ hash32(static_cast<std::uint32_t>(index >> 32) + static_cast<std::uint32_t>(key >> 32) + stream));
}

// In [0, 1), a multiple of 2^-24.
BNB_HD float uniform(std::uint32_t bits) { return static_cast<float>(static_cast<std::int32_t>(bits >> 8)) * 0x1p-24f; }

}  // namespace BNB_ISA
}  // namespace bnb
