#include <cmath>

#include "cpu/evolution.h"
#include "stress.h"

namespace we::cpu {
namespace {

struct Result {
  std::vector<float> importance, threshold;
  std::vector<std::int32_t> donor, inferior, starvation;
  std::vector<unsigned char> memory;

  bool operator==(const Result&) const = default;
};

// Evolves copies of the weights, in one call or operator by operator.
Result evolved(const std::vector<Weight>& weights, Rule rule, int threads, bool in_one) {
  Result result;
  Copies copies(weights, 2);
  const std::vector<Segment> segments = segments_of(copies.layers());
  result.importance.assign(static_cast<std::size_t>(copies.filters()), NAN);
  result.donor.assign(static_cast<std::size_t>(copies.filters()), -77);
  result.threshold.assign(2, NAN);
  result.inferior.assign(segments.size(), -77);
  result.starvation.assign(2, 0);
  const double rates[] = {0.5, 0.8};
  const double ratios[] = {0.7, -1.0};
  const std::uint8_t zero_is_inferior[] = {1, 0};
  const MatchingRule matching{rates, ratios, zero_is_inferior, result.starvation.data(), 1.5};
  const Selection selection{result.donor, result.threshold, result.inferior};
  const Bank bank = copies.bank();
  require(check_bank(bank, 2) == copies.filters(), "check_bank() counts other filters");
  if (in_one) {
    evolve(bank, result.importance, matching, rule, selection, threads);
  } else {
    filter_importance(bank, result.importance, threads);
    Pairs pairs;
    match_filters(result.importance, segments, matching, selection, pairs, threads);
    crossover(bank, result.donor, rule, threads);
  }
  for (const float importance : result.importance) require(importance >= 0, "an importance was not written");
  result.memory = copies.bytes();
  copies.check_guards();
  return result;
}

}  // namespace

void stress_evolution(Generator& generator, bool change_level) {
  const std::vector<Weight> weights = generator.weights();
  const Rule rule = generator.below(2) == 0 ? Rule::paper : Rule::released;
  const auto evolve_in = [&](int threads) { return evolved(weights, rule, threads, threads != 3); };
  require_the_same(evolve_in, change_level, "another evolution with other threads, instructions or operators");
}

}  // namespace we::cpu
