#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "layout.h"

namespace we::cuda {

// The importance (L1 norm / number of kernels) of every filter of a bank, on the current device.
//   pointers    device, int64 [num_layers]: addresses of the weights
//   layers      device, [num_layers]; first_filter ascends
//   importance  device, float32 [num_filters]
// Sums are float64 for float64 weights, float32 for the others, in an order that depends on the layout only.
cudaError_t filter_importance(const std::int64_t* pointers, const Layer* layers, std::int64_t num_layers,
                              std::int64_t num_filters, float* importance, cudaStream_t stream);

}  // namespace we::cuda
