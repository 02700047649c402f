#pragma once

#include <bit>
#include <cstdint>

#include "cpu/simd.h"
#include "keys.h"

namespace we::cpu {

struct KeyRange {
  Key lowest;
  Key highest;
};

// Returns how far to shift key - lowest so that it fits the bits.
inline int shift_to_bits(const KeyRange& range, int bits) {
  const int needed = std::bit_width(static_cast<std::uint32_t>(range.highest - range.lowest));
  return needed > bits ? needed - bits : 0;
}

inline constexpr std::int64_t kItemsPerFilter = 2;

// Does the forward matching of one layer: the k-th best of the `inferior` least important filters learns from the k-th
// most important one; equal importances rank by index. Writes the pairs in order of k and returns their number, which
// is at most that of the filters that are not inferior. `items` is scratch, kItemsPerFilter * filters long.
std::int32_t rank_layer(const Key* keys, std::int32_t filters, std::int32_t inferior, const KeyRange& range,
                        std::uint64_t* items, Pair* pairs);

}  // namespace we::cpu
