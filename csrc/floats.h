// The 16-bit floats, by arithmetic on bits: to float32 and back, rounded to nearest even as torch does, or at random.
// Branch-free, so that loops over them vectorise, and the same bits on every device.
#pragma once
#include <cstdint>
#include <cstring>

#include "codec.h"

namespace bnb {
inline namespace BNB_ISA {

BNB_HD std::uint32_t bits_of(float x) {
  std::uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits;
}

BNB_HD float float_of(std::uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}

struct BFloat16 {
  std::uint16_t bits;
  static BNB_HD float widen(BFloat16 x) { return float_of(static_cast<std::uint32_t>(x.bits) << 16); }
  static BNB_HD BFloat16 narrow(float x) {
    const std::uint32_t bits = bits_of(x);
    const std::uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    return {static_cast<std::uint16_t>(x != x ? 0x7fc0 : rounded)};
  }
  static BNB_HD BFloat16 narrow(float x, std::uint32_t random) {
    const std::uint32_t bits = bits_of(x);
    const bool finite = (bits & 0x7f800000) != 0x7f800000;
    const std::uint32_t up = (bits + (random & 0xffff)) >> 16;
    const std::uint32_t largest = (up & 0x7fff) == 0x7f80 ? up - 1 : up;  // chance makes no infinity
    return {static_cast<std::uint16_t>(finite ? largest : narrow(x).bits)};
  }
};

struct Float16 {
  std::uint16_t bits;
  static BNB_HD float widen(Float16 x) {
    const std::uint32_t sign = static_cast<std::uint32_t>(x.bits & 0x8000) << 16;
    const std::uint32_t magnitude = x.bits & 0x7fff;
    const std::uint32_t normal = (magnitude << 13) + (112u << 23);  // re-bias the exponent
    const std::uint32_t quiet = magnitude > 0x7c00 ? 0x00400000 : 0;
    const std::uint32_t special = (magnitude << 13) | 0x7f800000 | quiet;  // infinity and NaN
    const std::uint32_t subnormal = bits_of(static_cast<float>(static_cast<std::int32_t>(magnitude)) * 0x1p-24f);
    return float_of(sign | (magnitude < 0x400 ? subnormal : magnitude < 0x7c00 ? normal : special));
  }
  static BNB_HD Float16 narrow(float x, std::uint32_t random) {
    const std::uint32_t sign = (bits_of(x) >> 16) & 0x8000;
    const std::uint32_t magnitude = bits_of(x) & 0x7fffffff;
    const std::uint32_t normal = (magnitude - (112u << 23) + (random & 0x1fff)) >> 13;
    const float share = static_cast<float>(static_cast<std::int32_t>(random >> 8)) * 0x1p-24f;
    const float units = float_of(magnitude) * 0x1p24f + share;  // of the smallest subnormal
    const std::uint32_t subnormal = static_cast<std::uint32_t>(static_cast<std::int32_t>(units < 1024 ? units : 1024));
    const std::uint32_t largest = normal < 0x7bff ? normal : 0x7bff;  // chance makes no infinity
    const std::uint32_t finite = magnitude < (113u << 23) ? subnormal : largest;
    return {static_cast<std::uint16_t>(magnitude < 0x477ff000 ? sign | finite : narrow(x).bits)};
  }
  static BNB_HD Float16 narrow(float x) {
    const std::uint32_t sign = (bits_of(x) >> 16) & 0x8000;
    const std::uint32_t magnitude = bits_of(x) & 0x7fffffff;
    const std::uint32_t normal = (magnitude - (112u << 23) + 0xfff + ((magnitude >> 13) & 1)) >> 13;
    const std::uint32_t subnormal = bits_of(float_of(magnitude) + 0.5f) - bits_of(0.5f);  // 0.5's last bit is 2^-24
    const std::uint32_t finite = magnitude < (113u << 23) ? subnormal : normal;
    const std::uint32_t nan = 0x7e00 | ((magnitude >> 13) & 0x3ff);
    const std::uint32_t special = magnitude > 0x7f800000 ? nan : 0x7c00;
    return {
        static_cast<std::uint16_t>(sign | (magnitude < 0x477ff000 ? finite : special))};  // 65520 and above: infinity
  }
};

}  // namespace BNB_ISA
}  // namespace bnb
