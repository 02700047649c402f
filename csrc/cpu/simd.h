#pragma once

#include <cstdint>

#include "cpu/simd_adamw_rule.h"
#include "cpu/simd_sgd_rule.h"
#include "cpu/units.h"
#include "layout.h"
#include "rule.h"

namespace we::cpu {

// A filter that is overwritten and the one it learns from, rows of one layer.
struct Pair {
  std::int32_t row;
  std::int32_t donor;
};

inline constexpr int kMaxBins = 256;
inline constexpr int kMaxNetworks = 1024;

// The least and the largest of some elements; those of narrower dtypes are exact in double.
struct Range {
  double low = __builtin_inf();
  double high = -__builtin_inf();
  bool finite = true;
};

// One layer of several networks: network k becomes c_k W_k + (1 - c_k) W_(k-1), network 0 with the last one's W, for
// the first `written` of them. `layers` have the same sizes and dtype, apart from which kernel sizes are merged.
struct Blend {
  const Layer* layers;        // [networks]
  void* const* weights;       // [networks]
  const float* coefficients;  // c_k is [k * columns], plus the filter's number when it is per filter
  std::int64_t columns;
  int networks;  // at most kMaxNetworks
  int written;
  bool per_filter;
  bool alike;  // the layers have equal strides, too
};

// An activation as columns, which geometry.py of we_kernels' activity explains. The positions of each column are the
// channels and kernel sizes of `positions`, which has their strides and the dtype, too; nothing else of it counts.
struct Activation {
  Layer positions;
  std::int64_t columns;
  std::int64_t column_stride;
  std::int64_t run;
  std::int64_t channels;
};

inline constexpr std::int64_t kPartColumns = 512;

// The columns first_column, ..., first_column + columns - 1 (at most kPartColumns), and of each of them `count` items
// from item `first` on: positions, or runs of `run_length` of them where columns do not lie closer together.
struct ActivationPart {
  std::int64_t first_column;
  std::int64_t columns;
  std::int64_t first;
  std::int64_t count;
  std::int64_t run_length;  // 0: items are positions
};

// The loops over weights and activations, compiled once per instruction set. All sets give the same bits: sums have a
// fixed order and no multiply and add is contracted.
struct Kernels {
  const char* name;
  // Computes importance[i] of the filters first + i, 0 <= i < count.
  void (*importance)(const Layer& layer, const void* weight, std::int64_t first, std::int64_t count, float* importance);
  void (*crossover)(const Layer& layer, void* weight, const Pair* pairs, std::int64_t count, Rule rule);
  // Does a step of SGD for the filters first, ..., first + count - 1 of a layer.
  void (*sgd)(const SgdTensors& tensors, const SgdRule& rule, std::int64_t first, std::int64_t count);
  // Does a step of Adam for them.
  void (*adamw)(const AdamwTensors& tensors, const AdamwRule& rule, std::int64_t first, std::int64_t count);
  // Copies those of them that are not selected from the weight to their places in a buffer, or back.
  void (*copy_unselected)(const Layer& layer, void* weight, void* places, const std::uint8_t* selected,
                          std::int64_t first, std::int64_t count, bool restore);
  // Extends the range to these filters' elements.
  void (*range)(const Layer& layer, const void* weight, std::int64_t first, std::int64_t count, Range* range);
  // Adds these filters' elements to counts[bins]; the range is finite.
  void (*count_bins)(const Layer& layer, const void* weight, std::int64_t first, std::int64_t count, const Range& range,
                     int bins, std::int64_t* counts);
  void (*blend)(const Blend& blend, std::int64_t first, std::int64_t count);
  // Sets sums[i] to the sum of magnitudes of the part's i-th column.
  void (*magnitudes)(const Activation& activation, const void* values, const ActivationPart& part, double* sums);
  // Sums the rows first, ..., first + count - 1 of a tensor of units.
  void (*sum_rows)(const RowSums& sums, std::int64_t first, std::int64_t count);
  // Returns the sum of the magnitudes that elements first, ..., first + count - 1 draw, in units of bound * 2^-23.
  std::int64_t (*drawn_norm)(const Draws& draws, std::uint32_t first, std::int64_t count);
  // Writes to these rows what they and the columns become.
  void (*write_rows)(const UnitWrites& writes, std::int64_t first, std::int64_t count);
};

extern const Kernels kBaseline;
extern const Kernels kAvx2;
extern const Kernels kAvx512;

// The set in use: at first the best this processor has, or less if WE_KERNELS_SIMD says so.
const Kernels& kernels();

// From now on "baseline", "avx2" or "avx512" is used, or the best below it that this processor has. Returns false, and
// changes nothing, for another name.
bool limit_simd(const char* name);

}  // namespace we::cpu
