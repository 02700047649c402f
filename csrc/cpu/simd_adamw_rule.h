#pragma once

#include <cstdint>

#include "cpu/rounding.h"
#include "layout.h"

namespace we::cpu {

// Square roots of `count` numbers, float or double, by another library: its Fortran interface.
using Roots = void (*)(const std::int64_t* count, const void* numbers, void* roots, const std::int64_t* mode);

struct AdamwRule {
  double lr;
  double beta1;
  double beta2;
  double eps;
  double weight_decay;
  bool decoupled;
  bool maximize;
  // torch's square roots of float32 and float64, where they are not the processor's; else null.
  Roots roots[2];
  std::int64_t roots_mode;
  // Sets the number of threads that `roots` may use when called by this thread, and returns what it was.
  int (*limit_threads)(int);
  Rounding rounding;
};

inline constexpr int kAdamwTensors = 5;

// What the age of an element does to its step; `root` divides the square root of the second moment.
struct Correction {
  double step_size;
  double root;
};

// One parameter with what belongs to it: gradient, first and second moment and, or null, the second's maximum.
struct AdamwTensors {
  const Layer* layers[kAdamwTensors];
  void* data[kAdamwTensors];
  Correction plain;  // of elements that were never reset
  // Of each row, then of each column: step sizes, then roots, as float or, for float64, double. Null if nothing was
  // ever reset.
  const void* rows;     // [2, filters]
  const void* columns;  // [2, groups * channels]
  std::int64_t groups;  // divides the number of filters
};

}  // namespace we::cpu
