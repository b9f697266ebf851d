// Random bits for a run of elements, a vector at a time.
#pragma once
#include "../random.h"
#include "lanes.h"

namespace bnb {
inline namespace BNB_ISA {

// For a run that begins at element `first` and crosses no multiple of 2^32, as no block does.
class Noise {
 public:
  Noise(std::uint64_t key, std::uint32_t stream, std::int64_t first)
      : key_(key), base_(random_base(key, stream, first)) {
    for (int lane = 0; lane < kLanes; ++lane) lanes_[lane] = static_cast<std::uint32_t>(first + lane);
  }

  // For the elements from `i` on, counted from the run's first.
  BNB_LANE Words operator[](std::int64_t i) const {
    return random_bits(key_, base_, lanes_ + static_cast<std::uint32_t>(i));
  }

 private:
  std::uint64_t key_;
  std::uint32_t base_;
  Words lanes_;
};

// In [0, 1), multiples of 2^-24.
BNB_LANE Floats uniform(Words bits) { return to_floats(reinterpret_cast<Ints>(bits >> 8)) * 0x1p-24f; }

}  // namespace BNB_ISA
}  // namespace bnb
