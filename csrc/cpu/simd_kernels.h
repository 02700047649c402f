// Defines WE_SIMD_KERNELS. The simd_*.cpp files include it; each is compiled for another instruction set.
#pragma once

#include "cpu/simd.h"
#include "cpu/simd_activity.h"
#include "cpu/simd_adamw.h"
#include "cpu/simd_bins.h"
#include "cpu/simd_blend.h"
#include "cpu/simd_crossover.h"
#include "cpu/simd_importance.h"
#include "cpu/simd_sgd.h"
#include "cpu/simd_units.h"

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
      __builtin_unreachable();  // check_bank() has refused it
  }
}

void importance(const Layer& layer, const void* weight, std::int64_t first, std::int64_t count, float* result) {
  with_type(layer, const_cast<void*>(weight),
            [&](const auto* typed) { filter_importance(layer, typed, first, count, result); });
}

void crossover(const Layer& layer, void* weight, const Pair* pairs, std::int64_t count, Rule rule) {
  with_type(layer, weight, [&](auto* typed) { crossover(layer, typed, pairs, count, rule); });
}

void sgd(const SgdTensors& tensors, const SgdRule& rule, std::int64_t first, std::int64_t count) {
  with_type(*tensors.param_layer, tensors.param, [&](auto* typed) { sgd_filters(tensors, rule, typed, first, count); });
}

void adamw(const AdamwTensors& tensors, const AdamwRule& rule, std::int64_t first, std::int64_t count) {
  with_type(*tensors.layers[0], tensors.data[0],
            [&](const auto* type) { adamw_filters(tensors, rule, type, first, count); });
}

void copy_unselected(const Layer& layer, void* weight, void* places, const std::uint8_t* selected, std::int64_t first,
                     std::int64_t count, bool restore) {
  with_type(layer, weight, [&]<class T>(T* typed) {
    copy_filters(layer, typed, static_cast<T*>(places), selected, first, count, restore);
  });
}

void range(const Layer& layer, const void* weight, std::int64_t first, std::int64_t count, Range* range) {
  with_type(layer, const_cast<void*>(weight),
            [&](const auto* typed) { find_range(layer, typed, first, count, range); });
}

void count_bins(const Layer& layer, const void* weight, std::int64_t first, std::int64_t count, const Range& range,
                int bins, std::int64_t* counts) {
  with_type(layer, const_cast<void*>(weight),
            [&](const auto* typed) { count_bins(layer, typed, first, count, range, bins, counts); });
}

void blend(const Blend& blend, std::int64_t first, std::int64_t count) {
  with_type(blend.layers[0], nullptr, [&](auto* type) { blend_filters(blend, type, first, count); });
}

void magnitudes(const Activation& activation, const void* values, const ActivationPart& part, double* sums) {
  with_type(activation.positions, const_cast<void*>(values),
            [&](const auto* typed) { part_magnitudes(activation, typed, part, sums); });
}

void sum_rows(const RowSums& sums, std::int64_t first, std::int64_t count) {
  with_type(*sums.layer, const_cast<void*>(sums.tensor), [&](const auto* typed) {
    if (sums.magnitudes) sum_rows<true>(sums, typed, first, count);
    else sum_rows<false>(sums, typed, first, count);
  });
}

void write_rows(const UnitWrites& writes, std::int64_t first, std::int64_t count) {
  with_type(*writes.layer, writes.tensor, [&](auto* typed) { write_rows(writes, typed, first, count); });
}

}  // namespace

constinit const Kernels WE_SIMD_KERNELS = {
    .name = WE_SIMD_NAME,
    .importance = importance,
    .crossover = crossover,
    .sgd = sgd,
    .adamw = adamw,
    .copy_unselected = copy_unselected,
    .range = range,
    .count_bins = count_bins,
    .blend = blend,
    .magnitudes = magnitudes,
    .sum_rows = sum_rows,
    .drawn_norm = drawn_norm,
    .write_rows = write_rows,
};

}  // namespace we::cpu
