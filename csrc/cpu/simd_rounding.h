// Arithmetic that rounds as torch's own CPU kernels do. For the simd_*.cpp files only.
#pragma once

#include <cstdint>

#include "cpu/rounding.h"
#include "cpu/simd_vectors.h"
#include "layout.h"
#include "places.h"

namespace we::cpu {
namespace {

// Returns a + alpha * b, rounded once.
inline Floats fused(Floats a, Floats b, Floats alpha) {
#if defined(__AVX512F__)
  return (Floats)_mm512_fmadd_ps((__m512)alpha, (__m512)b, (__m512)a);
#elif defined(__AVX2__)
  return (Floats)_mm256_fmadd_ps((__m256)alpha, (__m256)b, (__m256)a);
#else
  Floats sum{};
  for (int i = 0; i < kLanes<float>; ++i) sum[i] = __builtin_fmaf(alpha[i], b[i], a[i]);
  return sum;
#endif
}
inline Doubles fused(Doubles a, Doubles b, Doubles alpha) {
#if defined(__AVX512F__)
  return (Doubles)_mm512_fmadd_pd((__m512d)alpha, (__m512d)b, (__m512d)a);
#elif defined(__AVX2__)
  return (Doubles)_mm256_fmadd_pd((__m256d)alpha, (__m256d)b, (__m256d)a);
#else
  Doubles sum{};
  for (int i = 0; i < kLanes<double>; ++i) sum[i] = __builtin_fma(alpha[i], b[i], a[i]);
  return sum;
#endif
}

template <class T>
constexpr bool kIsNarrow = sizeof(T) == 2;

inline Floats widen_vector(const Half*, Shorts x) { return widen_half(x); }
inline Floats widen_vector(const BFloat16*, Shorts x) { return widen_bfloat16(x); }

template <class T>
inline Values<T> rounded(Values<T> x) {
  if constexpr (kIsNarrow<T>) return widen_vector(static_cast<T*>(nullptr), narrow_any(static_cast<T*>(nullptr), x));
  else return x;
}

// What a scalar becomes in an operation on tensors of type T: its value in T.
template <class T>
inline Values<T> scalar(double value) {
  return rounded<T>(all_lanes<Values<T>>(static_cast<typename Number<T>::Acc>(value)));
}

// Returns a + alpha * b; if `once`, the product is not rounded.
template <class T, bool once>
inline Values<T> multiply_add(Values<T> a, Values<T> b, Values<T> alpha) {
  if constexpr (kIsNarrow<T>) {
    // The product of two numbers of 11 bits is exact.
    return rounded<T>(a + (once ? alpha * b : rounded<T>(alpha * b)));
  } else if constexpr (once) {
    return fused(a, b, alpha);
  } else {
    return a + alpha * b;
  }
}

// Which elements of a tensor of type T are rounded once.
template <class T>
class RoundingOf {
 public:
  // `dense`: the elements are asked for in the order of memory, in which the whole tensor fills one run.
  RoundingOf(const Rounding& rounding, const Layer& layer, bool dense)
      : fused_(rounding.fused), step_(rounding.step[layer.dtype]), total_(layer.filters * elements_of(layer)) {
    std::int64_t parts = total_ < rounding.grain ? 1 : (total_ + rounding.grain - 1) / rounding.grain;
    if (parts > rounding.threads) parts = rounding.threads;
    part_ = dense ? (total_ + parts - 1) / parts : 0;
  }

  // Whether elements that were gathered are.
  bool gathered() const { return kIsNarrow<T> ? step_ != 0 : fused_; }

  // Calls work(once, offset, count) for each stretch of these elements of which all are rounded alike.
  template <class F>
  void each(std::int64_t offset, std::int64_t count, F&& work) const {
    if (!kIsNarrow<T> || part_ == 0 || step_ == 0) return work(gathered(), offset, count);
    while (count > 0) {
      const std::int64_t at = offset % part_;
      const std::int64_t start = offset - at;
      const std::int64_t length = total_ - start < part_ ? total_ - start : part_;
      const std::int64_t body = length / step_ * step_;
      const std::int64_t left = at < body ? body - at : length - at;
      const std::int64_t now = count < left ? count : left;
      work(at < body, offset, now);
      offset += now;
      count -= now;
    }
  }

 private:
  bool fused_;
  std::int64_t step_;
  std::int64_t total_;
  std::int64_t part_;
};

}  // namespace
}  // namespace we::cpu
