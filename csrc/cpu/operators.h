#pragma once

#include <cstdint>
#include <span>

#include "cpu/bank.h"
#include "cpu/simd.h"
#include "layout.h"

namespace we::cpu {

// Filters of consecutive layers that are matched together.
struct Segment {
  std::int64_t filters;
  std::int64_t first;
  std::int64_t group;
};

struct MatchingRule {
  std::span<const double> rates;         // [G]
  std::span<const double> local_ratios;  // [G], negative: no local selection
  // [G], or empty: all false. Whether importance 0 counts as below any threshold.
  std::span<const std::uint8_t> zero_is_inferior;
  std::int32_t* starvation;              // [G], or null: the rule is off
  double starvation_limit;
};

struct Selection {
  std::span<std::int32_t> donor;     // [F]
  std::span<float> threshold;        // [G]
  std::span<std::int32_t> inferior;  // [L]
};

// Throws std::invalid_argument, naming layer and field, unless the kernels can work on the bank without reading or
// writing anything but its elements: sizes, strides, dtypes, groups in [0, groups), first_filter, null and misaligned
// addresses. Returns the number of filters.
std::int64_t check_bank(const Bank& bank, std::int64_t groups);
std::int64_t check_segments(std::span<const Segment> segments, std::int64_t groups);

// The operators of we_kernels/backends/reference, for checked arguments, on up to `threads` threads. Results do not
// depend on the number of threads or the instruction set. Where another thread changes values meanwhile, results are
// any, but no other memory is read or written.
void filter_importance(const Bank& bank, std::span<float> importance, int threads);
// Also fills `pairs`; what it held is lost.
void match_filters(std::span<const float> importance, std::span<const Segment> segments, const MatchingRule& rule,
                   const Selection& selection, Pairs& pairs, int threads);
void crossover(const Bank& bank, const Pairs& pairs, Rule rule, int threads);
// Donors outside [0, filters of the layer) count as -1.
void crossover(const Bank& bank, std::span<const std::int32_t> donor, Rule rule, int threads);
void evolve(const Bank& bank, std::span<float> importance, const MatchingRule& matching, Rule rule,
            const Selection& selection, int threads);

// int64 [layers, bins], or [filters, bins] when per filter. The first count is -1 where an element is not finite.
void count_bins(const Bank& bank, int bins, bool per_filter, std::span<std::int64_t> counts, int threads);
// `networks`: banks of the same filters, channels, numbers of elements and dtypes, that share no memory. `coefficients`
// has `written` rows of as many columns as there are layers, or filters when per filter.
void blend(std::span<const Bank> networks, std::span<const float> coefficients, int written, bool per_filter,
           int threads);
// Throws std::invalid_argument unless the networks are so; they have been checked one by one.
void check_networks(std::span<const Bank> networks);

}  // namespace we::cpu
