#include "cpu/adamw.h"

#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <string>
#include <vector>

#include "cpu/tasks.h"

namespace we::cpu {
namespace {

// Corrections of all rows or columns of one parameter: step sizes, then what divides the roots.
class CorrectionsOf {
 public:
  CorrectionsOf(const AdamwRule& rule, double step, Correction plain, const float* resets, std::int64_t size,
                bool is_double) {
    if (is_double) fill(rule, step, plain, resets, size, doubles_);
    else fill(rule, step, plain, resets, size, floats_);
  }

  const void* data() const { return doubles_.empty() ? static_cast<const void*>(floats_.data()) : doubles_.data(); }

 private:
  template <class A>
  static void fill(const AdamwRule& rule, double step, Correction plain, const float* resets, std::int64_t size,
                   std::vector<A>& out) {
    out.resize(2 * static_cast<std::size_t>(size));
    double last = step;
    Correction correction = plain;
    for (std::int64_t i = 0; i < size; ++i) {
      const double age = resets == nullptr ? step : std::max(step - static_cast<double>(resets[i]), 1.0);
      if (age != last) {
        last = age;
        correction = age == step ? plain : at(rule, age);
      }
      out[static_cast<std::size_t>(i)] = static_cast<A>(correction.step_size);
      out[static_cast<std::size_t>(size + i)] = static_cast<A>(correction.root);
    }
  }

  // As Python computes torch's expressions.
  static Correction at(const AdamwRule& rule, double age) {
    return {rule.lr / (1 - std::pow(rule.beta1, age)) * -1, std::pow(1 - std::pow(rule.beta2, age), 0.5)};
  }

  std::vector<float> floats_;
  std::vector<double> doubles_;
};

}  // namespace

void check_adamw(const AdamwBanks& banks) {
  const std::span<const Layer> layers = banks.banks[0].layers;
  const auto refuse = [](const std::string& what) { throw std::invalid_argument(what); };
  for (const std::size_t size : {banks.steps.size(), banks.plain.size(), banks.groups.size(), banks.row_resets.size(),
                                 banks.column_resets.size()}) {
    if (size != layers.size()) refuse("steps, corrections, groups and resets need one entry a layer");
  }
  for (int k = 1; k < kAdamwTensors; ++k) {
    const std::span<const Layer> others = banks.banks[k].layers;
    if (k == kAdamwTensors - 1 && others.empty()) continue;
    if (others.size() != layers.size()) refuse("the tables have different numbers of layers");
    for (std::size_t i = 0; i < layers.size(); ++i) {
      if (!same_sizes(layers[i], others[i])) {
        refuse("layer " + std::to_string(i) + " differs in size or dtype from table to table");
      }
    }
  }
  for (std::size_t i = 0; i < layers.size(); ++i) {
    if (banks.groups[i] < 1 || layers[i].filters % banks.groups[i] != 0) {
      refuse("groups of layer " + std::to_string(i) + " must divide its filters");
    }
  }
}

void unit_adamw(const AdamwBanks& banks, const AdamwRule& rule, int threads) {
  const std::span<const Layer> layers = banks.banks[0].layers;
  const bool has_maxima = !banks.banks[kAdamwTensors - 1].layers.empty();
  const std::int64_t passes = has_maxima ? 9 : 7;  // all are read, all but the gradient are written
  std::vector<AdamwTensors> tensors(layers.size());
  std::vector<CorrectionsOf> corrections;
  corrections.reserve(2 * layers.size());
  std::int64_t total = 0;
  for (std::size_t i = 0; i < layers.size(); ++i) {
    AdamwTensors& own = tensors[i];
    const Layer& layer = layers[i];
    for (int k = 0; k < kAdamwTensors; ++k) {
      const bool there = k < kAdamwTensors - 1 || has_maxima;
      own.layers[k] = there ? &banks.banks[k].layers[i] : nullptr;
      own.data[k] = there ? banks.banks[k].weights[i] : nullptr;
    }
    own.plain = banks.plain[i];
    own.groups = banks.groups[i];
    own.rows = own.columns = nullptr;
    if (banks.row_resets[i] != nullptr || banks.column_resets[i] != nullptr) {
      const auto of = [&](const float* resets, std::int64_t size) {
        const bool is_double = layer.dtype == kFloat64;
        return corrections.emplace_back(rule, banks.steps[i], own.plain, resets, size, is_double).data();
      };
      own.rows = of(banks.row_resets[i], layer.filters);
      own.columns = of(banks.column_resets[i], own.groups * layer.channels);
    }
    total += passes * bytes_of(layer);
  }
  Slices slices(threads, total);
  for (std::size_t i = 0; i < layers.size(); ++i) {
    slices.add(static_cast<std::int32_t>(i), layers[i].filters, passes * bytes_per_filter(layers[i]));
  }
  const Kernels& simd = kernels();
  slices.run([&](const Slice& slice) { simd.adamw(tensors[slice.layer], rule, slice.first, slice.count); });
}

}  // namespace we::cpu
