// The launchers under names that Python can load. Addresses are of host memory here.

#include "cuda/importance.h"
#include "cuda_runtime.h"

extern "C" int emulated_importance(const std::int64_t* pointers, const we::Layer* layers, std::int64_t num_layers,
                                   std::int64_t num_filters, float* importance, bool reversed) {
  emulation::reversed = reversed;
  return we::cuda::filter_importance(pointers, layers, num_layers, num_filters, importance, nullptr);
}
