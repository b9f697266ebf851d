// The GPU's step on the host: 32 lanes in a loop where a GPU has a warp, the rest as csrc/cuda has it. Its operators,
// torch_bnb_emulated::<rule>, take CPU tensors, and the tests compare what they do with the CPU's own kernels.
#include <vector>

#include "cuda/block.h"
#include "ops.h"

namespace bnb {
namespace {

template <class L>
class Warp {
 public:
  Warp(const Slot& slot, std::int64_t block) {
    for (int lane = 0; lane < kWarp; ++lane) lanes_.emplace_back(slot, block, lane);
  }

  template <class F>
  void each(const F& f) {
    for (L& lane : lanes_) f(lane);
  }

  template <class F>
  bool any(const F& f) const {
    bool found = false;
    for (const L& lane : lanes_) found |= f(lane);
    return found;
  }

  template <class F>
  std::int32_t largest(const F& f) const {
    std::int32_t most = 0;
    for (const L& lane : lanes_) most = std::max(most, f(lane));
    return most;
  }

  template <class F>
  double sum(const F& f) const {
    std::vector<double> total;
    for (const L& lane : lanes_) total.push_back(f(lane));
    for (int distance = kWarp / 2; distance > 0; distance /= 2) {
      const std::vector<double> before = total;
      for (int lane = 0; lane < kWarp; ++lane) total[lane] = before[lane] + before[lane ^ distance];
    }
    return total[0];
  }

 private:
  std::vector<L> lanes_;
};

// Runs f(slot, block within it, block within the part) for every block of a part.
template <class F>
void for_each_block(const cuda::Part& part, const F& f) {
  for (std::int64_t block = part.first_block; block < part.end_block; ++block) {
    const int slot = static_cast<int>(find_slot(part.slots, part.count, block));
    f(slot, block - part.slots[slot].first_block, block - part.first_block);
  }
}

template <class Rule>
void measure(const cuda::Part& part, Layer* layers) {
  std::vector<Measure> measures(part.count);
  for_each_block(part, [&](int slot, std::int64_t block, std::int64_t) {
    Warp<Lane<Rule>> warp(part.slots[slot], block);
    add(measures[slot], measure_block<Rule>(part, slot, warp));
  });
  for (int slot = 0; slot < part.count; ++slot)
    if (Sums* const wanted = part.slots[slot].sums)
      *wanted = measures[slot].sums;
    else
      layers[slot] = {norms_of(measures[slot].sums, part.options.max_unorm), measures[slot].absmax};
}

template <class Rule>
void step(cuda::Part part, bool whole) {
  std::vector<Layer> layers(part.count);
  const bool given = part.slots[0].norms != nullptr;
  if (kLayerwise<Rule> && !given) {
    measure<Rule>(part, layers.data());
    part.layers = layers.data();
  }
  if (whole || (part.options.max_unorm > 0 && !given)) {
    std::vector<Layer> all(part.count);
    measure<Rule>(part, all.data());
    layers.swap(all);
    part.layers = layers.data();
  }
  for_each_block(part, [&](int slot, std::int64_t block, std::int64_t) {
    Warp<Lane<Rule>> warp(part.slots[slot], block);
    step_block<Rule>(part, slot, warp);
  });
  for (int slot = 0; whole && slot < part.count; ++slot)
    for (std::size_t k = 0; k < layers[slot].absmax.size(); ++k)
      if (part.slots[slot].states[k].whole) *part.slots[slot].states[k].absmax = layers[slot].absmax[k];
}

template <class... Rules>
void step_each(int rule, const Batch& batch, RuleList<Rules...>) {
  constexpr std::array<void (*)(cuda::Part, bool), sizeof...(Rules)> steps{step<Rules>...};
  for (std::int64_t first = 0; first < batch.count; first += cuda::kCapacity)
    steps[rule](cuda::part_from(batch, first), has_whole_state(batch));
}

template <class... Rules>
void measure_each(int rule, const Batch& batch, RuleList<Rules...>) {
  constexpr std::array<void (*)(const cuda::Part&, Layer*), sizeof...(Rules)> measures{measure<Rules>...};
  for (std::int64_t first = 0; first < batch.count; first += cuda::kCapacity)
    measures[rule](cuda::part_from(batch, first), nullptr);
}

void launch(int rule, const Batch& batch) { step_each(rule, batch, AllRules{}); }
void sum_up(int rule, const Batch& batch) { measure_each(rule, batch, AllRules{}); }

// Every float from 0 to 1 whose bits are a multiple of `stride`, and a few above 1: how many get another number than
// codec.h gives.
template <Sign S>
std::int64_t wrong_numbers(std::int64_t stride) {
  std::int64_t wrong = 0;
  for (std::int64_t bits = 0; bits < bits_of(1.0f) + 2; bits += stride) {
    const float a = float_of(static_cast<std::uint32_t>(bits));
    wrong += nearest_in_registers<S>(a) != nearest_magnitude<S>(a);
  }
  return wrong;
}

// Around every threshold and every magnitude.
template <Sign S>
std::int64_t wrong_near_edges() {
  std::int64_t wrong = 0;
  for (int m = 1; m <= Magnitudes<S>::kTop; ++m)
    for (const float edge : {kThresholds<S>[m], kMagnitudes<S>[m]})
      for (int step = -300; step <= 300; ++step) {
        const float a = float_of(bits_of(edge) + step);
        if (a > 1) continue;
        wrong += nearest_in_registers<S>(a) != nearest_magnitude<S>(a);
        for (const float uniform : {0.0f, 0.25f, 0.5f, 1.0f - 0x1p-24f})
          wrong += code_of<S>(drawn_in_registers<S>(a, uniform), false) != encode_stochastic<S>(a, uniform);
      }
  for (int code = 0; code < 256; ++code) {
    const std::uint8_t c = static_cast<std::uint8_t>(code);
    wrong += bits_of(decode_in_registers<S>(c)) != bits_of(decode<S>(c));
  }
  return wrong;
}

std::int64_t wrong_numbers_of(bool is_signed, std::int64_t stride) {
  return is_signed ? wrong_numbers<Sign::kSigned>(stride) : wrong_numbers<Sign::kUnsigned>(stride);
}

std::int64_t wrong_near_edges_of(bool is_signed) {
  return is_signed ? wrong_near_edges<Sign::kSigned>() : wrong_near_edges<Sign::kUnsigned>();
}

std::int64_t capacity() { return cuda::kCapacity; }

}  // namespace
}  // namespace bnb

