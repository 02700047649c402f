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

// The matched filters: count[layer] of them, from list[first_filter of the layer] on.
struct Pairs {
  std::vector<Pair> list;           // [F]
  std::vector<std::int32_t> count;  // [L]
};

}  // namespace we::cpu
