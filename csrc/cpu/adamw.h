#pragma once

#include <cstdint>
#include <span>

#include "cpu/bank.h"
#include "cpu/simd.h"

// AdamW with an age per row and column, for checked arguments; what cpu/evolution.h says of threads holds here, too.
namespace we::cpu {

// Parameters, gradients, first and second moments and, or empty, maxima: layer by layer of equal sizes and dtypes.
struct AdamwBanks {
  Bank banks[kAdamwTensors];
  std::span<const double> steps;             // [L], this step's number
  std::span<const Correction> plain;         // [L], of elements that were never reset
  std::span<const std::int64_t> groups;      // [L]
  std::span<const float* const> row_resets;  // [L], each null or [filters]: the step at which a row was reset, 0: never
  std::span<const float* const> column_resets;  // [L], each null or [groups * channels]
};

// Throws std::invalid_argument unless the banks fit together; they have been checked one by one.
void check_adamw(const AdamwBanks& banks);

void unit_adamw(const AdamwBanks& banks, const AdamwRule& rule, int threads);

}  // namespace we::cpu
