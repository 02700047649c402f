#include <vector>

#include "cpu/operators.h"

namespace we::cpu {

void evolve(const Bank& bank, std::span<float> importance, const MatchingRule& matching, Rule rule,
            const Selection& selection, int threads) {
  std::vector<Segment> segments;
  segments.reserve(bank.layers.size());
  for (const Layer& layer : bank.layers) segments.push_back({layer.filters, layer.first_filter, layer.group});
  filter_importance(bank, importance, threads);
  thread_local Pairs pairs;
  match_filters(importance, segments, matching, selection, pairs, threads);
  crossover(bank, pairs, rule, threads);
}

}  // namespace we::cpu
