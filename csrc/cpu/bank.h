#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "cpu/simd.h"
#include "layout.h"

namespace we::cpu {

// The layers of a bank and where each one's weight is.
struct Bank {
  std::span<const Layer> layers;
  std::span<void* const> weights;
};

inline constexpr std::int64_t kItemSize[kNumDTypes] = {4, 8, 2, 2};

inline std::int64_t bytes_per_filter(const Layer& layer) {
  if (layer.filters == 0) return 0;
  return layer.channels * layer.kernel0 * layer.kernel1 * layer.kernel2 * kItemSize[layer.dtype];
}

// If the whole weight fills one run of memory: that run as filters of one element. Otherwise the layer itself.
inline Layer as_run(const Layer& layer) {
  const std::int64_t elements = layer.filters * layer.channels * layer.kernel0 * layer.kernel1 * layer.kernel2;
  if (elements == 0) return layer;
  const std::int64_t last = (layer.filters - 1) * layer.filter_stride + (layer.channels - 1) * layer.channel_stride +
                            (layer.kernel0 - 1) * layer.stride0 + (layer.kernel1 - 1) * layer.stride1 +
                            (layer.kernel2 - 1) * layer.stride2;
  if (last + 1 != elements) return layer;
  return {elements, 1, 1, 1, 1, 1, 0, 0, 0, 0, layer.dtype, layer.blend, layer.group, layer.first_filter};
}

inline bool lie_alike(const Layer& a, const Layer& b) {
  return a.kernel0 == b.kernel0 && a.kernel1 == b.kernel1 && a.kernel2 == b.kernel2 &&
         a.filter_stride == b.filter_stride && a.channel_stride == b.channel_stride && a.stride0 == b.stride0 &&
         a.stride1 == b.stride1 && a.stride2 == b.stride2;
}

// The matched filters: count[layer] of them, from list[first_filter of the layer] on.
struct Pairs {
  std::vector<Pair> list;           // [F]
  std::vector<std::int32_t> count;  // [L]
};

}  // namespace we::cpu
