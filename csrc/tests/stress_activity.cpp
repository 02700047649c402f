#include <cmath>

#include "cpu/activity.h"
#include "stress.h"

namespace we::cpu {
namespace {

// A weight's filters as channels, walked through as they lie.
Activation activation_of(const Weight& weight) {
  const Layer& l = weight.layer;
  return {l, l.filters, l.filters > 1 ? l.filter_stride : 0, 1, l.filters};
}

// The same in several columns for each channel, where it is a contiguous [channels, kernel2] at each position.
Activation in_runs(const Weight& weight) {
  Activation activation = activation_of(weight);
  Layer& l = activation.positions;
  activation.run = l.kernel2;
  activation.columns *= l.kernel2;
  activation.column_stride = 1;
  l.kernel2 = 1, l.stride2 = 0;
  return activation;
}

template <class S>
std::vector<S> added(const Weight& weight, const Activation& activation, bool overwrite, int threads) {
  std::unique_ptr<unsigned char[]> copy(new unsigned char[weight.bytes]);  // of exactly its bytes
  std::memcpy(copy.get(), weight.memory.get(), weight.bytes);
  check_activation(activation, copy.get());
  std::vector<S> sums(static_cast<std::size_t>(activation.channels), S{7});
  add_activity(activation, copy.get(), std::span<S>(sums), overwrite, threads);
  require(std::memcmp(copy.get(), weight.memory.get(), weight.bytes) == 0, "an activation was written");
  return sums;
}

void stress_one(const Weight& weight, const Activation& activation, bool change_level) {
  const auto wide = [&](int threads) { return added<double>(weight, activation, true, threads); };
  require_the_same(wide, change_level, "another activity with other threads or instructions");
  const auto narrow = [&](int threads) { return added<float>(weight, activation, false, threads); };
  require_the_same(narrow, change_level, "another activity in float with other threads or instructions");
  const std::vector<double> sums = wide(1);
  const std::vector<float> more = narrow(1);
  for (std::size_t c = 0; c < sums.size(); ++c) {
    require(sums[c] >= 0, "a sum of magnitudes is negative");
    require(std::abs(static_cast<double>(more[c]) - (sums[c] + 7)) <= 1e-6 * (sums[c] + 7), "sums were not added to");
  }
}

}  // namespace

void stress_activity(Generator& generator, bool change_level) {
  for (const Weight& weight : generator.weights()) {
    const Layer& l = weight.layer;
    if (l.filters == 0) continue;
    stress_one(weight, activation_of(weight), change_level);
    if (l.filters > 1 && l.kernel2 > 1 && l.stride2 == 1 && l.filter_stride == l.kernel2) {
      stress_one(weight, in_runs(weight), change_level);
      const std::vector<double> apart = added<double>(weight, activation_of(weight), true, 1);
      const std::vector<double> together = added<double>(weight, in_runs(weight), true, 1);
      for (std::size_t c = 0; c < apart.size(); ++c) {
        require(std::abs(apart[c] - together[c]) <= 1e-5 * apart[c], "other sums of runs taken together");
      }
    }
  }
}

}  // namespace we::cpu
