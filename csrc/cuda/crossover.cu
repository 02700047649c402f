#include "evolution.h"
#include "filters.cuh"
#include "threads.cuh"

namespace we::cuda {
namespace {

constexpr int kThreads = 128;                         // share a filter
constexpr int kBlocksPerProcessor = 5;                // leaves 96 registers a thread; more blocks spill
constexpr int kGridBlocks = 4 * kBlocksPerProcessor;  // for each processor: filters differ in length

// One element of a q + (1 - a) p; q where that is not finite.
template <typename T>
__device__ T blended(T q, T p, typename Number<T>::Acc a) {
  T result = q;
  round_finite(a * widen(q) + (1 - a) * widen(p), result);
  return result;
}

template <typename T>
__device__ void blend_dense(T* q, const T* p, std::int64_t elements, typename Number<T>::Acc a) {
  constexpr int size = Pack<T>::kSize;
  std::int64_t head = head_of(q, elements);
  if (head_of(p, elements) != head) head = elements;  // never both on a boundary
  const std::int64_t packs = (elements - head) / size;
  for (std::int64_t i = thread_index(); i < head; i += kThreads) q[i] = blended(q[i], p[i], a);
  auto* body_q = reinterpret_cast<Pack<T>*>(q + head);
  const auto* body_p = reinterpret_cast<const Pack<T>*>(p + head);
  for (std::int64_t i = thread_index(); i < packs; i += kThreads) {
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
__device__ void blend(T* q, const T* p, const Layer& layer) {
  using Acc = typename Number<T>::Acc;
  const Acc norm_q = block_sum<kThreads>(sum_filter(layer, q, thread_index(), kThreads));
  const Acc norm_p = block_sum<kThreads>(sum_filter(layer, p, thread_index(), kThreads));
  const Acc a = norm_q / (norm_q + norm_p);
  if (is_dense(layer)) {
    blend_dense(q, p, elements_of(layer), a);
  } else {
    each_strided(layer, thread_index(), kThreads,
                 [&](std::int64_t offset) { q[offset] = blended(q[offset], p[offset], a); });
  }
}

template <typename Visit>
__device__ void each_of_kernel(const Layer& layer, Visit visit) {
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
__device__ void cross_kernel(T* q, const T* p, const Layer& layer, Rule rule) {
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
__device__ void cross(const Layer& layer, std::int64_t pointer, std::int64_t row, std::int64_t source, Rule rule) {
  with_dtype(layer, [&](auto* tag) {
    using T = std::remove_pointer_t<decltype(tag)>;
    T* const weight = reinterpret_cast<T*>(pointer);
    T* const q = weight + row * layer.filter_stride;
    const T* const p = weight + source * layer.filter_stride;
    if (layer.blend != 0) {
      blend(q, p, layer);
    } else {
      for (std::int64_t channel = thread_index(); channel < layer.channels; channel += kThreads) {
        const std::int64_t offset = channel * layer.channel_stride;
        cross_kernel(q + offset, p + offset, layer, rule);
      }
    }
  });
}

__global__ void __launch_bounds__(kThreads, kBlocksPerProcessor)
    crossover_kernel(Bank bank, const std::int32_t* donor, Rule rule) {
  for (std::int64_t filter = blockIdx.x; filter < bank.num_filters; filter += gridDim.x) {
    const std::int32_t source = donor[filter];
    if (source < 0) continue;
    const std::int64_t index = layer_of(bank.layers, bank.num_layers, filter);
    const Layer& layer = bank.layers[index];
    if (source >= layer.filters) continue;
    cross(layer, bank.pointers[index], filter - layer.first_filter, source, rule);
  }
}

// The k-th best of a layer's inferior filters gets the k-th most important filter of the layer.
struct Match {
  std::int64_t layer;
  std::int64_t first_filter;
  std::int32_t row;
  std::int32_t source;
  bool valid;  // the order holds anything where another stream changed importances while they were ranked
};

__device__ Match read_match(const Plan& plan, const Selection& selection, const Scratch& scratch, std::int64_t match) {
  const std::int64_t slot =
      last_at_most(plan.num_layers, match, [&](std::int64_t i) { return scratch.first_match[i]; });
  const std::int64_t layer = plan.slots[2 * slot];
  const std::int64_t first_filter = plan.segments[3 * layer + 1];
  const std::int64_t dominant = plan.slots[2 * slot + 1] - selection.inferior[layer];
  const std::int32_t* const order = scratch.order + first_filter + (match - scratch.first_match[slot]);
  const std::int32_t row = order[dominant];
  const std::int32_t source = order[0];
  const std::int32_t filters = plan.slots[2 * slot + 1];
  return {layer, first_filter, row, source, row >= 0 && row < filters && source >= 0 && source < filters};
}

__global__ void __launch_bounds__(kThreads) match_kernel(Plan plan, Selection selection, Scratch scratch) {
  const std::int64_t end = scratch.first_match[plan.num_layers];
  const std::int64_t step = static_cast<std::int64_t>(gridDim.x) * kThreads;
  for (std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * kThreads + thread_index(); i < end; i += step) {
    const Match match = read_match(plan, selection, scratch, i);
    if (match.valid) selection.donor[match.first_filter + match.row] = match.source;
  }
}

__global__ void __launch_bounds__(kThreads, kBlocksPerProcessor)
    match_and_cross_kernel(Bank bank, Plan plan, Selection selection, Scratch scratch, Rule rule) {
  const std::int64_t end = scratch.first_match[plan.num_layers];
  for (std::int64_t i = blockIdx.x; i < end; i += gridDim.x) {
    const Match match = read_match(plan, selection, scratch, i);
    if (!match.valid) continue;
    if (thread_index() == 0) selection.donor[match.first_filter + match.row] = match.source;
    cross(bank.layers[match.layer], bank.pointers[match.layer], match.row, match.source, rule);
  }
}

}  // namespace

cudaError_t match(const Plan& plan, const Selection& selection, const Scratch& scratch, cudaStream_t stream) {
  std::int64_t blocks = 0;
  // At most half of the filters get a donor.
  const std::int64_t wanted = (plan.num_filters / 2 + kThreads - 1) / kThreads;
  if (const cudaError_t error = grid_blocks(wanted, kGridBlocks, blocks); error != cudaSuccess) return error;
  return launch(match_kernel, blocks, kThreads, stream, plan, selection, scratch);
}

cudaError_t crossover(const Bank& bank, const std::int32_t* donor, Rule rule, cudaStream_t stream) {
  std::int64_t blocks = 0;
  const cudaError_t error = grid_blocks(bank.num_filters, kGridBlocks, blocks);
  if (error != cudaSuccess) return error;
  return launch(crossover_kernel, blocks, kThreads, stream, bank, donor, rule);
}

cudaError_t match_and_cross(const Bank& bank, const Plan& plan, const Selection& selection, const Scratch& scratch,
                            Rule rule, cudaStream_t stream) {
  std::int64_t blocks = 0;
  const cudaError_t error = grid_blocks(plan.num_filters / 2, kGridBlocks, blocks);
  if (error != cudaSuccess) return error;
  return launch(match_and_cross_kernel, blocks, kThreads, stream, bank, plan, selection, scratch, rule);
}

}  // namespace we::cuda
