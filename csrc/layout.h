#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>

namespace we {

// A value of Layer::dtype is the dtype's position in DTYPES of we_kernels' layout.py.
enum DType : std::int64_t { kFloat32, kFloat64, kFloat16, kBFloat16, kNumDTypes };

// One weight tensor as `filters` filters of `channels` kernels. This is a row of the table that we_kernels' layout.py
// makes; its class Layer explains the fields. Strides are in elements.
struct Layer {
  std::int64_t filters;
  std::int64_t channels;
  std::int64_t kernel0;
  std::int64_t kernel1;
  std::int64_t kernel2;
  std::int64_t filter_stride;
  std::int64_t channel_stride;
  std::int64_t stride0;
  std::int64_t stride1;
  std::int64_t stride2;
  std::int64_t dtype;
  std::int64_t blend;
  std::int64_t group;
  std::int64_t first_filter;
};

// Filters of consecutive layers that are matched together; a row of the narrower table for matching alone.
struct Segment {
  std::int64_t filters;
  std::int64_t first;
  std::int64_t group;
};

static_assert(sizeof(Layer) == 14 * sizeof(std::int64_t));
static_assert(std::is_trivially_copyable_v<Layer> && std::is_standard_layout_v<Layer>);
static_assert(offsetof(Layer, filter_stride) == 5 * sizeof(std::int64_t));
static_assert(offsetof(Layer, dtype) == 10 * sizeof(std::int64_t));
static_assert(offsetof(Layer, first_filter) == 13 * sizeof(std::int64_t));
static_assert(sizeof(Segment) == 3 * sizeof(std::int64_t));

}  // namespace we
