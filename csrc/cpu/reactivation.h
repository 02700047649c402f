#pragma once

#include <cstdint>
#include <span>

#include "cpu/bank.h"

// The operators of unit reactivation, for checked arguments; what cpu/evolution.h says of threads holds here, too.
namespace we::cpu {

// What is written to an element; a value's number is its place in VALUES of we_kernels' reactivation/plan.py.
enum UnitValueKind : std::int64_t { kKeep, kZero, kOne, kDraw, kMean, kMeanOrOne, kGiven, kNumUnitValues };

// The fields of UnitTensors in we_kernels' reactivation/rule.py, which explains them.
struct UnitTensors {
  Bank bank;
  std::span<const std::int32_t> units;  // one outside of the units that there are is none
  std::span<const std::int64_t> rows;
  std::span<const std::int64_t> columns;
  std::span<const std::int64_t> groups;
  std::span<const std::int64_t> row_values;
  std::span<const std::int64_t> column_values;
};

struct DrawRule {
  bool scaled;
  std::span<const float> targets;  // like the units; or empty: the mean of those that are not revived
  std::uint64_t seed;
  std::uint64_t step;
};

// Fills in one byte, 0 or 1, per unit. Sizes are those of the layers; parents are empty or one per unit.
void dormant_units(std::span<const float> activity, std::span<const std::int64_t> sizes,
                   std::span<const std::int32_t> parents, double threshold, std::span<std::uint8_t> dormant);

// Throws std::invalid_argument unless tables and numbers fit the bank, which has been checked.
void check_unit_tensors(const UnitTensors& tensors, std::span<const float> given);

void reactivate(const UnitTensors& tensors, std::span<const std::uint8_t> revived, std::span<const float> given,
                const DrawRule& rule, int threads);

}  // namespace we::cpu
