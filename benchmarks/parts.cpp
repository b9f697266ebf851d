// The parts of a step, one by one, on numbers that stay in the L1 cache: nanoseconds per element on one thread.
// `parts COUNT PART` runs one part over COUNT elements and prints nothing, for a program that counts instructions.
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <optional>

#include "cpu/driver.h"

using namespace bnb;

constexpr int kElements = 1024;  // 26 KiB in all

struct Data {
  alignas(64) float p[kElements], g[kElements], m[kElements], v[kElements];
  alignas(64) std::uint8_t m_codes[kElements], v_codes[kElements];
  float m_absmax[kElements / kBlock], v_absmax[kElements / kBlock];
  alignas(64) std::uint16_t p_half[kElements], g_half[kElements];  // small as bfloat16 and as float16

  Data() {
    std::srand(0);
    for (int i = 0; i < kElements; ++i) {
      const float x = std::rand() / (0.5f * RAND_MAX) - 1;
      p_half[i] = g_half[i] = static_cast<std::uint16_t>(0x3800 + (std::rand() & 0x3ff));
      p[i] = x, g[i] = 0.01f * x, m[i] = 0.02f * x, v[i] = 1e-4f * x * x;
    }
    for (int block = 0; block < kElements / kBlock; ++block) encode(block);
  }

  void encode(int block) {
    encode_signed(block);
    encode_unsigned(block);
  }
  void encode_signed(int block) {
    const int i = block * kBlock;
    m_absmax[block] = absmax_of(m + i, kBlock);
    encode_run<Sign::kSigned, false>(m + i, kBlock, m_absmax[block], {}, 0, i, m_codes + i);
  }
  void encode_unsigned(int block) {
    const int i = block * kBlock;
    v_absmax[block] = absmax_of(v + i, kBlock);
    encode_run<Sign::kUnsigned, true>(v + i, kBlock, v_absmax[block], {}, 0, i, v_codes + i);
  }
};

Data data;
const float kScalars[] = {1e-9f, 0.1f, 0.999f, 0.001f, 1e-8f, 0.01f, 1.0f, 1.0f};

void step(bool in_8_bits, DType dtype = DType::kFloat32) {
  Slot slot{};
  slot.param = data.p, slot.grad = data.g;
  if (dtype != DType::kFloat32) slot.param = data.p_half, slot.grad = data.g_half;
  slot.param_dtype = slot.grad_dtype = dtype;
  slot.numel = kElements, slot.grid = {kElements, kElements, 0};
  if (in_8_bits) {
    slot.states[0] = {nullptr, data.m_codes, data.m_absmax};
    slot.states[1] = {nullptr, data.v_codes, data.v_absmax};
  } else {
    slot.states[0].values = data.m, slot.states[1].values = data.v;
  }
  step_blocks<AdamW>({&slot, 1, kElements / kBlock, kScalars, {1, 0, false, false, {}}}, nullptr, 0,
                     kElements / kBlock);
}

struct Part {
  const char* name;
  void (*run)();
};

const Part kParts[] = {
    {"decode, signed", [] { decode_run<Sign::kSigned>(data.m_codes, 0.02f, kElements, data.m); }},
    {"decode, unsigned", [] { decode_run<Sign::kUnsigned>(data.v_codes, 1e-4f, kElements, data.v); }},
    {"absmax and encode, signed",
     [] {
       for (int i = 0; i < kElements / kBlock; ++i) data.encode_signed(i);
     }},
    {"absmax and encode, unsigned",
     [] {
       for (int i = 0; i < kElements / kBlock; ++i) data.encode_unsigned(i);
     }},
    {"AdamW step, 32-bit state", [] { step(false); }},
    {"AdamW step, 8-bit state", [] { step(true); }},
    {"the same, bfloat16", [] { step(true, DType::kBFloat16); }},
    {"the same, float16", [] { step(true, DType::kFloat16); }},
};

int main(int count, char** arguments) {
  if (count == 3) {
    for (long done = 0; done < std::atol(arguments[1]); done += kElements) kParts[std::atoi(arguments[2])].run();
    return 0;
  }
  for (const Part& part : kParts) {
    double best = 1;
    for (int round = 0; round < 300; ++round) {
      const auto start = std::chrono::steady_clock::now();
      for (int i = 0; i < 20; ++i) part.run();
      const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
      best = std::min(best, seconds.count() / 20 / kElements);
    }
    std::printf("%s\t%.4f\n", part.name, best * 1e9);
  }
}
