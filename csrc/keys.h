#pragma once

#include <cstdint>

namespace we {

// The bits of an importance. Those that are finite and not negative order as integers like the numbers do.
using Key = std::int32_t;

inline constexpr Key kLargestFinite = 0x7f7fffff;

}  // namespace we
