// Kernels for whatever the compiler targets by default: any x86-64, any ARM64 (NEON).
#define BNB_ISA baseline
#define BNB_LANES 4
#include "driver.h"

const bnb::cpu::Kernels bnb::cpu::kBaseline = bnb::baseline::make_kernels("baseline", bnb::AllRules{});
