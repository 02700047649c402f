// The L1 norm of filters. For the simd_*.cpp files only.
#pragma once

#include <cstdint>

#include "cpu/simd_walk.h"
#include "layout.h"

namespace we::cpu {
namespace {

// A sum of magnitudes in a fixed order, whatever the instruction set: element i of every 128 bytes of Acc goes to lane
// i, lanes are added as a tree, and what does not fill 64 bytes is added one by one.
template <class T>
class MagnitudeSum {
 public:
  using Acc = typename Number<T>::Acc;
  static constexpr int kWidth = 64 / sizeof(Acc);

  // Every call but the last adds a multiple of 2 * kWidth elements.
  void add(const T* x, std::int64_t count) {
    std::int64_t i = 0;
    for (; i + 2 * kWidth <= count; i += 2 * kWidth) {
      for (int v = 0; v < 2 * kVectors; ++v) lanes_[v] += absolute(load(x + i + v * kLanes<T>));
    }
    if (i + kWidth <= count) {
      for (int v = 0; v < kVectors; ++v) lanes_[v] += absolute(load(x + i + v * kLanes<T>));
      i += kWidth;
    }
    for (; i < count; ++i) rest_ += absolute(widen(x[i]));
  }

  Acc total() const {
    typedef Acc Quarter __attribute__((vector_size(16)));
    Values<T> half[kVectors];
    for (int v = 0; v < kVectors; ++v) half[v] = lanes_[v] + lanes_[v + kVectors];
    Quarter part[4];
    static_assert(sizeof half == sizeof part);
    __builtin_memcpy(part, half, sizeof part);
    const Quarter sum = (part[0] + part[2]) + (part[1] + part[3]);
    if constexpr (sizeof(Acc) == 4) return ((sum[0] + sum[2]) + (sum[1] + sum[3])) + rest_;
    else return (sum[0] + sum[1]) + rest_;
  }

 private:
  static constexpr int kVectors = 64 / kBytes;
  Values<T> lanes_[2 * kVectors] = {};
  Acc rest_ = 0;
};

// Sums a run of memory that is shorter than one step of `MagnitudeSum`: in the same order, without its lanes.
template <class T>
inline typename Number<T>::Acc short_norm(const T* x, std::int64_t count) {
  typename Number<T>::Acc sum = 0;
  for (std::int64_t i = 0; i < count; ++i) sum += absolute(widen(x[i]));
  return sum;
}

template <class T>
inline typename Number<T>::Acc dense_norm(const T* x, std::int64_t count) {
  if (count < MagnitudeSum<T>::kWidth) return short_norm(x, count);
  MagnitudeSum<T> sum;
  sum.add(x, count);
  return sum.total();
}

template <class T>
typename Number<T>::Acc strided_norm(const T* filter, const Layer& layer) {
  constexpr std::int64_t size = 512;
  MagnitudeSum<T> sum;
  T packed[size];
  Walk walk(layer);
  for (std::int64_t left = elements_of(layer); left > 0; left -= size) {
    const std::int64_t count = left < size ? left : size;
    walk.gather(filter, packed, count);
    sum.add(packed, count);
  }
  return sum.total();
}

template <class T>
inline typename Number<T>::Acc norm(const T* filter, const Layer& layer, bool dense) {
  return dense ? dense_norm(filter, elements_of(layer)) : strided_norm(filter, layer);
}

template <class T>
inline float per_kernel(typename Number<T>::Acc norm, const Layer& layer) {
  return static_cast<float>(norm / static_cast<typename Number<T>::Acc>(layer.channels));
}

// Filters side by side in memory, each with a short run of it at every position of the outer dimensions (transposed
// convolutions and views, vectors): the runs are added up where they lie, memory is read in order.
struct Columns {
  std::int64_t run;
  Walk outer;
  std::int64_t steps;
};

constexpr std::int64_t kMaxColumns = 512;

inline bool find_columns(const Layer& layer, Columns* columns) {
  const bool kernel_is_run = layer.kernel2 == 1 || layer.stride2 == 1;
  const std::int64_t run = kernel_is_run ? layer.kernel2 : 1;
  if (layer.filter_stride != run || run > kMaxColumns) return false;
  Layer outer = layer;
  if (kernel_is_run) outer.kernel2 = 1;
  *columns = {run, Walk(outer), elements_of(outer)};
  return true;
}

template <class T>
void column_importance(const Layer& layer, const Columns& columns, const T* weight, std::int64_t count,
                       float* importance) {
  using Acc = typename Number<T>::Acc;
  constexpr int lanes = kLanes<T>;
  // Partial sums of this many positions are added to the totals, which keeps rounding errors small.
  constexpr std::int64_t inner = 64;
  const std::int64_t block = kMaxColumns / columns.run;
  for (std::int64_t f = 0; f < count; f += block) {
    const std::int64_t filters = count - f < block ? count - f : block;
    const std::int64_t width = filters * columns.run;
    Acc total[kMaxColumns] = {};
    Walk walk = columns.outer;
    for (std::int64_t done = 0; done < columns.steps; done += inner) {
      const std::int64_t steps = columns.steps - done < inner ? columns.steps - done : inner;
      Acc partial[kMaxColumns];
      for (std::int64_t i = 0; i < width; ++i) partial[i] = 0;
      for (std::int64_t step = 0; step < steps; ++step) {
        const T* row = weight + f * layer.filter_stride + walk.next();
        std::int64_t i = 0;
        for (; i + lanes <= width; i += lanes) {
          write(partial + i, read<Values<T>>(partial + i) + absolute(load(row + i)));
        }
        for (; i < width; ++i) partial[i] += absolute(widen(row[i]));
      }
      for (std::int64_t i = 0; i < width; ++i) total[i] += partial[i];
    }
    for (std::int64_t i = 0; i < filters; ++i) {
      Acc sum = 0;
      for (std::int64_t k = 0; k < columns.run; ++k) sum += total[i * columns.run + k];
      importance[f + i] = per_kernel<T>(sum, layer);
    }
  }
}

template <class T>
void filter_importance(const Layer& layer, const T* weight, std::int64_t first, std::int64_t count, float* importance) {
  const T* start = weight + first * layer.filter_stride;
  const std::int64_t elements = elements_of(layer);
  const bool dense = is_dense(layer);
  Columns columns{1, Walk(layer), 0};
  if ((!dense || elements == 1) && find_columns(layer, &columns)) {
    column_importance(layer, columns, start, count, importance);
    return;
  }
  for (std::int64_t i = 0; i < count; ++i) {
    importance[i] = per_kernel<T>(norm(start + i * layer.filter_stride, layer, dense), layer);
  }
}

}  // namespace
}  // namespace we::cpu
