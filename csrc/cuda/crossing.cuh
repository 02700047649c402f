#pragma once

#include "filters.cuh"
#include "rule.h"
#include "threads.cuh"

// The crossover of one filter by one block, which two kernels do, each in a file of its own: nvcc takes longest for it.
namespace we::cuda {

constexpr int kCrossingThreads = 128;                 // share a filter
constexpr int kBlocksPerProcessor = 5;                // leaves 96 registers a thread; more blocks spill
constexpr int kGridBlocks = 4 * kBlocksPerProcessor;  // for each processor: filters differ in length

// One element of a q + (1 - a) p; q where that is not finite.
template <typename T>
inline __device__ T blended(T q, T p, typename Number<T>::Acc a) {
  T result = q;
  round_finite(a * widen(q) + (1 - a) * widen(p), result);
  return result;
}

template <typename T>
inline __device__ void blend_dense(T* q, const T* p, std::int64_t elements, typename Number<T>::Acc a) {
  constexpr int size = Pack<T>::kSize;
  std::int64_t head = head_of(q, elements);
  if (head_of(p, elements) != head) head = elements;  // never both on a boundary
  const std::int64_t packs = (elements - head) / size;
  for (std::int64_t i = thread_index(); i < head; i += kCrossingThreads) q[i] = blended(q[i], p[i], a);
  auto* body_q = reinterpret_cast<Pack<T>*>(q + head);
  const auto* body_p = reinterpret_cast<const Pack<T>*>(p + head);
  for (std::int64_t i = thread_index(); i < packs; i += kCrossingThreads) {
    Pack<T> own = body_q[i];
    const Pack<T> other = body_p[i];
#pragma unroll
    for (int j = 0; j < size; ++j) own.values[j] = blended(own.values[j], other.values[j], a);
    body_q[i] = own;
  }
  const std::int64_t tail = head + packs * size + thread_index();
  if (tail < elements) q[tail] = blended(q[tail], p[tail], a);
}

// q <- a q + (1 - a) p with one a = |q|_1 / (|q|_1 + |p|_1) for the whole filter.
template <typename T>
inline __device__ void blend(T* q, const T* p, const Layer& layer) {
  using Acc = typename Number<T>::Acc;
  const Acc norm_q = block_sum<kCrossingThreads>(sum_filter(layer, q, thread_index(), kCrossingThreads));
  const Acc norm_p = block_sum<kCrossingThreads>(sum_filter(layer, p, thread_index(), kCrossingThreads));
  const Acc a = norm_q / (norm_q + norm_p);
  if (is_dense(layer)) {
    blend_dense(q, p, elements_of(layer), a);
  } else {
    each_strided(layer, thread_index(), kCrossingThreads,
                 [&](std::int64_t offset) { q[offset] = blended(q[offset], p[offset], a); });
  }
}

template <typename Visit>
inline __device__ void each_of_kernel(const Layer& layer, Visit visit) {
  for (std::int64_t i = 0; i < layer.kernel0; ++i) {
    for (std::int64_t j = 0; j < layer.kernel1; ++j) {
      const std::int64_t start = i * layer.stride0 + j * layer.stride1;
      for (std::int64_t k = 0; k < layer.kernel2; ++k) visit(start + k * layer.stride2);
    }
  }
}

// One thread crosses one kernel: the donor's element of largest magnitude with the own one of smallest, the first of
// equals each.
template <typename T>
inline __device__ void cross_kernel(T* q, const T* p, const Layer& layer, Rule rule) {
  using Acc = typename Number<T>::Acc;
  using Bits = typename Number<T>::Bits;
  Acc s = 0;
  Acc l = 0;
  Bits smallest = 0;
  Bits largest = -1;
  std::int64_t target = -1;
  bool has_nan = false;
  each_of_kernel(layer, [&](std::int64_t offset) {
    const Acc own = widen(q[offset]);
    const Acc other = widen(p[offset]);
    has_nan |= own != own;
    if (target < 0 || magnitude_bits(own) < smallest) {
      smallest = magnitude_bits(own);
      s = own;
      target = offset;
    }
    if (magnitude_bits(other) > largest) {
      largest = magnitude_bits(other);
      l = other;
    }
  });
  if (has_nan) return;  // as in the reference, where it counts as the smallest
  T value;
  if (rule == Rule::paper) {
    const Acc a = absolute(s) / (absolute(s) + absolute(l));
    if (round_finite(a * s + (1 - a) * l, value)) q[target] = value;
    return;
  }
  const Acc a = s / (s + l);
  if (!round_finite(a * l + (1 - a) * s, value)) return;
  each_of_kernel(layer, [&](std::int64_t offset) {
    if (widen(q[offset]) == s) q[offset] = value;
  });
}

// A whole block overwrites filter `row` of a layer with a combination of itself and filter `source`.
inline __device__ void cross(const Layer& layer, std::int64_t pointer, std::int64_t row, std::int64_t source,
                             Rule rule) {
  with_dtype(layer, [&](auto* tag) {
    using T = std::remove_pointer_t<decltype(tag)>;
    T* const weight = reinterpret_cast<T*>(pointer);
    T* const q = weight + row * layer.filter_stride;
    const T* const p = weight + source * layer.filter_stride;
    if (layer.blend != 0) {
      blend(q, p, layer);
    } else {
      for (std::int64_t channel = thread_index(); channel < layer.channels; channel += kCrossingThreads) {
        const std::int64_t offset = channel * layer.channel_stride;
        cross_kernel(q + offset, p + offset, layer, rule);
      }
    }
  });
}

}  // namespace we::cuda
