#pragma once

#include <cstdint>
#include <limits>
#include <span>
#include <string>
#include <vector>

#include "layout.h"

namespace we::cpu {

// The layers of a bank and where each one's weight is.
struct Bank {
  std::span<const Layer> layers;
  std::span<void* const> weights;
};

inline constexpr std::int64_t kItemSize[kNumDTypes] = {4, 8, 2, 2};

// The number of groups to check for where nothing depends on them.
inline constexpr std::int64_t kAnyGroup = std::numeric_limits<std::int64_t>::max();

// Throws std::invalid_argument, naming layer and field, unless the kernels can work on the bank without reading or
// writing anything but its elements: sizes, strides, dtypes, groups in [0, groups), first_filter, null and misaligned
// addresses. Returns the number of filters.
std::int64_t check_bank(const Bank& bank, std::int64_t groups);
std::int64_t check_segments(std::span<const Segment> segments, std::int64_t groups);

// Throws std::invalid_argument: its message says what is wrong with this layer.
[[noreturn]] void refuse_layer(std::size_t layer, const std::string& what);

std::vector<Segment> segments_of(std::span<const Layer> layers);

// Whether the layers have equally many filters, channels and elements of a kernel, and the same dtype.
bool same_sizes(const Layer& a, const Layer& b);

std::int64_t bytes_per_filter(const Layer& layer);
std::int64_t bytes_of(const Layer& layer);

// Returns the layer as filters of one element if its whole weight fills one run of memory, otherwise the layer itself.
Layer as_run(const Layer& layer);

}  // namespace we::cpu
