#pragma once

#include <cstdint>

#include "layout.h"

// Where the elements of a layer lie in memory. These functions are always inlined, because device code calls them, too,
// and files that are compiled for different processors: of several copies the linker would keep one for all.
#ifdef __CUDACC__
#define WE_EVERYWHERE __host__ __device__ __forceinline__
#else
#define WE_EVERYWHERE inline __attribute__((always_inline))
#endif

namespace we {

// The number of elements of one filter.
WE_EVERYWHERE std::int64_t elements_of(const Layer& layer) {
  return layer.channels * layer.kernel0 * layer.kernel1 * layer.kernel2;
}

// The offset of the last element of a filter from its first.
WE_EVERYWHERE std::int64_t last_of_filter(const Layer& layer) {
  return (layer.channels - 1) * layer.channel_stride + (layer.kernel0 - 1) * layer.stride0 +
         (layer.kernel1 - 1) * layer.stride1 + (layer.kernel2 - 1) * layer.stride2;
}

// The offset of the last element of a layer, which is not empty, from its first.
WE_EVERYWHERE std::int64_t last_of_layer(const Layer& layer) {
  return (layer.filters - 1) * layer.filter_stride + last_of_filter(layer);
}

// Whether the elements of each filter fill a run of memory without gaps, in whatever order: no two share an address.
WE_EVERYWHERE bool is_dense(const Layer& layer) { return last_of_filter(layer) + 1 == elements_of(layer); }

// Whether all elements of the layer, which is not empty, fill one such run.
WE_EVERYWHERE bool is_one_run(const Layer& layer) {
  return last_of_layer(layer) + 1 == layer.filters * elements_of(layer);
}

// Whether corresponding elements of two layers of the same sizes have the same offsets.
WE_EVERYWHERE bool lie_alike(const Layer& a, const Layer& b) {
  return a.kernel0 == b.kernel0 && a.kernel1 == b.kernel1 && a.kernel2 == b.kernel2 &&
         a.filter_stride == b.filter_stride && a.channel_stride == b.channel_stride && a.stride0 == b.stride0 &&
         a.stride1 == b.stride1 && a.stride2 == b.stride2;
}

}  // namespace we
