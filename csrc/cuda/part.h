// What one launch gets, by value, and how a batch is sorted into as many of them as it needs.
#pragma once
#include <algorithm>
#include <array>

#include "form.h"

namespace bnb::cuda {

// CUDA takes 32764 bytes of arguments since 12.1 (Volta and newer), before that 4096.
#ifndef BNB_LAUNCH_BYTES
#if defined(CUDART_VERSION) && CUDART_VERSION < 12010
#define BNB_LAUNCH_BYTES 4096
#else
#define BNB_LAUNCH_BYTES 32764
#endif
#endif

// Some slots of a batch, all of one form, with all that holds for them.
struct Heading {
  std::array<float, AllRules::kMaxScalars> scalars;  // unless `scalars_on_device`
  const float* scalars_on_device;
  const float* found_inf;
  Options options;
  Measure* measures;    // scratch: one per block
  Measure* sums;        // scratch: kShares per slot
  Layer* layers;        // scratch: one per slot
  std::int64_t blocks;  // of all slots together
  std::int32_t count;
  std::int32_t run;  // blocks that a warp takes, one after the other
};

constexpr int kCapacity = (BNB_LAUNCH_BYTES - sizeof(Heading)) / sizeof(Slot);

// A slot's first block is counted from the part's first.
struct Part : Heading {
  Slot slots[kCapacity];  // `count` of them
};
static_assert(sizeof(Part) <= BNB_LAUNCH_BYTES);

constexpr int kWarpsOfStep = 4, kThreadsOfStep = 32 * kWarpsOfStep;

// No slots and no scratch yet.
inline void begin(Part& part, const Batch& batch) {
  static_cast<Heading&>(part) = {};
  if (batch.scalars_on_device)
    part.scalars_on_device = batch.scalars;
  else
    std::memcpy(part.scalars.data(), batch.scalars, sizeof(float) * batch.scalar_count);
  part.found_inf = batch.found_inf;
  part.options = batch.options;
}

inline void add(Part& part, const Slot& slot) {
  part.slots[part.count] = slot;
  part.slots[part.count++].first_block = part.blocks;
  part.blocks += blocks_in(slot);
}

// Elements [begin, begin + numel) of a slot of a single row; `begin` is a multiple of kBlock.
inline Slot piece_of(Slot slot, std::int64_t begin, std::int64_t numel) {
  slot.param = at(slot.param_dtype, slot.param, begin);
  slot.grad = at(slot.grad_dtype, slot.grad, begin);
  slot.numel = numel;
  slot.grid = {numel, numel, slot.grid.origin + begin};
  for (State& state : slot.states) {
    if (state.values != nullptr) state.values += begin;
    if (state.codes != nullptr) state.codes += begin;
    if (state.absmax != nullptr) state.absmax += begin / kBlock;
  }
  return slot;
}

// Calls f(form, part) until every slot was in a part. `in_pieces`: the whole blocks of a slot may be in another part
// than the rest of it.
template <class F>
void for_each_part(const Batch& batch, bool in_pieces, const F& f) {
  constexpr int kAny = AllForms::kCount - 1;
  std::array<Part, AllForms::kCount> parts;
  for (Part& part : parts) begin(part, batch);
  const auto put = [&](int form, const Slot& slot) {
    Part& part = parts[form];
    add(part, slot);
    if (part.count < kCapacity) return;
    f(form, part);
    begin(part, batch);
  };
  for (std::int64_t i = 0; i < batch.count; ++i) {
    const Slot& slot = batch.slots[i];
    const std::int64_t rest = slot.numel % kBlock, whole = slot.numel - rest;
    if (in_pieces && whole > 0 && rest > 0 && slot.grid.row == slot.numel) {
      const Slot head = piece_of(slot, 0, whole);
      if (const int form = AllForms::of(head, batch.options); form != kAny) {
        put(form, head);
        put(kAny, piece_of(slot, whole, rest));
        continue;
      }
    }
    put(AllForms::of(slot, batch.options), slot);
  }
  for (int form = 0; form <= kAny; ++form)
    if (parts[form].count > 0) f(form, parts[form]);
}

}  // namespace bnb::cuda
