#include "cpu/ranking.h"

#include <algorithm>
#include <utility>

namespace we::cpu {
namespace {

// Items that ascend are importances that descend, and indices that ascend where those are equal.
using Item = std::uint64_t;

Item item_of(Key key, std::int32_t index) {
  return static_cast<Item>(0x7fffffff - key) << 32 | static_cast<std::uint32_t>(index);
}
Key key_of(Item item) { return 0x7fffffff - static_cast<Key>(item >> 32); }
std::int32_t index_of(Item item) { return static_cast<std::int32_t>(static_cast<std::uint32_t>(item)); }

// Sorts what is sorted but for runs of up to `longest` items.
void finish_sort(Item* items, std::int32_t count, std::int32_t longest) {
  constexpr std::int32_t few = 24;
  if (longest > few) {
    std::sort(items, items + count);
    return;
  }
  for (std::int32_t i = 1; i < count; ++i) {
    const Item item = items[i];
    std::int32_t j = i;
    for (; j > 0 && items[j - 1] > item; --j) items[j] = items[j - 1];
    items[j] = item;
  }
}

}  // namespace

std::int32_t rank_layer(const Key* keys, std::int32_t filters, std::int32_t inferior, const KeyRange& range,
                        std::uint64_t* items, Pair* pairs) {
  const std::int32_t matched = std::min(inferior, filters - inferior);
  if (matched == 0) return 0;

  // Counts the keys in each of a number of equal parts of their range; 2 to 4 parts a filter leave little to sort.
  constexpr int max_bits = 11;
  const int bits = std::min<int>(std::bit_width(static_cast<std::uint32_t>(filters)) + 1, max_bits);
  const int shift = shift_to_bits(range, bits);
  const auto bin_of = [&](Key key) { return (key - range.lowest) >> shift; };
  std::int32_t bins[1 << max_bits];
  std::fill_n(bins, 1 << bits, 0);
  for (std::int32_t i = 0; i < filters; ++i) ++bins[bin_of(keys[i])];

  // Only the two ends of the order are sorted, at the two ends of `sorted`. A bin now gets the place of its first item.
  std::int32_t longest = 0;
  std::int32_t num_high = 0;
  std::int32_t top = 1 << bits;
  while (num_high < matched) {
    const std::int32_t count = std::exchange(bins[--top], num_high);
    num_high += count;
    longest = std::max(longest, count);
  }
  std::int32_t num_low = 0;
  std::int32_t bottom = 0;
  for (; num_low < inferior && bottom < top; ++bottom) {
    num_low += bins[bottom];
    longest = std::max(longest, bins[bottom]);
    bins[bottom] = filters - num_low;
  }

  Item* const sorted = items;
  Item* const chosen = items + filters;
  std::int32_t num_chosen = 0;
  for (std::int32_t i = 0; i < filters; ++i) {
    chosen[num_chosen] = item_of(keys[i], i);
    const std::int32_t bin = bin_of(keys[i]);
    num_chosen += static_cast<std::uint32_t>(bin - bottom) >= static_cast<std::uint32_t>(top - bottom) ? 1 : 0;
  }
  for (std::int32_t i = 0; i < num_chosen; ++i) sorted[bins[bin_of(key_of(chosen[i]))]++] = chosen[i];
  finish_sort(sorted, num_high, longest);
  finish_sort(sorted + (filters - num_low), num_low, longest);
  const Item* const rows = sorted + (filters - inferior);
  for (std::int32_t k = 0; k < matched; ++k) pairs[k] = {index_of(rows[k]), index_of(sorted[k])};
  return matched;
}

}  // namespace we::cpu
