#include "cpu/reactivation.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "cpu/simd.h"
#include "cpu/tasks.h"
#include "places.h"

namespace we::cpu {
namespace {

// Set in the number of a drawn tensor, so that no other operator draws the same numbers from a seed.
constexpr std::uint32_t kStream = std::uint32_t{1} << 31;

constexpr std::int64_t kMaxElements = std::numeric_limits<std::int32_t>::max();

// Drawing an element takes about as long as reading so many bytes.
constexpr std::int64_t kDrawBytes = 32;

// The rows of a tensor, or its columns.
struct Axis {
  Axis(const UnitTensors& tensors, std::int64_t start, std::int64_t count, std::int64_t kind,
       std::span<const std::uint8_t> revived)
      : kind(kind), start(start), hit(static_cast<std::size_t>(count)), alive(hit.size()) {
    if (start < 0) return;
    const auto units = tensors.units.subspan(static_cast<std::size_t>(start), hit.size());
    for (std::size_t i = 0; i < units.size(); ++i) {
      if (units[i] < 0 || static_cast<std::size_t>(units[i]) >= revived.size()) continue;
      const bool anew = revived[static_cast<std::size_t>(units[i])] != 0;
      alive[i] = anew ? 0 : 1;
      hit[i] = anew && kind != kKeep ? 1 : 0;
    }
    hits = std::count(hit.begin(), hit.end(), 1);
  }

  std::int64_t kind;
  std::int64_t start;               // among the units
  std::vector<std::uint8_t> hit;    // 1: is written
  std::vector<std::uint8_t> alive;  // 1: of a unit that is not revived
  std::int64_t hits = 0;
};

// A sum over a tensor, with the arrays that it refers to.
class Sum {
 public:
  // Of the elements that are in a row and in a column with a 1.
  Sum(const Layer& layer, const void* tensor, std::int64_t groups, bool magnitudes, std::vector<std::uint8_t> rows,
      std::span<const std::uint8_t> columns)
      : rows_(std::move(rows)),
        totals_(rows_.size()),
        counts_(rows_.size()),
        sums_{&layer,     tensor,         rows_.data(),  nullptr, layer.filters / groups,
              magnitudes, totals_.data(), counts_.data()} {
    if (std::find(columns.begin(), columns.end(), 0) == columns.end()) return;
    elements_.reserve(columns.size() * static_cast<std::size_t>(elements_of(layer) / layer.channels));
    for (std::size_t c = 0; c < columns.size(); c += static_cast<std::size_t>(layer.channels)) {
      add_elements(layer, columns.subspan(c, static_cast<std::size_t>(layer.channels)));
    }
    sums_.elements = elements_.data();
  }
  Sum(const Sum&) = delete;
  Sum& operator=(const Sum&) = delete;

  const RowSums& rows() const { return sums_; }

  // The total of all rows, from the first to the last.
  double total() const {
    double sum = 0;
    for (const double total : totals_) sum += total;
    return sum;
  }

  std::int64_t count() const {
    std::int64_t all = 0;
    for (const std::int64_t count : counts_) all += count;
    return all;
  }

 private:
  // Appends the elements of one group's rows.
  void add_elements(const Layer& layer, std::span<const std::uint8_t> columns) {
    const std::size_t start = elements_.size();
    elements_.resize(start + static_cast<std::size_t>(elements_of(layer)));
    const bool dense = is_dense(layer);
    std::size_t next = start;
    for (std::int64_t c = 0; c < layer.channels; ++c) {
      const std::int32_t kept = columns[static_cast<std::size_t>(c)] != 0 ? -1 : 0;
      for (std::int64_t i = 0; i < layer.kernel0; ++i) {
        for (std::int64_t j = 0; j < layer.kernel1; ++j) {
          for (std::int64_t k = 0; k < layer.kernel2; ++k, ++next) {
            const std::int64_t offset =
                c * layer.channel_stride + i * layer.stride0 + j * layer.stride1 + k * layer.stride2;
            elements_[dense ? start + static_cast<std::size_t>(offset) : next] = kept;
          }
        }
      }
    }
  }

