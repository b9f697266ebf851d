// What an op must know of a tensor. Plain numbers, three of 64 bits; no torch.
#pragma once
#include <cstdint>

namespace bnb {

struct Header {
  void* data;
  std::int64_t numel;
  std::int8_t dtype, device_type;  // torch's numbers for them
  std::int8_t device_index;        // 0 for the CPU
  std::int8_t contiguous;
  std::uint32_t shape;  // a number that stands for it, for who compares headers; no op reads it
};

}  // namespace bnb
