#pragma once

#include <cstdint>
#include <span>

#include "layout.h"

namespace we::cuda {

// Returns the number of int32 numbers in the tables of these checked segments.
std::int64_t plan_size(std::span<const Segment> segments, std::int64_t groups);
std::int64_t num_rank_tiles(std::span<const Segment> segments);

// Fills the tables in, on the host; their layout is that of Plan.
void make_plan(std::span<const Segment> segments, std::int64_t groups, std::span<std::int32_t> memory);

}  // namespace we::cuda