  std::vector<std::uint8_t> rows_;
  std::vector<std::int32_t> elements_;
  std::vector<double> totals_;
  std::vector<std::int64_t> counts_;
  RowSums sums_;
};

std::vector<std::uint8_t> inverse(const std::vector<std::uint8_t>& flags) {
  std::vector<std::uint8_t> result(flags.size());
  for (std::size_t i = 0; i < flags.size(); ++i) result[i] = flags[i] != 0 ? 0 : 1;
  return result;
}

// A tensor of which something is written. All that it needs is allocated before anything is.
class Target {
 public:
  Target(const Layer& layer, void* tensor, std::int64_t groups, Axis rows, Axis columns, std::uint32_t stream,
         float given, const DrawRule& rule)
      : layer_(layer),
        tensor_(tensor),
        groups_(groups),
        rows_(std::move(rows)),
        columns_(std::move(columns)),
        given_(given),
        rule_(rule) {
    const double length = static_cast<double>(elements_of(layer));
    bound_ = 1 / std::sqrt(length);
    draws_ = {rule.seed, rule.step, stream | kStream, static_cast<float>(bound_)};
    for (const Axis* axis : {&rows_, &columns_}) {
      if (axis->kind == kDraw) scales_.resize(axis->hit.size(), 1.0f);
      if (axis->hits == 0) continue;
      if (axis->kind == kMean || axis->kind == kMeanOrOne) sum_others();
      if (axis->kind == kDraw && rule.scaled && rule.targets.empty()) sum_alive(*axis);
    }
    for (std::int64_t g = 0; g < groups; ++g) {
      starts_.push_back(static_cast<std::int64_t>(channels_.size()));
      for (std::int64_t c = 0; c < layer.channels; ++c) {
        if (columns_.hit[static_cast<std::size_t>(g * layer.channels + c)] != 0) {
          channels_.push_back(static_cast<std::int32_t>(c));
        }
      }
    }
    starts_.push_back(static_cast<std::int64_t>(channels_.size()));
  }

  const Layer& layer() const { return layer_; }
  const Sum* others() const { return others_.get(); }
  const Sum* alive() const { return alive_.get(); }

  // The rows or columns that are drawn to be scaled; null if there are none.
  const Axis* scaled() const {
    const Axis* axis = drawn();
    return axis != nullptr && axis->hits > 0 && rule_.scaled ? axis : nullptr;
  }

  // The sums are known: returns whether the mean is to be that of all elements, because all finite ones are written.
  bool needs_all() const {
    return others_ != nullptr && others_->count() == 0 && (rows_.kind == kMean || columns_.kind == kMean);
  }

  // Allocates the sum of all finite elements.
  const Sum* sum_all() {
    all_ = std::make_unique<Sum>(layer_, tensor_, groups_, false, std::vector<std::uint8_t>(rows_.hit.size(), 1),
                                 std::span<const std::uint8_t>{});
    return all_.get();
  }

  // The sums are known: finds the norm that each scaled row or column gets without targets; NaN if none is alive.
  void find_norm() {
    if (alive_ == nullptr) return;
    const std::vector<std::uint8_t>& alive = scaled()->alive;
    norm_ = alive_->total() / static_cast<double>(std::count(alive.begin(), alive.end(), 1));
  }

  // Finds out how much row or column `place` of the scaled ones is scaled.
  void scale(const Kernels& simd, std::int64_t place) {
    const Axis& axis = *scaled();
    const auto at = static_cast<std::size_t>(place);
    if (axis.hit[at] == 0) return;
    const double target =
        rule_.targets.empty() ? norm_ : static_cast<double>(rule_.targets[static_cast<std::size_t>(axis.start) + at]);
    if (!(target > 0) || !std::isfinite(target)) return;
    const auto drawn = static_cast<double>(norm(simd, place));
    if (drawn > 0) scales_[at] = static_cast<float>(target / (drawn * (bound_ * 0x1p-23)));
  }

  // What the loops write, once the sums and scales are known.
  UnitWrites writes() const {
    return {&layer_,
            tensor_,
            rows_.hit.data(),
            channels_.data(),
            starts_.data(),
            layer_.filters / groups_,
            columns_.kind == kZero,
            value(rows_.kind),
            value(columns_.kind),
            draws_};
  }

