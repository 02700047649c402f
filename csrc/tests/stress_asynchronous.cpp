#include <numeric>

#include "cpu/asynchronous.h"
#include "stress.h"

namespace we::cpu {
namespace {

std::vector<std::uint8_t> random_subset(Generator& generator, const Copies& copies) {
  const std::vector<Segment> segments = segments_of(copies.layers());
  const Draw draw{static_cast<double>(generator.below(5)) / 4, static_cast<std::uint64_t>(generator.below(1000)),
                  static_cast<std::uint64_t>(generator.below(1000)), generator.below(2) == 0};
  std::vector<std::uint8_t> selected(static_cast<std::size_t>(copies.filters()), 77);
  select_filters(segments, draw, selected);
  for (const Segment& segment : segments) {
    const auto first = selected.begin() + segment.first;
    const int count = std::accumulate(first, first + segment.filters, 0);
    require(count >= (segment.filters > 0 ? 1 : 0) && count <= segment.filters, "a layer's subset has another size");
  }
  return selected;
}

// Saves, overwrites and restores the weights: filters that are not selected are as before. Returns the buffer.
std::vector<std::uint8_t> restored(const std::vector<Weight>& weights, const std::vector<std::uint8_t>& selected,
                                   int threads) {
  Copies copies(weights);
  Copies expected(weights);
  std::vector<std::uint8_t> buffer(static_cast<std::size_t>(snapshot_bytes(copies.bank())), kGuard);
  copy_unselected(copies.bank(), selected, buffer, false, threads);
  copies.overwrite([](std::int64_t) { return true; });
  copy_unselected(copies.bank(), selected, buffer, true, threads);
  expected.overwrite([&](std::int64_t filter) { return selected[static_cast<std::size_t>(filter)] != 0; });
  require(copies.bytes() == expected.bytes(), "other weights after saving and restoring");
  return buffer;
}

struct Step {
  std::vector<Weight> params, grads, buffers;
  std::vector<std::uint8_t> masked, first, selected;
  SgdRule rule;
};

std::vector<unsigned char> stepped(const Step& step, int threads) {
  Copies params(step.params), buffers(step.buffers);
  const Copies grads(step.grads);
  const bool momentum = step.rule.momentum != 0;
  const SgdBanks banks{params.bank(), grads.bank(), momentum ? buffers.bank() : Bank{},
                       step.masked,   step.first,   step.selected};
  check_sgd(banks);
  asynchronous_sgd(banks, step.rule, threads);
  std::vector<unsigned char> all = params.bytes();
  const std::vector<unsigned char> state = buffers.bytes();
  all.insert(all.end(), state.begin(), state.end());
  require(grads.bytes() == Copies(step.grads).bytes(), "a gradient has changed");
  require(momentum || state == Copies(step.buffers).bytes(), "a buffer has changed without momentum");
  params.check_guards();
  buffers.check_guards();
  return all;
}

}  // namespace

void stress_asynchronous(Generator& generator, bool change_level) {
  Step step;
  step.params = generator.weights();
  const std::vector<std::uint8_t> selected = random_subset(generator, Copies(step.params));
  const auto restore_in = [&](int threads) { return restored(step.params, selected, threads); };
  require_the_same(restore_in, change_level, "another buffer with other threads or instructions");

  const bool alike = generator.below(2) == 0;
  std::int64_t filter = 0;
  for (const Weight& weight : step.params) {
    step.grads.push_back(generator.like(weight.layer, alike));
    step.buffers.push_back(generator.like(weight.layer, alike));
    step.masked.push_back(static_cast<std::uint8_t>(generator.below(2)));
    step.first.push_back(static_cast<std::uint8_t>(generator.below(2)));
    const auto own = selected.begin() + filter;
    if (step.masked.back() != 0) step.selected.insert(step.selected.end(), own, own + weight.layer.filters);
    filter += weight.layer.filters;
  }
  const auto coin = [&] { return generator.below(2) == 0; };
  step.rule = {0.1, coin() ? 0.9 : 0.0, coin() ? 0.3 : 0.0, coin() ? 1e-3 : 0.0, coin(), coin(), {}};
  step.rule.rounding.fused = coin();
  for (std::int64_t& elements : step.rule.rounding.step) elements = 8 * generator.below(3);
  step.rule.rounding.threads = 1 + generator.below(3);
  step.rule.rounding.grain = 1 + generator.below(4000);
  const auto step_in = [&](int threads) { return stepped(step, threads); };
  require_the_same(step_in, change_level, "another step with other threads or instructions");
}

}  // namespace we::cpu