STABLE_TORCH_LIBRARY(torch_bnb_emulated, m) {
  bnb::define_rules<bnb::Task::kStep>(m, bnb::AllRules{});
  bnb::define_rules<bnb::Task::kStepOnDevice>(m, bnb::AllRules{});
  m.def("wrong_numbers(bool signed, int stride) -> int");
  m.def("wrong_near_edges(bool signed) -> int");
  m.def("capacity() -> int");
}
STABLE_TORCH_LIBRARY_IMPL(torch_bnb_emulated, CPU, m) {
  bnb::implement_rules<bnb::Task::kStep, bnb::launch>(m);
  bnb::implement_rules<bnb::Task::kStepOnDevice, bnb::launch>(m);
}
STABLE_TORCH_LIBRARY(torch_bnb_emulated_measure, m) { bnb::define_rules<bnb::Task::kMeasure>(m, bnb::AllRules{}); }
STABLE_TORCH_LIBRARY_IMPL(torch_bnb_emulated_measure, CPU, m) {
  bnb::implement_rules<bnb::Task::kMeasure, bnb::sum_up>(m);
}
STABLE_TORCH_LIBRARY_IMPL(torch_bnb_emulated, CompositeExplicitAutograd, m) {
  m.impl("wrong_numbers", TORCH_BOX(&bnb::wrong_numbers_of));
  m.impl("wrong_near_edges", TORCH_BOX(&bnb::wrong_near_edges_of));
  m.impl("capacity", TORCH_BOX(&bnb::capacity));
}