  // Costs of a row, on average, in bytes that could be read meanwhile.
  std::int64_t write_bytes() const {
    constexpr std::int64_t line = 64;  // is read and written, for a column
    const std::int64_t item = kItemSize[layer_.dtype], elements = elements_of(layer_);
    const std::int64_t kernel = elements / layer_.channels;
    const std::int64_t row = elements * (rows_.kind == kDraw ? kDrawBytes : item);
    const std::int64_t column = kernel * (columns_.kind == kDraw ? kDrawBytes : item) + 2 * line;
    return (rows_.hits * row + columns_.hits * column * (layer_.filters / groups_)) / layer_.filters;
  }

  std::int64_t scale_bytes() const { return kDrawBytes * scaled()->hits * per_place() / places(); }
  std::int64_t places() const { return static_cast<std::int64_t>(scaled()->hit.size()); }

 private:
  const Axis* drawn() const { return rows_.kind == kDraw ? &rows_ : columns_.kind == kDraw ? &columns_ : nullptr; }

  std::int64_t per_place() const { return layer_.filters * elements_of(layer_) / places(); }

  void sum_others() {
    if (others_ != nullptr) return;
    others_ = std::make_unique<Sum>(layer_, tensor_, groups_, false, inverse(rows_.hit), inverse(columns_.hit));
  }

  void sum_alive(const Axis& axis) {
    const bool by_row = &axis == &rows_;
    std::vector<std::uint8_t> rows = by_row ? axis.alive : std::vector<std::uint8_t>(rows_.hit.size(), 1);
    const std::span<const std::uint8_t> columns = by_row ? std::span<const std::uint8_t>{} : axis.alive;
    alive_ = std::make_unique<Sum>(layer_, tensor_, groups_, true, std::move(rows), columns);
  }

  // Of what a row or column draws, in units of bound * 2^-23.
  std::int64_t norm(const Kernels& simd, std::int64_t place) const {
    const std::int64_t elements = elements_of(layer_);
    if (drawn() == &rows_) return simd.drawn_norm(draws_, static_cast<std::uint32_t>(place * elements), elements);
    const std::int64_t rows = layer_.filters / groups_, kernel = elements / layer_.channels;
    const std::int64_t first = place / layer_.channels * rows, channel = place % layer_.channels;
    std::int64_t sum = 0;
    for (std::int64_t r = first; r < first + rows; ++r) {
      sum += simd.drawn_norm(draws_, static_cast<std::uint32_t>(r * elements + channel * kernel), kernel);
    }
    return sum;
  }

  UnitValue value(std::int64_t kind) const {
    switch (kind) {
      case kOne:
        return {1, nullptr};
      case kDraw:
        return {0, scales_.data()};
      case kMean:
      case kMeanOrOne:
        return {mean(kind), nullptr};
      case kGiven:
        return {static_cast<double>(given_), nullptr};
      default:
        return {0, nullptr};
    }
  }

  double mean(std::int64_t kind) const {
    const Sum* sum = kind == kMean && all_ != nullptr ? all_.get() : others_.get();
    if (sum == nullptr || sum->count() == 0) return kind == kMean ? 0.0 : 1.0;
    return sum->total() / static_cast<double>(sum->count());
  }

