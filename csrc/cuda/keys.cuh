#pragma once

#include <cuda_runtime.h>

#include <cstdint>

// Importances as integers that order like them: a NaN cannot break a ranking.
namespace we::cuda {

constexpr std::int32_t kLargestFinite = 0x7f7fffff;

// -0 is 0; other negative values have negative keys.
inline __device__ std::int32_t sort_key(float importance) {
  return importance == 0 ? 0 : static_cast<std::int32_t>(__float_as_uint(importance));
}

// Whether selection marked any group: its threshold is NaN. The whole block has to get here.
inline __device__ bool any_poisoned(const float* threshold, std::int64_t groups) {
  bool found = false;
  for (std::int64_t group = threadIdx.x; group < groups; group += blockDim.x) {
    found |= threshold[group] != threshold[group];
  }
  return __syncthreads_or(found);
}

}  // namespace we::cuda
