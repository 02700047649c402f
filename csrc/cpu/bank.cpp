#include "cpu/bank.h"

#include <stdexcept>

#include "places.h"

namespace we::cpu {
namespace {

constexpr std::int64_t kMaxBytes = std::numeric_limits<std::int64_t>::max() / 2;
constexpr std::int64_t kMaxInt = std::numeric_limits<std::int32_t>::max();

void check_position(std::size_t index, std::int64_t filters, std::int64_t first, std::int64_t group,
                    std::int64_t expected_first, std::int64_t groups) {
  if (filters < 0) refuse_layer(index, "filters is negative");
  if (first != expected_first) {
    refuse_layer(index, "first_filter is " + std::to_string(first) + ", not " + std::to_string(expected_first));
  }
  if (filters > kMaxInt - first) refuse_layer(index, "the bank has more than 2^31 - 1 filters");
  if (group < 0 || group >= groups) refuse_layer(index, "group is not in [0, " + std::to_string(groups) + ")");
}

// Checks sizes and strides; returns the bytes from the layer's first to the end of its last element.
std::int64_t extent(std::size_t index, const Layer& layer) {
  const std::int64_t sizes[] = {layer.filters, layer.channels, layer.kernel0, layer.kernel1, layer.kernel2};
  const std::int64_t strides[] = {layer.filter_stride, layer.channel_stride, layer.stride0, layer.stride1,
                                  layer.stride2};
  const std::int64_t limit = kMaxBytes / kItemSize[layer.dtype];
  std::int64_t last = 0;
  std::int64_t elements = 1;
  for (int d = 0; d < 5; ++d) {
    if (sizes[d] < 1) refuse_layer(index, "a size is not positive");
    if (strides[d] < 0) refuse_layer(index, "a stride is negative");
    if (sizes[d] > 1 && strides[d] == 0) refuse_layer(index, "a stride is 0");
    if (elements > limit / sizes[d]) refuse_layer(index, "too many elements");
    elements *= sizes[d];
    if (sizes[d] > 1 && strides[d] > (limit - last) / (sizes[d] - 1)) refuse_layer(index, "a stride is too large");
    last += (sizes[d] - 1) * strides[d];
  }
  if (elements > last + 1) refuse_layer(index, "elements overlap");
  return (last + 1) * kItemSize[layer.dtype];
}

}  // namespace

void refuse_layer(std::size_t layer, const std::string& what) {
  throw std::invalid_argument("layer " + std::to_string(layer) + " of the table: " + what);
}

std::int64_t check_bank(const Bank& bank, std::int64_t groups) {
  if (bank.weights.size() != bank.layers.size()) {
    throw std::invalid_argument(std::to_string(bank.weights.size()) + " weights for a table of " +
                                std::to_string(bank.layers.size()) + " layers");
  }
  std::int64_t filters = 0;
  for (std::size_t i = 0; i < bank.layers.size(); ++i) {
    const Layer& layer = bank.layers[i];
    check_position(i, layer.filters, layer.first_filter, layer.group, filters, groups);
    if (layer.filters == 0) continue;
    if (layer.dtype < 0 || layer.dtype >= kNumDTypes) refuse_layer(i, "dtype is not in [0, 4)");
    if (layer.blend != 0 && layer.blend != 1) refuse_layer(i, "blend is neither 0 nor 1");
    const auto address = reinterpret_cast<std::uintptr_t>(bank.weights[i]);
    if (address == 0) refuse_layer(i, "its weight has no memory");
    if (address % static_cast<std::uintptr_t>(kItemSize[layer.dtype]) != 0) refuse_layer(i, "its weight is misaligned");
    const auto bytes = static_cast<std::uintptr_t>(extent(i, layer));
    const bool fits = bytes <= std::numeric_limits<std::uintptr_t>::max() - address;
    if (!fits) refuse_layer(i, "its weight ends past all memory");
    const std::int64_t kernel = layer.kernel0 * layer.kernel1 * layer.kernel2;
    if (kernel > kMaxInt) refuse_layer(i, "a kernel has more than 2^31 - 1 elements");
    filters += layer.filters;
  }
  return filters;
}

std::int64_t check_segments(std::span<const Segment> segments, std::int64_t groups) {
  std::int64_t filters = 0;
  for (std::size_t i = 0; i < segments.size(); ++i) {
    check_position(i, segments[i].filters, segments[i].first, segments[i].group, filters, groups);
    filters += segments[i].filters;
  }
  return filters;
}

std::vector<Segment> segments_of(std::span<const Layer> layers) {
  std::vector<Segment> segments;
  segments.reserve(layers.size());
  for (const Layer& layer : layers) segments.push_back({layer.filters, layer.first_filter, layer.group});
  return segments;
}

bool same_sizes(const Layer& a, const Layer& b) {
  return a.filters == b.filters && a.channels == b.channels && a.dtype == b.dtype &&
         a.kernel0 * a.kernel1 * a.kernel2 == b.kernel0 * b.kernel1 * b.kernel2;
}

std::int64_t bytes_per_filter(const Layer& layer) {
  return layer.filters == 0 ? 0 : elements_of(layer) * kItemSize[layer.dtype];
}

std::int64_t bytes_of(const Layer& layer) { return layer.filters * bytes_per_filter(layer); }

Layer as_run(const Layer& layer) {
  if (layer.filters == 0 || !is_one_run(layer)) return layer;
  const std::int64_t elements = layer.filters * elements_of(layer);
  return {elements, 1, 1, 1, 1, 1, 0, 0, 0, 0, layer.dtype, layer.blend, layer.group, layer.first_filter};
}

}  // namespace we::cpu
