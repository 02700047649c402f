#pragma once

#include <cuda_runtime.h>

#include <cstdint>

// Warps, blocks and grids.
namespace we::cuda {

constexpr int kWarp = 32;
constexpr unsigned kAllLanes = 0xffffffffu;

inline __device__ int thread_index() { return static_cast<int>(threadIdx.x); }
inline __device__ int lane_index() { return thread_index() % kWarp; }
inline __device__ int warp_index() { return thread_index() / kWarp; }

template <typename S>
inline __device__ S warp_sum(S value) {
  for (int lane = kWarp / 2; lane > 0; lane /= 2) value += __shfl_xor_sync(kAllLanes, value, lane);
  return value;
}

// The sum of the values of this and all lower lanes.
template <typename S>
inline __device__ S warp_prefix_sum(S value) {
  for (int distance = 1; distance < kWarp; distance *= 2) {
    const S before = __shfl_up_sync(kAllLanes, value, distance);
    if (lane_index() >= distance) value += before;
  }
  return value;
}

// The same sum in every thread. All threads of the block have to get here.
template <int Threads, typename S>
inline __device__ S block_sum(S value) {
  __shared__ S parts[Threads / kWarp];
  value = warp_sum(value);
  if (lane_index() == 0) parts[warp_index()] = value;
  __syncthreads();
  S sum = 0;
  for (int i = 0; i < Threads / kWarp; ++i) sum += parts[i];
  __syncthreads();  // before the next call overwrites the parts
  return sum;
}

// Finds as many blocks as there is work for, up to a limit beyond which kernels go round a loop.
inline cudaError_t grid_blocks(std::int64_t wanted, int blocks_per_processor, std::int64_t& blocks) {
  int device = 0;
  int processors = 0;
  cudaError_t error = cudaGetDevice(&device);
  if (error == cudaSuccess) error = cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device);
  const std::int64_t most = std::int64_t{processors} * blocks_per_processor;
  blocks = wanted < most ? wanted : most;
  return error;
}

// Nothing is launched for 0 blocks. Only the first dimension of grids is used: the others end at 65,535.
template <typename... Parameters, typename... Arguments>
inline cudaError_t launch(void (*kernel)(Parameters...), std::int64_t blocks, int threads, cudaStream_t stream,
                          const Arguments&... arguments) {
  if (blocks == 0) return cudaSuccess;
  if (blocks > INT32_MAX) return cudaErrorInvalidConfiguration;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(blocks));
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.stream = stream;
  return cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(arguments)...);
}

}  // namespace we::cuda
