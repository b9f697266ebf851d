// How one state of one parameter lies in memory: float32, or codes with an absmax per block, or nowhere; and how
// numbers are divided by their absmax. It must not know which rule reads them, nor how a device walks over a block.
#pragma once
#include <cstdint>
#include <cstring>

#include "codec.h"

namespace bnb {

// codes and absmax: 8 bits. values: float32. Neither: the configuration does without this state (SGD without momentum);
// it reads as zero and is not stored.
struct State {
  float* values = nullptr;
  std::uint8_t* codes = nullptr;  // one per element
  float* absmax = nullptr;        // one per block of kBlock elements, or one for the whole tensor
  bool whole = false;
};

// How numbers that lie between two representable ones are rounded: to the nearest, or at random, by a parameter's key
// for this step.
struct Rounding {
  bool stochastic = false;
  std::uint64_t key = 0;
};

inline namespace BNB_ISA {

// Bit patterns of |x| order like integers, with NaN above infinity: the maximum of a block keeps a NaN, and the block
// then decodes to NaN instead of losing it.
BNB_HD std::int32_t magnitude_bits(float x) {
  std::int32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits & 0x7fffffff;
}

// x * lift * reciprocal is x / absmax. The reciprocal of a subnormal absmax overflows: such a block is lifted by an
// exact power of two first. All-zero: anything finite.
struct Scale {
  float lift, reciprocal;
  BNB_HD explicit Scale(float absmax)
      : lift(absmax < 0x1p-100f ? 0x1p100f : 1.0f), reciprocal(absmax == 0 ? 0.0f : 1.0f / (absmax * lift)) {}
};

}  // namespace BNB_ISA
}  // namespace bnb
