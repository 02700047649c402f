#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "cpu/bank.h"
#include "cpu/simd.h"
#include "rule.h"

// The operators of Weight Evolution, as the reference backend defines them, for checked arguments, on up to `threads`
// threads. Results do not depend on the number of threads or the instruction set. Where another thread changes values
// meanwhile, results are any, but no other memory is read or written.
namespace we::cpu {

struct MatchingRule {
  std::span<const double> rates;                   // [G]
  std::span<const double> local_ratios;            // [G], negative: there is no local selection
  std::span<const std::uint8_t> zero_is_inferior;  // [G], or empty for no group: importance 0 is below any threshold
  std::int32_t* starvation;                        // [G], or null: the starvation rule is off
  double starvation_limit;
};

struct Selection {
  std::span<std::int32_t> donor;     // [F]
  std::span<float> threshold;        // [G]
  std::span<std::int32_t> inferior;  // [L]
};

// The matched filters: count[layer] of them, from list[first_filter of the layer] on.
struct Pairs {
  std::vector<Pair> list;           // [F]
  std::vector<std::int32_t> count;  // [L]
};

void filter_importance(const Bank& bank, std::span<float> importance, int threads);

// Also fills `pairs`; what it held is lost.
void match_filters(std::span<const float> importance, std::span<const Segment> segments, const MatchingRule& rule,
                   const Selection& selection, Pairs& pairs, int threads);

void crossover(const Bank& bank, const Pairs& pairs, Rule rule, int threads);

// Donors outside [0, filters of the layer) count as -1.
void crossover(const Bank& bank, std::span<const std::int32_t> donor, Rule rule, int threads);

void evolve(const Bank& bank, std::span<float> importance, const MatchingRule& matching, Rule rule,
            const Selection& selection, int threads);

}  // namespace we::cpu
