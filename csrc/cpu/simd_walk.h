// Steps through the elements of one filter with any strides. For the simd_*.cpp files only.
#pragma once

#include <cstdint>

#include "cpu/simd_vectors.h"
#include "layout.h"
#include "places.h"

namespace we::cpu {
namespace {

// Visits the offsets of a filter's elements, channel by channel, each kernel in row-major order.
class Walk {
 public:
  explicit Walk(const Layer& layer)
      : sizes_{layer.channels, layer.kernel0, layer.kernel1, layer.kernel2},
        strides_{layer.channel_stride, layer.stride0, layer.stride1, layer.stride2} {}

  // Starts at the element of that number.
  Walk(const Layer& layer, std::int64_t start) : Walk(layer) {
    for (int d = 3; d >= 0; --d) {
      at_[d] = start % sizes_[d];
      start /= sizes_[d];
      offset_ += at_[d] * strides_[d];
    }
  }

  // Returns the offset of the element it is at, then goes on to the next.
  std::int64_t next() {
    const std::int64_t offset = offset_;
    for (int d = 3; d >= 0; --d) {
      offset_ += strides_[d];
      if (++at_[d] < sizes_[d]) break;
      offset_ -= sizes_[d] * strides_[d];
      at_[d] = 0;
    }
    return offset;
  }

  template <class T>
  void gather(const T* filter, T* packed, std::int64_t count) {
    for (std::int64_t i = 0; i < count; ++i) packed[i] = filter[next()];
  }

  template <class T>
  void scatter(T* filter, const T* packed, std::int64_t count) {
    for (std::int64_t i = 0; i < count; ++i) filter[next()] = packed[i];
  }

 private:
  std::int64_t sizes_[4];
  std::int64_t strides_[4];
  std::int64_t at_[4] = {};
  std::int64_t offset_ = 0;
};

}  // namespace
}  // namespace we::cpu
