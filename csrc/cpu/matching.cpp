#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <vector>

#include "cpu/evolution.h"
#include "cpu/ranking.h"
#include "cpu/tasks.h"

namespace we::cpu {
namespace {

constexpr Key kNegativeZero = std::numeric_limits<Key>::min();

// What is kept from call to call, so that no call waits for fresh memory.
struct Scratch {
  std::vector<Key> keys;             // [F]
  std::vector<KeyRange> ranges;      // [L]
  std::vector<Key> candidates;       // up to [F]
  std::vector<std::uint64_t> items;  // [kItemsPerFilter F]
};

// Finds the importances' keys, with -0 as 0, and their range in each layer; returns false if one is negative or not
// finite. The keys are a copy that no other thread changes: all that follows trusts them to be the same each time they
// are read.
bool make_keys(std::span<const float> importance, std::span<const Segment> segments, Scratch& scratch) {
  bool valid = true;
  for (std::size_t i = 0; i < segments.size(); ++i) {
    const float* from = importance.data() + segments[i].first;
    Key* to = scratch.keys.data() + segments[i].first;
    Key lowest = std::numeric_limits<Key>::max();
    Key highest = kNegativeZero;
    for (std::int64_t f = 0; f < segments[i].filters; ++f) {
      const Key bits = std::bit_cast<Key>(from[f]);
      to[f] = bits == kNegativeZero ? 0 : bits;
    }
    for (std::int64_t f = 0; f < segments[i].filters; ++f) {
      lowest = std::min(lowest, to[f]);
      highest = std::max(highest, to[f]);
    }
    if (segments[i].filters == 0) lowest = highest = 0;
    scratch.ranges[i] = {lowest, highest};
    valid = valid && lowest >= 0 && highest <= kLargestFinite;
  }
  return valid;
}

// The floor(total * rate)-th smallest key of the group, 0-based (the largest for rate 1; 0 for an empty group).
Key global_threshold(std::span<const Segment> segments, std::int64_t group, double rate, Scratch& scratch) {
  std::int64_t total = 0;
  KeyRange range{std::numeric_limits<Key>::max(), 0};
  for (std::size_t i = 0; i < segments.size(); ++i) {
    if (segments[i].group != group || segments[i].filters == 0) continue;
    total += segments[i].filters;
    range = {std::min(range.lowest, scratch.ranges[i].lowest), std::max(range.highest, scratch.ranges[i].highest)};
  }
  if (total == 0) return 0;
  std::int64_t rank = 0;
  if (rate >= 1) {
    rank = total - 1;
  } else if (rate > 0) {
    rank = std::min(static_cast<std::int64_t>(std::floor(static_cast<double>(total) * rate)), total - 1);
  }

  constexpr int bits = 11;
  std::uint32_t histogram[1 << bits] = {};
  const int shift = shift_to_bits(range, bits);
  const auto each_key = [&](auto&& visit) {
    for (const Segment& segment : segments) {
      if (segment.group != group) continue;
      const Key* keys = scratch.keys.data() + segment.first;
      for (std::int64_t f = 0; f < segment.filters; ++f) visit(keys[f]);
    }
  };
  each_key([&](Key key) { ++histogram[(key - range.lowest) >> shift]; });
  Key bin = 0;
  while (rank >= histogram[bin]) rank -= histogram[bin++];
  Key* const candidates = scratch.candidates.data();
  std::int64_t count = 0;
  each_key([&](Key key) {
    candidates[count] = key;
    count += (key - range.lowest) >> shift == bin ? 1 : 0;
  });
  std::nth_element(candidates, candidates + rank, candidates + count);
  return candidates[rank];
}

// Counts each layer's inferior filters; the starvation counters run through the layers in order.
void count_inferior(std::span<const Segment> segments, const MatchingRule& rule, const Selection& selection,
                    const Scratch& scratch) {
  for (std::size_t i = 0; i < segments.size(); ++i) {
    const Segment& segment = segments[i];
    const Key* keys = scratch.keys.data() + segment.first;
    const double ratio = rule.local_ratios[segment.group];
    const Key threshold = std::bit_cast<Key>(selection.threshold[segment.group]);
    const bool is_local = ratio >= 0;
    const bool zero_is_below = !rule.zero_is_inferior.empty() && rule.zero_is_inferior[segment.group] != 0;
    const Key bar = zero_is_below ? std::max<Key>(threshold, 1) : threshold;
    const float cut = static_cast<float>(ratio) * std::bit_cast<float>(scratch.ranges[i].highest);
    const Key limit = is_local ? std::bit_cast<Key>(cut) : threshold;
    std::int32_t below = 0;
    std::int32_t low = 0;
    for (std::int64_t f = 0; f < segment.filters; ++f) {
      below += keys[f] < bar ? 1 : 0;
      low += keys[f] <= limit ? 1 : 0;
    }
    if (is_local && below == 0) low = 0;
    if (is_local && below > 0) {
      if (rule.starvation != nullptr) {
        std::int32_t& counter = rule.starvation[segment.group];
        if (low > 0) counter = 0;
        else if (counter < std::numeric_limits<std::int32_t>::max()) ++counter;
        if (low == 0 && counter >= rule.starvation_limit) {
          low = 1;
          counter = 0;
        }
      }
      low = std::min(below, low);
    }
    selection.inferior[i] = low;
  }
}

}  // namespace

void match_filters(std::span<const float> importance, std::span<const Segment> segments, const MatchingRule& rule,
                   const Selection& selection, Pairs& pairs, int threads) {
  thread_local Scratch kept;
  Scratch& scratch = kept;  // the other threads' tasks use this thread's
  scratch.keys.resize(importance.size());
  scratch.candidates.resize(importance.size());
  scratch.ranges.resize(segments.size());
  scratch.items.resize(kItemsPerFilter * importance.size());
  pairs.list.resize(importance.size());
  pairs.count.assign(segments.size(), 0);
  std::fill(selection.donor.begin(), selection.donor.end(), -1);
  if (!make_keys(importance, segments, scratch)) {
    std::fill(selection.threshold.begin(), selection.threshold.end(), std::numeric_limits<float>::quiet_NaN());
    std::fill(selection.inferior.begin(), selection.inferior.end(), 0);
    return;
  }
  for (std::size_t g = 0; g < selection.threshold.size(); ++g) {
    const auto group = static_cast<std::int64_t>(g);
    selection.threshold[g] = std::bit_cast<float>(global_threshold(segments, group, rule.rates[g], scratch));
  }
  count_inferior(segments, rule, selection, scratch);

  // A filter costs about as much to rank as this many bytes of a weight to read.
  constexpr std::int64_t bytes_per_rank = 64;
  std::int64_t ranked = 0;
  for (std::size_t i = 0; i < segments.size(); ++i) ranked += selection.inferior[i] > 0 ? segments[i].filters : 0;
  Slices slices(threads, ranked * bytes_per_rank);
  for (std::size_t i = 0; i < segments.size(); ++i) {
    const bool any = selection.inferior[i] > 0;
    if (any) slices.add(static_cast<std::int32_t>(i), 1, segments[i].filters * bytes_per_rank);
  }
  slices.run([&](const Slice& slice) {
    const std::size_t i = slice.layer;
    const std::int64_t first = segments[i].first;
    pairs.count[i] =
        rank_layer(scratch.keys.data() + first, static_cast<std::int32_t>(segments[i].filters), selection.inferior[i],
                   scratch.ranges[i], scratch.items.data() + kItemsPerFilter * first, pairs.list.data() + first);
    for (std::int32_t k = 0; k < pairs.count[i]; ++k) {
      const Pair pair = pairs.list[first + k];
      selection.donor[first + pair.row] = pair.donor;
    }
  });
}

}  // namespace we::cpu
