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

struct SgdRule {
  double lr;
  double momentum;
  double dampening;
  double weight_decay;
  bool nesterov;
  bool maximize;
  Rounding rounding;
};

// One parameter with its gradient and, with momentum, its buffer.
struct SgdTensors {
  const Layer* param_layer;
  const Layer* grad_layer;
  const Layer* buffer_layer;
  void* param;
  const void* grad;
  void* buffer;
  const std::uint8_t* selected;  // of this layer's filters, or null: all move
  bool first;
};

}  // namespace we::cpu
