#pragma once

#include "places.h"
#include "values.cuh"

// Walks over the elements of a filter, and the sum of their magnitudes.
namespace we::cuda {

// The last of `count` ascending numbers that is at most `value`; the first is.
template <typename Number>
inline __device__ std::int64_t last_at_most(std::int64_t count, std::int64_t value, Number number) {
  std::int64_t low = 0;
  std::int64_t high = count - 1;
  while (low < high) {
    const std::int64_t middle = (low + high + 1) / 2;
    if (number(middle) <= value) {
      low = middle;
    } else {
      high = middle - 1;
    }
  }
  return low;
}

inline __device__ std::int64_t layer_of(const Layer* layers, std::int64_t num_layers, std::int64_t filter) {
  return last_at_most(num_layers, filter, [=](std::int64_t i) { return layers[i].first_filter; });
}

// Threads 0 <= thread < threads share the elements of a filter in the functions below.

// Calls visit(offset) for every element, whatever its strides. Index is uint32_t where that can count the elements,
// since a 64-bit division takes some 70 instructions.
template <typename Index, typename Visit>
inline __device__ void each_strided(const Layer& layer, Index elements, int thread, int threads, Visit visit) {
  const Index kernel2 = static_cast<Index>(layer.kernel2);
  const Index kernel1 = static_cast<Index>(layer.kernel1);
  const Index kernel0 = static_cast<Index>(layer.kernel0);
  for (Index i = thread; i < elements; i += threads) {
    const Index rest1 = i / kernel2;
    const Index rest0 = rest1 / kernel1;
    const Index channel = rest0 / kernel0;
    visit(static_cast<std::int64_t>(channel) * layer.channel_stride +
          static_cast<std::int64_t>(rest0 - channel * kernel0) * layer.stride0 +
          static_cast<std::int64_t>(rest1 - rest0 * kernel1) * layer.stride1 +
          static_cast<std::int64_t>(i - rest1 * kernel2) * layer.stride2);
  }
}

template <typename Visit>
inline __device__ void each_strided(const Layer& layer, int thread, int threads, Visit visit) {
  const std::int64_t elements = elements_of(layer);
  if (elements <= INT32_MAX) {
    each_strided(layer, static_cast<std::uint32_t>(elements), thread, threads, visit);
  } else {
    each_strided(layer, static_cast<std::uint64_t>(elements), thread, threads, visit);
  }
}

// The number of elements before the first 16-byte boundary. Rows start anywhere: 9, 27 or 147 elements are common
// lengths.
template <typename T>
inline __device__ std::int64_t head_of(const T* row, std::int64_t elements) {
  constexpr int size = Pack<T>::kSize;
  const auto misaligned = static_cast<std::int64_t>(reinterpret_cast<std::uintptr_t>(row) / sizeof(T) % size);
  const std::int64_t head = (size - misaligned) % size;
  return head < elements ? head : elements;
}

// This thread's part of the sum of magnitudes.
template <typename T>
inline __device__ typename Number<T>::Acc sum_dense(const T* row, std::int64_t elements, int thread, int threads) {
  constexpr int size = Pack<T>::kSize;
  typename Number<T>::Acc sum = 0;
  const std::int64_t head = head_of(row, elements);
  const std::int64_t packs = (elements - head) / size;
  const auto* body = reinterpret_cast<const Pack<T>*>(row + head);
  if (thread < head) sum += absolute(widen(row[thread]));
#pragma unroll 4
  for (std::int64_t i = thread; i < packs; i += threads) {
    const Pack<T> pack = body[i];
#pragma unroll
    for (int j = 0; j < size; ++j) sum += absolute(widen(pack.values[j]));
  }
  const std::int64_t tail = head + packs * size + thread;
  if (tail < elements) sum += absolute(widen(row[tail]));
  return sum;
}

template <typename T>
inline __device__ typename Number<T>::Acc sum_filter(const Layer& layer, const T* row, int thread, int threads) {
  if (is_dense(layer)) return sum_dense(row, elements_of(layer), thread, threads);
  typename Number<T>::Acc sum = 0;
  each_strided(layer, thread, threads, [&](std::int64_t offset) { sum += absolute(widen(row[offset])); });
  return sum;
}

}  // namespace we::cuda
