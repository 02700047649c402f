#pragma once

#include <cstdint>

// Where the filters of layers and groups are, for the matching kernels: made once per bank and kept on the device.
namespace we::cuda {

constexpr int kRankRows = 32;  // filters that one block ranks

// A view of an int32 array.
struct Plan {
  std::int64_t num_filters;
  std::int64_t num_layers;
  std::int64_t num_groups;
  std::int64_t num_tiles;
  const std::int32_t* segments;      // [L, 3]: filters, first filter, group of every layer
  const std::int32_t* slots;         // [L, 2]: the layers, group by group, and their filters
  const std::int32_t* slot_starts;   // [G + 1]: each group's part of slots
  const std::int32_t* members;       // [F]: the filters, group by group
  const std::int32_t* group_starts;  // [G + 1]: each group's part of members
  const std::int32_t* tiles;         // [num_tiles, 2]: layer and first row of every kRankRows filters

  Plan(const std::int32_t* memory, std::int64_t filters, std::int64_t layers, std::int64_t groups, std::int64_t tiles_)
      : num_filters(filters),
        num_layers(layers),
        num_groups(groups),
        num_tiles(tiles_),
        segments(memory),
        slots(segments + 3 * layers),
        slot_starts(slots + 2 * layers),
        members(slot_starts + groups + 1),
        group_starts(members + filters),
        tiles(group_starts + groups + 1) {}

  std::int64_t size() const { return tiles + 2 * num_tiles - segments; }
};

}  // namespace we::cuda
