#pragma once

#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <type_traits>

#include "layout.h"

// The weights' dtypes: how they are widened to the type that sums run in, and rounded back.
namespace we::cuda {

struct Half {
  std::uint16_t bits;
};
struct BFloat16 {
  std::uint16_t bits;
};

template <typename T>
struct Number {
  using Acc = float;
  using Bits = std::int32_t;  // magnitudes order like these
};
template <>
struct Number<double> {
  using Acc = double;
  using Bits = std::int64_t;
};

inline __device__ float widen(float value) { return value; }
inline __device__ double widen(double value) { return value; }
inline __device__ float widen(Half value) { return __half2float(__ushort_as_half(value.bits)); }
inline __device__ float widen(BFloat16 value) { return __uint_as_float(std::uint32_t{value.bits} << 16); }

inline __device__ float absolute(float value) { return fabsf(value); }
inline __device__ double absolute(double value) { return fabs(value); }

inline __device__ std::int32_t magnitude_bits(float value) {
  return static_cast<std::int32_t>(__float_as_uint(value) & 0x7fffffffu);
}
inline __device__ std::int64_t magnitude_bits(double value) { return __double_as_longlong(value) & 0x7fffffffffffffff; }

inline __device__ bool is_finite(float value) { return magnitude_bits(value) < 0x7f800000; }
inline __device__ bool is_finite(double value) { return magnitude_bits(value) < 0x7ff0000000000000; }

// Rounds a finite value to nearest even.
template <typename T>
inline __device__ T narrow(typename Number<T>::Acc value) {
  return value;
}
template <>
inline __device__ Half narrow<Half>(float value) {
  return {__half_as_ushort(__float2half_rn(value))};
}
template <>
inline __device__ BFloat16 narrow<BFloat16>(float value) {
  const std::uint32_t bits = __float_as_uint(value);
  return {static_cast<std::uint16_t>((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16)};
}

// Rounds a value and returns whether it is finite in T; an element whose new value is not keeps its own.
template <typename T>
inline __device__ bool round_finite(typename Number<T>::Acc value, T& rounded) {
  if (!is_finite(value)) return false;
  rounded = narrow<T>(value);
  return is_finite(widen(rounded));
}

// 16 bytes are the widest load that every generation has.
template <typename T>
struct alignas(16) Pack {
  static constexpr int kSize = 16 / sizeof(T);
  T values[kSize];
};

// Calls action(tag) with a null pointer to the layer's dtype.
template <typename Action>
inline __device__ auto with_dtype(const Layer& layer, Action action) {
  switch (layer.dtype) {
    case kFloat32:
      return action(static_cast<float*>(nullptr));
    case kFloat64:
      return action(static_cast<double*>(nullptr));
    case kFloat16:
      return action(static_cast<Half*>(nullptr));
    default:
      return action(static_cast<BFloat16*>(nullptr));
  }
}

}  // namespace we::cuda
