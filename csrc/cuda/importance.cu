#include "importance.h"

#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>

namespace we::cuda {
namespace {

constexpr int kWarp = 32;
constexpr int kWarps = 8;
constexpr int kBlocksPerProcessor = 4;       // leaves 64 registers a thread; more blocks spill
constexpr std::int64_t kLongFilter = 16384;  // from here on a whole block shares a filter

struct Half {
  std::uint16_t bits;
};
struct BFloat16 {
  std::uint16_t bits;
};

template <typename T>
struct Sum {
  using type = float;
};
template <>
struct Sum<double> {
  using type = double;
};

__device__ float magnitude(float value) { return fabsf(value); }
__device__ double magnitude(double value) { return fabs(value); }
__device__ float magnitude(Half value) { return fabsf(__half2float(__ushort_as_half(value.bits))); }
__device__ float magnitude(BFloat16 value) { return fabsf(__uint_as_float(std::uint32_t{value.bits} << 16)); }

// 16 bytes, the widest load there is on every generation.
template <typename T>
struct alignas(16) Pack {
  static constexpr int kSize = 16 / sizeof(T);
  T values[kSize];
};

// Threads 0 <= thread < threads share the elements below; each function returns this thread's part of the sum.

template <typename T>
__device__ typename Sum<T>::type sum_dense(const T* row, std::int64_t elements, int thread, int threads) {
  constexpr int size = Pack<T>::kSize;
  typename Sum<T>::type sum = 0;
  // Rows start anywhere: 9, 27 or 147 elements are common lengths.
  const std::int64_t misaligned = static_cast<std::int64_t>(reinterpret_cast<std::uintptr_t>(row) / sizeof(T)) % size;
  std::int64_t head = (size - misaligned) % size;
  if (head > elements) head = elements;
  const std::int64_t packs = (elements - head) / size;
  const auto* body = reinterpret_cast<const Pack<T>*>(row + head);
  if (thread < head) sum += magnitude(row[thread]);
#pragma unroll 4
  for (std::int64_t i = thread; i < packs; i += threads) {
    const Pack<T> pack = body[i];
#pragma unroll
    for (int j = 0; j < size; ++j) sum += magnitude(pack.values[j]);
  }
  const std::int64_t tail = head + packs * size + thread;
  if (tail < elements) sum += magnitude(row[tail]);
  return sum;
}

// Index: uint32_t where it can count the elements, since a 64-bit division takes some 70 instructions.
template <typename T, typename Index>
__device__ typename Sum<T>::type sum_strided(const T* row, const Layer& layer, Index elements, int thread,
                                             int threads) {
  const Index kernel2 = static_cast<Index>(layer.kernel2);
  const Index kernel1 = static_cast<Index>(layer.kernel1);
  const Index kernel0 = static_cast<Index>(layer.kernel0);
  typename Sum<T>::type sum = 0;
  for (Index i = thread; i < elements; i += threads) {
    const Index rest1 = i / kernel2;
    const Index rest0 = rest1 / kernel1;
    const Index channel = rest0 / kernel0;
    const std::int64_t offset = static_cast<std::int64_t>(channel) * layer.channel_stride +
                                static_cast<std::int64_t>(rest0 - channel * kernel0) * layer.stride0 +
                                static_cast<std::int64_t>(rest1 - rest0 * kernel1) * layer.stride1 +
                                static_cast<std::int64_t>(i - rest1 * kernel2) * layer.stride2;
    sum += magnitude(row[offset]);
  }
  return sum;
}

__device__ std::int64_t elements_of(const Layer& layer) {
  return layer.channels * layer.kernel0 * layer.kernel1 * layer.kernel2;
}

// The elements of a filter fill a gapless run of memory, in whatever order (no two of them share an address).
__device__ bool is_dense(const Layer& layer) {
  const std::int64_t last = (layer.channels - 1) * layer.channel_stride + (layer.kernel0 - 1) * layer.stride0 +
                            (layer.kernel1 - 1) * layer.stride1 + (layer.kernel2 - 1) * layer.stride2;
  return last + 1 == elements_of(layer);
}

template <typename T>
__device__ typename Sum<T>::type sum_filter(const Layer& layer, std::int64_t pointer, std::int64_t row, int thread,
                                            int threads) {
  const T* weights = reinterpret_cast<const T*>(pointer) + row * layer.filter_stride;
  const std::int64_t elements = elements_of(layer);
  if (is_dense(layer)) return sum_dense(weights, elements, thread, threads);
  if (elements <= INT32_MAX) {
    return sum_strided(weights, layer, static_cast<std::uint32_t>(elements), thread, threads);
  }
  return sum_strided(weights, layer, static_cast<std::uint64_t>(elements), thread, threads);
}

template <typename S>
__device__ S warp_sum(S value) {
  for (int lane = kWarp / 2; lane > 0; lane /= 2) value += __shfl_xor_sync(0xffffffffu, value, lane);
  return value;
}

// Every thread of the warp (Threads == kWarp) or block gets to the end; thread 0 has the importance.
template <typename T, int Threads>
__device__ float importance_of(const Layer& layer, std::int64_t pointer, std::int64_t row) {
  using S = typename Sum<T>::type;
  S sum = warp_sum(sum_filter<T>(layer, pointer, row, threadIdx.x % Threads, Threads));
  if constexpr (Threads > kWarp) {
    __shared__ S parts[Threads / kWarp];
    if (threadIdx.x % kWarp == 0) parts[threadIdx.x / kWarp] = sum;
    __syncthreads();
    sum = 0;
    for (int i = 0; i < Threads / kWarp; ++i) sum += parts[i];
    __syncthreads();  // before the next filter overwrites the parts
  }
  return static_cast<float>(sum / static_cast<S>(layer.channels));
}

template <int Threads>
__device__ float importance_of(const Layer& layer, std::int64_t pointer, std::int64_t row) {
  switch (layer.dtype) {
    case 0:
      return importance_of<float, Threads>(layer, pointer, row);
    case 1:
      return importance_of<double, Threads>(layer, pointer, row);
    case 2:
      return importance_of<Half, Threads>(layer, pointer, row);
    default:
      return importance_of<BFloat16, Threads>(layer, pointer, row);
  }
}

// The last layer whose first filter is at or before this one.
__device__ std::int64_t layer_of(const Layer* layers, std::int64_t num_layers, std::int64_t filter) {
  std::int64_t low = 0;
  std::int64_t high = num_layers - 1;
  while (low < high) {
    const std::int64_t middle = (low + high + 1) / 2;
    if (layers[middle].first_filter <= filter) {
      low = middle;
    } else {
      high = middle - 1;
    }
  }
  return low;
}

// Each block takes kWarps filters at a time: short ones a warp each, then the long ones one after another.
__global__ void __launch_bounds__(kWarps* kWarp, kBlocksPerProcessor)
    importance_kernel(const std::int64_t* pointers, const Layer* layers, std::int64_t num_layers,
                      std::int64_t num_filters, float* importance) {
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const std::int64_t step = static_cast<std::int64_t>(gridDim.x) * kWarps;
  for (std::int64_t first = static_cast<std::int64_t>(blockIdx.x) * kWarps; first < num_filters; first += step) {
    const std::int64_t filter = first + warp;
    bool is_long = false;
    if (filter < num_filters) {
      const std::int64_t index = layer_of(layers, num_layers, filter);
      const Layer& layer = layers[index];
      is_long = elements_of(layer) >= kLongFilter;
      if (!is_long) {
        const float value = importance_of<kWarp>(layer, pointers[index], filter - layer.first_filter);
        if (threadIdx.x % kWarp == 0) importance[filter] = value;
      }
    }
    if (__syncthreads_or(is_long)) {
      for (std::int64_t other = first; other < first + kWarps && other < num_filters; ++other) {
        const std::int64_t index = layer_of(layers, num_layers, other);
        const Layer& layer = layers[index];
        if (elements_of(layer) < kLongFilter) continue;
        const float value = importance_of<kWarps * kWarp>(layer, pointers[index], other - layer.first_filter);
        if (threadIdx.x == 0) importance[other] = value;
      }
    }
  }
}

}  // namespace

cudaError_t filter_importance(const std::int64_t* pointers, const Layer* layers, std::int64_t num_layers,
                              std::int64_t num_filters, float* importance, cudaStream_t stream) {
  if (num_filters == 0) return cudaSuccess;
  int device = 0;
  int processors = 0;
  if (const cudaError_t error = cudaGetDevice(&device); error != cudaSuccess) return error;
  if (const cudaError_t error = cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device);
      error != cudaSuccess) {
    return error;
  }
  const std::int64_t needed = (num_filters + kWarps - 1) / kWarps;
  const std::int64_t resident = static_cast<std::int64_t>(processors) * kBlocksPerProcessor;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(needed < resident ? needed : resident));
  config.blockDim = dim3(kWarps * kWarp);
  config.stream = stream;
  return cudaLaunchKernelEx(&config, importance_kernel, pointers, layers, num_layers, num_filters, importance);
}

}  // namespace we::cuda
