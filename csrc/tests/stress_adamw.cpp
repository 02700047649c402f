#include "cpu/adamw.h"

#include "stress.h"

namespace we::cpu {
namespace {

struct Step {
  std::vector<Weight> weights[kAdamwTensors];
  std::vector<double> steps;
  std::vector<Correction> plain;
  std::vector<std::int64_t> groups;
  std::vector<std::vector<float>> rows, columns;  // empty: nothing was ever reset
  bool has_maxima;
  AdamwRule rule;
};

std::vector<const float*> addresses(const std::vector<std::vector<float>>& resets) {
  std::vector<const float*> result;
  for (const std::vector<float>& each : resets) result.push_back(each.empty() ? nullptr : each.data());
  return result;
}

std::vector<unsigned char> stepped(const Step& step, int threads) {
  std::vector<Copies> copies;
  for (const std::vector<Weight>& weights : step.weights) copies.emplace_back(weights);
  const std::vector<const float*> rows = addresses(step.rows), columns = addresses(step.columns);
  AdamwBanks banks{{}, step.steps, step.plain, step.groups, rows, columns};
  for (int k = 0; k < kAdamwTensors; ++k) {
    if (k < kAdamwTensors - 1 || step.has_maxima) banks.banks[k] = copies[static_cast<std::size_t>(k)].bank();
  }
  check_adamw(banks);
  unit_adamw(banks, step.rule, threads);
  std::vector<unsigned char> all;
  for (std::size_t k = 0; k < kAdamwTensors; ++k) {
    const std::vector<unsigned char> bytes = copies[k].bytes();
    const bool written = k != 1 && (k < kAdamwTensors - 1 || step.has_maxima);
    require(written || bytes == Copies(step.weights[k]).bytes(), "a tensor that is only read has changed");
    all.insert(all.end(), bytes.begin(), bytes.end());
    copies[k].check_guards();
  }
  return all;
}

// Square roots by a function, as by MKL's.
void roots_of_floats(const std::int64_t* count, const void* numbers, void* roots, const std::int64_t*) {
  for (std::int64_t i = 0; i < *count; ++i) {
    static_cast<float*>(roots)[i] = __builtin_sqrtf(static_cast<const float*>(numbers)[i]);
  }
}

std::vector<float> random_resets(Generator& generator, std::int64_t size) {
  std::vector<float> resets(static_cast<std::size_t>(size));
  for (float& each : resets) each = static_cast<float>(generator.below(9));
  return resets;
}

}  // namespace

void stress_adamw(Generator& generator, bool change_level) {
  Step step;
  step.weights[0] = generator.weights();
  const bool alike = generator.below(2) == 0;
  const auto coin = [&] { return generator.below(2) == 0; };
  for (const Weight& weight : step.weights[0]) {
    const Layer& layer = weight.layer;
    for (int k = 1; k < kAdamwTensors; ++k) step.weights[k].push_back(generator.like(layer, alike));
    step.steps.push_back(static_cast<double>(1 + generator.below(7)));
    step.plain.push_back({-0.1, 0.5});
    step.groups.push_back(layer.filters > 0 && coin() ? layer.filters : 1);
    step.rows.push_back(coin() ? random_resets(generator, layer.filters) : std::vector<float>{});
    const std::int64_t columns = step.groups.back() * layer.channels;
    step.columns.push_back(coin() ? random_resets(generator, columns) : std::vector<float>{});
  }
  step.has_maxima = coin();
  step.rule = {0.1,
               coin() ? 0.9 : 0.3,
               0.99,
               1e-8,
               coin() ? 1e-2 : 0.0,
               coin(),
               coin(),
               {},
               0,
               [](int threads) { return threads; },
               {}};
  if (coin()) step.rule.roots[0] = roots_of_floats;
  step.rule.rounding.fused = coin();
  for (std::int64_t& elements : step.rule.rounding.step) elements = 8 * generator.below(3);
  step.rule.rounding.threads = 1 + generator.below(3);
  step.rule.rounding.grain = 1 + generator.below(4000);
  const auto step_in = [&](int threads) { return stepped(step, threads); };
  require_the_same(step_in, change_level, "another step of Adam with other threads or instructions");
}

}  // namespace we::cpu
