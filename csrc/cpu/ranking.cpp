#include "cpu/ranking.h"

#include <algorithm>
#include <utility>

namespace we::cpu {
namespace {

// Ascending items are descending importances, then ascending indices.
using Item = std::uint64_t;

Item item_of(Key key, std::int32_t index) {
  return static_cast<Item>(0x7fffffff - key) << 32 | static_cast<std::uint32_t>(index);
}

std::int32_t index_of(Item item) { return static_cast<std::int32_t>(static_cast<std::uint32_t>(item)); }

void insertion_sort(Item* items, std::int32_t count) {
  for (std::int32_t i = 1; i < count; ++i) {
    const Item item = items[i];
    std::int32_t j = i;
    for (; j > 0 && items[j - 1] > item; --j) items[j] = items[j - 1];
    items[j] = item;
  }
}

// Items come in ascending order of index, so that a stable sort by key alone sorts them.
Item* radix_sort(Item* items, Item* other, std::int32_t count) {
  Item differing = 0;
  for (std::int32_t i = 1; i < count; ++i) differing |= items[i] ^ items[0];
  for (int shift = 32; shift < 64; shift += 8) {
    if ((differing >> shift & 0xff) == 0) continue;
    std::int32_t starts[256] = {};
    for (std::int32_t i = 0; i < count; ++i) ++starts[items[i] >> shift & 0xff];
    std::int32_t start = 0;
    for (std::int32_t& bin : starts) start += std::exchange(bin, start);
    for (std::int32_t i = 0; i < count; ++i) other[starts[items[i] >> shift & 0xff]++] = items[i];
    std::swap(items, other);
  }
  return items;
}

// Returns where the sorted items are: `items` or `other`.
Item* sort(Item* items, Item* other, std::int32_t count) {
  constexpr std::int32_t few = 40;
  if (count > few) return radix_sort(items, other, count);
  insertion_sort(items, count);
  return items;
}

}  // namespace

std::int32_t rank_layer(const Key* keys, std::int32_t filters, std::int32_t inferior, const KeyRange& range,
                        std::uint64_t* items, Pair* pairs) {
  const std::int32_t matched = std::min(inferior, filters - inferior);
  if (matched == 0) return 0;

  // Only the two ends of the order are sorted: a histogram tells which keys may belong to them.
  constexpr int bits = 8;
  std::int32_t histogram[1 << bits] = {};
  const int shift = shift_to_bits(range, bits);
  for (std::int32_t i = 0; i < filters; ++i) ++histogram[(keys[i] - range.lowest) >> shift];
  int top = (1 << bits) - 1;
  for (std::int32_t count = histogram[top]; count < matched; count += histogram[top]) --top;
  int bottom = 0;
  for (std::int32_t count = histogram[bottom]; count < inferior; count += histogram[bottom]) ++bottom;

  Item* high = items;
  Item* low = items + filters;
  std::int32_t num_high = 0;
  std::int32_t num_low = 0;
  for (std::int32_t i = 0; i < filters; ++i) {
    const int bin = (keys[i] - range.lowest) >> shift;
    const Item item = item_of(keys[i], i);
    high[num_high] = item;
    num_high += bin >= top ? 1 : 0;
    low[num_low] = item;
    num_low += bin <= bottom ? 1 : 0;
  }
  Item* free = items + 2 * static_cast<std::int64_t>(filters);
  const Item* donors = sort(high, free, num_high);
  if (donors == free) free = high;
  const Item* rows = sort(low, free, num_low) + (num_low - inferior);
  for (std::int32_t k = 0; k < matched; ++k) pairs[k] = {index_of(rows[k]), index_of(donors[k])};
  return matched;
}

}  // namespace we::cpu