  const Layer& layer_;
  void* tensor_;
  std::int64_t groups_;
  Axis rows_;
  Axis columns_;
  float given_;
  const DrawRule& rule_;
  double bound_ = 0;
  Draws draws_{};
  std::unique_ptr<Sum> others_;  // the finite elements that are not written
  std::unique_ptr<Sum> alive_;   // the magnitudes of units that are not revived
  double norm_ = 0;              // their mean
  std::unique_ptr<Sum> all_;     // the finite elements
  std::vector<float> scales_;
  std::vector<std::int32_t> channels_;
  std::vector<std::int64_t> starts_;
};

std::vector<std::unique_ptr<Target>> find_targets(const UnitTensors& tensors, std::span<const std::uint8_t> revived,
                                                  std::span<const float> given, const DrawRule& rule) {
  std::vector<std::unique_ptr<Target>> targets;
  std::uint32_t stream = 0;
  std::size_t number = 0;
  for (std::size_t i = 0; i < tensors.bank.layers.size(); ++i) {
    const Layer& layer = tensors.bank.layers[i];
    const std::int64_t kinds[] = {tensors.row_values[i], tensors.column_values[i]};
    const bool draws = kinds[0] == kDraw || kinds[1] == kDraw;
    const bool has_number = kinds[0] == kGiven || kinds[1] == kGiven;
    const std::int64_t groups = tensors.groups[i];
    Axis rows(tensors, tensors.rows[i], layer.filters, kinds[0], revived);
    Axis columns(tensors, tensors.columns[i], groups * layer.channels, kinds[1], revived);
    if (rows.hits + columns.hits > 0) {
      targets.push_back(std::make_unique<Target>(layer, tensors.bank.weights[i], groups, std::move(rows),
                                                 std::move(columns), stream, has_number ? given[number] : 0.0f, rule));
    }
    stream += draws ? 1 : 0;
    number += has_number ? 1 : 0;
  }
  return targets;
}

std::int64_t sum_bytes(std::span<const Sum* const> sums) {
  std::int64_t total = 0;
  for (const Sum* sum : sums) total += bytes_of(*sum->rows().layer);
  return total;
}

void run_sums(std::span<const Sum* const> sums, int threads, std::int64_t call) {
  Slices slices(threads, sum_bytes(sums), call);
  for (std::size_t i = 0; i < sums.size(); ++i) {
    const Layer& layer = *sums[i]->rows().layer;
    slices.add(static_cast<std::int32_t>(i), layer.filters, bytes_per_filter(layer));
  }
  const Kernels& simd = kernels();
  slices.run([&](const Slice& slice) {
    simd.sum_rows(sums[static_cast<std::size_t>(slice.layer)]->rows(), slice.first, slice.count);
  });
}

void run_scales(std::span<Target* const> targets, int threads, std::int64_t call) {
  std::int64_t total = 0;
  for (const Target* target : targets) total += target->scale_bytes() * target->places();
  Slices slices(threads, total, call);
  for (std::size_t i = 0; i < targets.size(); ++i) {
    slices.add(static_cast<std::int32_t>(i), targets[i]->places(), targets[i]->scale_bytes());
  }
  const Kernels& simd = kernels();
  slices.run([&](const Slice& slice) {
    Target& target = *targets[static_cast<std::size_t>(slice.layer)];
    for (std::int64_t p = slice.first; p < slice.first + slice.count; ++p) target.scale(simd, p);
  });
}

void run_writes(std::span<const std::unique_ptr<Target>> targets, int threads, std::int64_t call) {
  std::vector<UnitWrites> writes;
  std::int64_t total = 0;
  for (const auto& target : targets) {
    writes.push_back(target->writes());
    total += target->write_bytes() * target->layer().filters;
  }
  Slices slices(threads, total, call);
  for (std::size_t i = 0; i < targets.size(); ++i) {
    slices.add(static_cast<std::int32_t>(i), targets[i]->layer().filters, targets[i]->write_bytes());
  }
  const Kernels& simd = kernels();
  slices.run([&](const Slice& slice) {
    simd.write_rows(writes[static_cast<std::size_t>(slice.layer)], slice.first, slice.count);
  });
}

[[noreturn]] void refuse(std::size_t tensor, const std::string& what) {
  throw std::invalid_argument("tensor " + std::to_string(tensor) + ": " + what);
}

void check_axis(std::size_t tensor, const char* axis, std::int64_t kind, std::int64_t start, std::int64_t count,
                std::int64_t units) {
  if (kind < 0 || kind >= kNumUnitValues) refuse(tensor, std::string("the value of its ") + axis + " is not in [0, 7)");
  if (start == -1) {
    if (kind != kKeep) refuse(tensor, std::string("its ") + axis + " have a value, but no units");
  } else if (start < 0 || start > units || count > units - start) {
    refuse(tensor, std::string("its ") + axis + " are not among the units");
  }
}

}  // namespace

void dormant_units(std::span<const float> activity, std::span<const std::int64_t> sizes,
                   std::span<const std::int32_t> parents, double threshold, std::span<std::uint8_t> dormant) {
  std::size_t first = 0;
  for (const std::int64_t size : sizes) {
    const auto own = activity.subspan(first, static_cast<std::size_t>(size));
    double sum = 0;
    for (const float a : own) sum += static_cast<double>(a);
    const double mean = sum / static_cast<double>(size);
    const double most = threshold * (mean + 1e-9);
    for (const float a : own) dormant[first++] = std::isfinite(mean) && static_cast<double>(a) <= most ? 1 : 0;
  }
  if (parents.empty()) return;
  const std::vector<std::uint8_t> own(dormant.begin(), dormant.end());
  for (std::size_t i = 0; i < dormant.size(); ++i) {
    std::size_t unit = i;
    // Each parent is of an earlier layer, so that there are fewer of them than layers.
    for (std::size_t depth = 1; depth < sizes.size(); ++depth) {
      if (parents[unit] < 0 || static_cast<std::size_t>(parents[unit]) >= own.size()) break;
      unit = static_cast<std::size_t>(parents[unit]);
      dormant[i] |= own[unit];
    }
  }
}

void check_unit_tensors(const UnitTensors& tensors, std::span<const float> given) {
  const std::size_t count = tensors.bank.layers.size();
  for (const auto& entries :
       {tensors.rows, tensors.columns, tensors.groups, tensors.row_values, tensors.column_values}) {
    if (entries.size() != count)
      throw std::invalid_argument("rows, columns, groups and values need one entry a tensor");
  }
  const auto units = static_cast<std::int64_t>(tensors.units.size());
  std::size_t numbers = 0;
  for (std::size_t i = 0; i < count; ++i) {
    const Layer& layer = tensors.bank.layers[i];
    const std::int64_t groups = tensors.groups[i], row = tensors.row_values[i], column = tensors.column_values[i];
    if (layer.filters == 0) refuse(i, "it has no rows");
    if (layer.filters > kMaxElements / elements_of(layer)) refuse(i, "it has more than 2^31 - 1 elements");
    if (groups < 1 || layer.filters % groups != 0) refuse(i, "its groups do not divide its rows");
    check_axis(i, "rows", row, tensors.rows[i], layer.filters, units);
    check_axis(i, "columns", column, tensors.columns[i], groups * layer.channels, units);
    if (row == kDraw && column == kDraw) refuse(i, "rows and columns are drawn, not both");
    numbers += row == kGiven || column == kGiven ? 1 : 0;
  }
  if (given.size() != numbers) {
    throw std::invalid_argument("given has " + std::to_string(given.size()) + " elements, not " +
                                std::to_string(numbers));
  }
}

void reactivate(const UnitTensors& tensors, std::span<const std::uint8_t> revived, std::span<const float> given,
                const DrawRule& rule, int threads) {
  if (std::all_of(revived.begin(), revived.end(), [](std::uint8_t anew) { return anew == 0; })) return;
  const std::vector<std::unique_ptr<Target>> targets = find_targets(tensors, revived, given, rule);
  std::vector<const Sum*> sums;
  std::int64_t bytes = 0;
  for (const auto& target : targets) {
    if (target->others() != nullptr) sums.push_back(target->others());
    if (target->alive() != nullptr) sums.push_back(target->alive());
    if (target->scaled() != nullptr) bytes += target->scale_bytes() * target->places();
    bytes += target->write_bytes() * target->layer().filters;
  }
  bytes += sum_bytes(sums);
  run_sums(sums, threads, bytes);
  std::vector<Target*> scaled;
  sums.clear();
  for (const auto& target : targets) {
    if (target->needs_all()) sums.push_back(target->sum_all());
    if (target->scaled() == nullptr) continue;
    target->find_norm();
    scaled.push_back(target.get());
  }
  run_sums(sums, threads, bytes);
  run_scales(scaled, threads, bytes);
  run_writes(targets, threads, bytes);
}

}  // namespace we::cpu
