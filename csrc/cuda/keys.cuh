#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "keys.h"

// Importances as integers that order like them: a NaN cannot break a ranking.
namespace we::cuda {

// -0 is 0; other negative values have negative keys.
inline __device__ Key sort_key(float importance) {
  return importance == 0 ? 0 : static_cast<Key>(__float_as_uint(importance));
}

// The threshold of a group with an importance that is negative or not finite: a NaN.
inline __device__ float poison() { return __uint_as_float(0x7fc00000u); }

// Whether the threshold of any group is poison. The whole block has to get here.
inline __device__ bool any_poisoned(const float* threshold, std::int64_t groups) {
  bool found = false;
  for (std::int64_t group = threadIdx.x; group < groups; group += blockDim.x) {
    found |= threshold[group] != threshold[group];
  }
  return __syncthreads_or(found);
}

}  // namespace we::cuda
