#include "cpu/evolution.h"

namespace we::cpu {

void evolve(const Bank& bank, std::span<float> importance, const MatchingRule& matching, Rule rule,
            const Selection& selection, int threads) {
  filter_importance(bank, importance, threads);
  thread_local Pairs pairs;
  match_filters(importance, segments_of(bank.layers), matching, selection, pairs, threads);
  crossover(bank, pairs, rule, threads);
}

}  // namespace we::cpu
