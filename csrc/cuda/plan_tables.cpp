#include "cuda/plan_tables.h"

#include "cuda/plan.h"

namespace we::cuda {
namespace {

std::int64_t num_filters(std::span<const Segment> segments) {
  return segments.empty() ? 0 : segments.back().first + segments.back().filters;
}

Plan plan_of(std::span<const Segment> segments, std::int64_t groups, const std::int32_t* memory) {
  const auto layers = static_cast<std::int64_t>(segments.size());
  return {memory, num_filters(segments), layers, groups, num_rank_tiles(segments)};
}

}  // namespace

std::int64_t num_rank_tiles(std::span<const Segment> segments) {
  std::int64_t tiles = 0;
  for (const Segment& segment : segments) tiles += (segment.filters + kRankRows - 1) / kRankRows;
  return tiles;
}

std::int64_t plan_size(std::span<const Segment> segments, std::int64_t groups) {
  return plan_of(segments, groups, nullptr).size();
}

void make_plan(std::span<const Segment> segments, std::int64_t groups, std::span<std::int32_t> memory) {
  auto out = memory.begin();
  const auto put = [&](std::int64_t value) { *out++ = static_cast<std::int32_t>(value); };

  for (const Segment& segment : segments) {
    put(segment.filters);
    put(segment.first);
    put(segment.group);
  }
  const auto each_in_group = [&](std::int64_t group, auto action) {
    for (std::size_t i = 0; i < segments.size(); ++i) {
      if (segments[i].group == group) action(static_cast<std::int64_t>(i), segments[i]);
    }
  };
  for (std::int64_t group = 0; group < groups; ++group) {
    each_in_group(group, [&](std::int64_t layer, const Segment& segment) {
      put(layer);
      put(segment.filters);
    });
  }
  const auto put_starts = [&](auto count) {
    std::int64_t start = 0;
    put(start);
    for (std::int64_t group = 0; group < groups; ++group) {
      each_in_group(group, [&](std::int64_t, const Segment& segment) { start += count(segment); });
      put(start);
    }
  };
  put_starts([](const Segment&) { return 1; });
  for (std::int64_t group = 0; group < groups; ++group) {
    each_in_group(group, [&](std::int64_t, const Segment& segment) {
      for (std::int64_t row = 0; row < segment.filters; ++row) put(segment.first + row);
    });
  }
  put_starts([](const Segment& segment) { return segment.filters; });
  for (std::size_t i = 0; i < segments.size(); ++i) {
    for (std::int64_t row = 0; row < segments[i].filters; row += kRankRows) {
      put(static_cast<std::int64_t>(i));
      put(row);
    }
  }
}

}  // namespace we::cuda
