#pragma once

#include <cstdint>
#include <span>

#include "cpu/bank.h"

// The operators of filter grafting, for checked arguments; what cpu/evolution.h says of threads holds here, too.
namespace we::cpu {

// Counts int64 [layers, bins], or [filters, bins] when per filter. The first count is -1 where an element is not
// finite.
void count_bins(const Bank& bank, int bins, bool per_filter, std::span<std::int64_t> counts, int threads);

// Throws std::invalid_argument unless the networks have the same filters, channels, numbers of elements and dtypes;
// they have been checked one by one.
void check_networks(std::span<const Bank> networks);

// The networks have passed check_networks() and share no memory. `coefficients` has `written` rows of as many columns
// as there are layers, or filters when per filter.
void blend(std::span<const Bank> networks, std::span<const float> coefficients, int written, bool per_filter,
           int threads);

}  // namespace we::cpu
