#pragma once

#include <cstdint>

#include "layout.h"

namespace we::cpu {

// How torch's own CPU kernels round a + alpha * b; the Python of the native backend finds it out.
struct Rounding {
  // Whether float32 and float64 are rounded once, as by a fused multiply-add.
  bool fused;
  // For each dtype; used of float16 and bfloat16. Of each part of a tensor that one of torch's threads takes, as many
  // whole steps of this many elements as fit are rounded once; in the rest the product is rounded, too. If this is 0,
  // it is rounded everywhere.
  std::int64_t step[kNumDTypes];
  // Tensors of at least `grain` elements are cut into parts for so many threads.
  std::int64_t threads;
  std::int64_t grain;
};

}  // namespace we::cpu
