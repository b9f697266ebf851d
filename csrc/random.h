// Random bits by counter: a function of a key and an element's index, so that they do not depend on the order of work,
// the number of threads or the layout. Two rounds of a 32-bit integer hash (lowbias32,
// https://nullprogram.com/blog/2018/07/31/). `Word`: std::uint32_t, or a vector of them.
#pragma once
#include <cstdint>

#include "codec.h"

namespace bnb {
inline namespace BNB_ISA {

template <class Word>
BNB_HD Word hash32(Word x) {
  x ^= x >> 16;
  x *= 0x7feb352du;
  x ^= x >> 15;
  x *= 0x846ca68bu;
  return x ^ (x >> 16);
}

// A 64-bit number for a parameter at a step, in which every bit of `seed` and `key` counts: splitmix64, twice,
// https://doi.org/10.1145/2714064.2660195
BNB_HD std::uint64_t mixed(std::uint64_t seed, std::uint64_t key) {
  const std::uint64_t numbers[] = {seed, key};
  std::uint64_t x = 0;
  for (const std::uint64_t number : numbers) {
    x += number + 0x9e3779b97f4a7c15u;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    x ^= x >> 31;
  }
  return x;
}

// The part of a hash that elements share whose indices agree above their lowest 32 bits. `stream` tells apart what
// draws with one key: the states of a parameter, and its weight.
BNB_HD std::uint32_t random_base(std::uint64_t key, std::uint32_t stream, std::uint64_t index) {
  return hash32(static_cast<std::uint32_t>(index >> 32) + static_cast<std::uint32_t>(key >> 32) + stream);
}

// `low`: the index's lowest 32 bits.
template <class Word>
BNB_HD Word random_bits(std::uint64_t key, std::uint32_t base, Word low) {
  return hash32(hash32(low + static_cast<std::uint32_t>(key)) ^ base);
}

}  // namespace BNB_ISA
}  // namespace bnb
