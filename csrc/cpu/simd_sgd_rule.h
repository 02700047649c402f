#pragma once

#include <cstdint>

#include "cpu/rounding.h"
#include "layout.h"

namespace we::cpu {

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
