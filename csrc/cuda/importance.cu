#include "evolution.h"
#include "filters.cuh"
#include "threads.cuh"

namespace we::cuda {
namespace {

constexpr int kWarps = 8;
constexpr int kThreads = kWarps * kWarp;
constexpr int kBlocksPerProcessor = 4;       // leaves 64 registers a thread; more blocks spill
constexpr std::int64_t kLongFilter = 16384;  // from here on a whole block shares a filter

// The importance of one filter, in every thread of the warp (Threads == kWarp) or block. All of them have to get here.
template <int Threads>
__device__ float importance_of(const Layer& layer, std::int64_t pointer, std::int64_t row) {
  return with_dtype(layer, [&](auto* tag) {
    using T = std::remove_pointer_t<decltype(tag)>;
    using Acc = typename Number<T>::Acc;
    const T* filter = reinterpret_cast<const T*>(pointer) + row * layer.filter_stride;
    const Acc part = sum_filter(layer, filter, thread_index() % Threads, Threads);
    Acc sum;
    if constexpr (Threads == kWarp) {
      sum = warp_sum(part);
    } else {
      sum = block_sum<Threads>(part);
    }
    return static_cast<float>(sum / static_cast<Acc>(layer.channels));
  });
}

// Each block takes kWarps filters at a time: short ones a warp each, then the long ones one after another.
__global__ void __launch_bounds__(kThreads, kBlocksPerProcessor) importance_kernel(Bank bank, float* importance) {
  const std::int64_t step = static_cast<std::int64_t>(gridDim.x) * kWarps;
  for (std::int64_t first = static_cast<std::int64_t>(blockIdx.x) * kWarps; first < bank.num_filters; first += step) {
    const std::int64_t filter = first + warp_index();
    bool is_long = false;
    if (filter < bank.num_filters) {
      const std::int64_t index = layer_of(bank.layers, bank.num_layers, filter);
      const Layer& layer = bank.layers[index];
      is_long = elements_of(layer) >= kLongFilter;
      if (!is_long) {
        const float value = importance_of<kWarp>(layer, bank.pointers[index], filter - layer.first_filter);
        if (lane_index() == 0) importance[filter] = value;
      }
    }
    if (__syncthreads_or(is_long)) {
      for (std::int64_t other = first; other < first + kWarps && other < bank.num_filters; ++other) {
        const std::int64_t index = layer_of(bank.layers, bank.num_layers, other);
        const Layer& layer = bank.layers[index];
        if (elements_of(layer) < kLongFilter) continue;
        const float value = importance_of<kThreads>(layer, bank.pointers[index], other - layer.first_filter);
        if (thread_index() == 0) importance[other] = value;
      }
    }
  }
}

}  // namespace

cudaError_t filter_importance(const Bank& bank, float* importance, cudaStream_t stream) {
  std::int64_t blocks = 0;
  const std::int64_t wanted = (bank.num_filters + kWarps - 1) / kWarps;
  if (const cudaError_t error = grid_blocks(wanted, kBlocksPerProcessor, blocks); error != cudaSuccess) return error;
  return launch(importance_kernel, blocks, kThreads, stream, bank, importance);
}

}  // namespace we::cuda
