// Defines WE_SIMD_KERNELS. Included by the simd_*.cpp files, each compiled for another instruction set.
#pragma once

#include "cpu/simd.h"
#include "cpu/simd_crossover.h"
#include "cpu/simd_importance.h"

namespace we::cpu {
namespace {

template <class F>
void with_type(const Layer& layer, void* weight, F&& call) {
  switch (layer.dtype) {
    case kFloat32:
      return call(static_cast<float*>(weight));
    case kFloat64:
      return call(static_cast<double*>(weight));
    case kFloat16:
      return call(static_cast<Half*>(weight));
    case kBFloat16:
      return call(static_cast<BFloat16*>(weight));
    default:
      __builtin_unreachable();  // check_layers() has refused it
  }
}

void importance(const Layer& layer, const void* weight, std::int64_t first, std::int64_t count, float* result) {
  with_type(layer, const_cast<void*>(weight),
            [&](const auto* typed) { filter_importance(layer, typed, first, count, result); });
}

void crossover(const Layer& layer, void* weight, const Pair* pairs, std::int64_t count, Rule rule) {
  with_type(layer, weight, [&](auto* typed) { crossover(layer, typed, pairs, count, rule); });
}

}  // namespace

constinit const Kernels WE_SIMD_KERNELS = {WE_SIMD_NAME, importance, static_cast<decltype(Kernels::crossover)>(crossover)};

}  // namespace we::cpu
