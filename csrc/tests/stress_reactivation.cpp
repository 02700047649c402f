#include <algorithm>

#include "cpu/reactivation.h"
#include "stress.h"

namespace we::cpu {
namespace {

constexpr std::int64_t kUnits = 30;

struct Reactivation {
  std::vector<Weight> tensors;
  std::vector<std::int32_t> units;
  std::vector<std::int64_t> rows, columns, groups, row_values, column_values;
  std::vector<std::uint8_t> revived;
  std::vector<float> given, targets;
  DrawRule rule{};
};

// Adds a table of units, some of which there are not; returns where it starts.
std::int64_t add_units(Generator& generator, std::int64_t count, std::vector<std::int32_t>* units) {
  const auto start = static_cast<std::int64_t>(units->size());
  for (std::int64_t i = 0; i < count; ++i) {
    units->push_back(generator.below(50) == 0 ? 1 << 30 : static_cast<std::int32_t>(generator.below(kUnits + 1) - 1));
  }
  return start;
}

Reactivation random_reactivation(Generator& generator) {
  Reactivation made;
  const auto value = [&] { return generator.below(kNumUnitValues); };
  for (Weight& weight : generator.weights()) {
    const Layer& layer = weight.layer;
    if (layer.filters == 0) continue;
    std::int64_t groups = 1 + generator.below(4);
    while (layer.filters % groups != 0) --groups;
    const bool has_rows = generator.below(3) > 0, has_columns = generator.below(3) > 0;
    const std::int64_t row = has_rows ? value() : kKeep;
    std::int64_t column = has_columns ? value() : kKeep;
    if (column == row && (column == kDraw || column == kGiven)) column = kZero;
    made.groups.push_back(groups);
    made.rows.push_back(has_rows ? add_units(generator, layer.filters, &made.units) : -1);
    made.columns.push_back(has_columns ? add_units(generator, groups * layer.channels, &made.units) : -1);
    made.row_values.push_back(row);
    made.column_values.push_back(column);
    if (row == kGiven || column == kGiven) made.given.push_back(static_cast<float>(generator.value()));
    if (generator.below(4) == 0) generator.stretch(weight);
    made.tensors.push_back(std::move(weight));
  }
  const std::int64_t share = generator.below(5);
  for (std::int64_t i = 0; i < kUnits; ++i) made.revived.push_back(generator.below(4) < share ? 1 : 0);
  for (std::size_t i = 0; i < made.units.size(); ++i) made.targets.push_back(static_cast<float>(generator.value()));
  if (generator.below(2) == 0) made.targets.clear();
  made.rule = {generator.below(3) > 0, made.targets, static_cast<std::uint64_t>(generator.below(1000)),
               static_cast<std::uint64_t>(generator.below(1000))};
  return made;
}

std::vector<unsigned char> reactivated(const Reactivation& call, int threads) {
  Copies copies(call.tensors);
  const UnitTensors tensors{copies.bank(), call.units,      call.rows,         call.columns,
                            call.groups,   call.row_values, call.column_values};
  check_bank(tensors.bank, kAnyGroup);
  check_unit_tensors(tensors, call.given);
  reactivate(tensors, std::vector<std::uint8_t>(call.revived.size()), call.given, call.rule, threads);
  require(copies.bytes() == Copies(call.tensors).bytes(), "something was written though nothing is revived");
  reactivate(tensors, call.revived, call.given, call.rule, threads);
  std::vector<unsigned char> all = copies.bytes();
  copies.check_guards();
  return all;
}

void stress_dormant(Generator& generator) {
  std::vector<float> activity;
  std::vector<std::int64_t> sizes;
  std::vector<std::int32_t> parents;
  for (std::int64_t layer = generator.below(5); layer >= 0; --layer) {
    sizes.push_back(1 + generator.below(20));
    for (std::int64_t i = 0; i < sizes.back(); ++i) {
      activity.push_back(static_cast<float>(generator.below(3)));
      parents.push_back(static_cast<std::int32_t>(generator.below(110) - 5));
    }
  }
  std::vector<std::uint8_t> own(activity.size(), 77), all(activity.size(), 77);
  dormant_units(activity, sizes, {}, 0.1, own);
  dormant_units(activity, sizes, parents, 0.1, all);
  for (std::size_t i = 0; i < own.size(); ++i) {
    require(own[i] == (activity[i] == 0 ? 1 : 0), "another unit is dormant");
    require(all[i] <= 1 && all[i] >= own[i], "a parent has woken its unit");
  }
}

}  // namespace

void stress_reactivation(Generator& generator, bool change_level) {
  stress_dormant(generator);
  const Reactivation call = random_reactivation(generator);
  const auto result_in = [&](int threads) { return reactivated(call, threads); };
  require_the_same(result_in, change_level, "other fresh weights with other threads or instructions");
}

}  // namespace we::cpu
