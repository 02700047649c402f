// Sums of magnitudes by column of an activation. For the simd_*.cpp files only.
#pragma once

#include <cstdint>

#include "cpu/simd_importance.h"
#include "cpu/simd_walk.h"
#include "places.h"

namespace we::cpu {
namespace {

// Columns side by side: the rows of a part are read in order, and added up in the columns' places.
template <class T>
void rows_magnitudes(const Activation& activation, const T* values, const ActivationPart& part, double* sums) {
  using Acc = typename Number<T>::Acc;
  constexpr int lanes = kLanes<T>;
  // Partial sums of this many rows are added in double, which keeps rounding errors small.
  constexpr std::int64_t inner = 64;
  const std::int64_t step = activation.column_stride;
  const std::int64_t side_by_side = step == 1 ? part.columns : 0;
  for (std::int64_t i = 0; i < part.columns; ++i) sums[i] = 0;
  Walk walk(activation.positions, part.first);
  for (std::int64_t done = 0; done < part.count; done += inner) {
    const std::int64_t rows = part.count - done < inner ? part.count - done : inner;
    Acc partial[kPartColumns];
    for (std::int64_t i = 0; i < part.columns; ++i) partial[i] = 0;
    for (std::int64_t r = 0; r < rows; ++r) {
      const T* row = values + part.first_column * step + walk.next();
      std::int64_t i = 0;
      for (; i + lanes <= side_by_side; i += lanes) {
        write(partial + i, read<Values<T>>(partial + i) + absolute(load(row + i)));
      }
      for (; i < part.columns; ++i) partial[i] += absolute(widen(row[i * step]));
    }
    for (std::int64_t i = 0; i < part.columns; ++i) sums[i] += static_cast<double>(partial[i]);
  }
}

// Sums `count` elements that are `step` apart.
template <class T>
double run_magnitude(const T* run, std::int64_t count, std::int64_t step) {
  constexpr std::int64_t dense = 4096, gathered = 512;
  const std::int64_t size = step == 1 ? dense : gathered;
  double sum = 0;
  for (std::int64_t first = 0; first < count; first += size) {
    const std::int64_t part = count - first < size ? count - first : size;
    if (step == 1) {
      sum += static_cast<double>(dense_norm(run + first, part));
      continue;
    }
    T packed[gathered];
    for (std::int64_t i = 0; i < part; ++i) packed[i] = run[(first + i) * step];
    sum += static_cast<double>(dense_norm(packed, part));
  }
  return sum;
}

// Columns further apart than their positions: one after the other, in runs along the innermost dimension.
template <class T>
void runs_magnitudes(const Activation& activation, const T* values, const ActivationPart& part, double* sums) {
  Layer outer = activation.positions;
  const std::int64_t size = outer.kernel2, step = outer.stride2;
  const std::int64_t runs = (size + part.run_length - 1) / part.run_length;
  outer.kernel2 = 1;
  for (std::int64_t i = 0; i < part.columns; ++i) sums[i] = 0;
  for (std::int64_t item = part.first; item < part.first + part.count; ++item) {
    const std::int64_t begin = item % runs * part.run_length;
    const std::int64_t count = size - begin < part.run_length ? size - begin : part.run_length;
    const T* start = values + Walk(outer, item / runs).next() + begin * step;
    for (std::int64_t i = 0; i < part.columns; ++i) {
      sums[i] += run_magnitude(start + (part.first_column + i) * activation.column_stride, count, step);
    }
  }
}

template <class T>
void part_magnitudes(const Activation& activation, const T* values, const ActivationPart& part, double* sums) {
  if (part.run_length == 0) rows_magnitudes(activation, values, part, sums);
  else runs_magnitudes(activation, values, part, sums);
}

}  // namespace
}  // namespace we::cpu
