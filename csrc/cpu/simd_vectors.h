// Vectors of WE_SIMD_BYTES, and loads and stores of the four dtypes. For the simd_*.cpp files only: everything has
// internal linkage, and no inline function of the standard library is used, so that the linker cannot pick code made
// for a newer processor for everybody.
#pragma once

#include <cstdint>

#if defined(__AVX2__)
#include <immintrin.h>
#elif defined(__SSE2__)
#include <emmintrin.h>
#endif

namespace we::cpu {
namespace {

struct Half {
  std::uint16_t bits;
};
struct BFloat16 {
  std::uint16_t bits;
};

// Acc is the type that a dtype is computed in.
template <class T>
struct Number {
  using Acc = float;
};
template <>
struct Number<double> {
  using Acc = double;
};

constexpr int kBytes = WE_SIMD_BYTES;

typedef float Floats __attribute__((vector_size(kBytes)));
typedef double Doubles __attribute__((vector_size(kBytes)));
typedef std::int32_t Ints __attribute__((vector_size(kBytes)));
typedef std::uint32_t Words __attribute__((vector_size(kBytes)));
typedef std::int64_t Longs __attribute__((vector_size(kBytes)));
typedef std::uint16_t Shorts __attribute__((vector_size(kBytes / 2)));
typedef std::int16_t SignedShorts __attribute__((vector_size(kBytes / 2)));

template <class A>
struct VectorOf;
template <>
struct VectorOf<float> {
  using Values = Floats;
  using Bits = Ints;
  using Scalar = std::int32_t;
  static constexpr int kLanes = kBytes / 4;
  static constexpr Scalar kMagnitude = 0x7fffffff;
  static constexpr Scalar kInfinity = 0x7f800000;
};
template <>
struct VectorOf<double> {
  using Values = Doubles;
  using Bits = Longs;
  using Scalar = std::int64_t;
  static constexpr int kLanes = kBytes / 8;
  static constexpr Scalar kMagnitude = 0x7fffffffffffffff;
  static constexpr Scalar kInfinity = 0x7ff0000000000000;
};

template <class T>
using Values = typename VectorOf<typename Number<T>::Acc>::Values;
template <class T>
using Bits = typename VectorOf<typename Number<T>::Acc>::Bits;
template <class T>
constexpr int kLanes = VectorOf<typename Number<T>::Acc>::kLanes;

template <class V, class P>
inline V read(const P* from) {
  V vector;
  __builtin_memcpy(&vector, from, sizeof vector);
  return vector;
}

template <class V, class P>
inline void write(P* to, V vector) {
  __builtin_memcpy(to, &vector, sizeof vector);
}

// Puts x into every lane; adding it to zeros would lose the sign of -0.
template <class V, class X>
inline V all_lanes(X x) {
  return x - V{};
}

// The magnitude's bits: they order like the magnitudes, NaN above infinity.
inline Ints magnitude(Floats x) { return (Ints)x & VectorOf<float>::kMagnitude; }
inline Longs magnitude(Doubles x) { return (Longs)x & VectorOf<double>::kMagnitude; }

inline float absolute(float x) { return __builtin_fabsf(x); }
inline double absolute(double x) { return __builtin_fabs(x); }
inline Floats absolute(Floats x) { return (Floats)magnitude(x); }
inline Doubles absolute(Doubles x) { return (Doubles)magnitude(x); }

#ifdef __AVX512F__
// The forms with a mask of all lanes: GCC 12 warns of uninitialized values inside those without (its bug 105593).
inline Floats widen_half(Shorts h) { return (Floats)_mm512_maskz_cvtph_ps(0xffff, (__m256i)h); }
inline Shorts narrow_half(Floats x) {
  return (Shorts)_mm512_maskz_cvtps_ph(0xffff, (__m512)x, _MM_FROUND_TO_NEAREST_INT);
}
#elif defined(__AVX2__)
inline Floats widen_half(Shorts h) { return (Floats)_mm256_cvtph_ps((__m128i)h); }
inline Shorts narrow_half(Floats x) { return (Shorts)_mm256_cvtps_ph((__m256)x, _MM_FROUND_TO_NEAREST_INT); }
#else
inline Floats widen_half(Shorts h) {
  const Words word = __builtin_convertvector(h, Words);
  // The exponent field's bias is 112 less; multiplying corrects it for subnormal numbers, too.
  const Words finite = (Words)((Floats)((word & 0x7fff) << 13) * 0x1p112f);
  const Words special = 0x7f800000 | ((word & 0x3ff) << 13);
  const Words magnitude = (word & 0x7c00) == 0x7c00 ? special : finite;
  return (Floats)(magnitude | ((word & 0x8000) << 16));
}

// Rounds to nearest even; NaN becomes an infinity (neither is ever stored).
inline Shorts narrow_half(Floats x) {
  const Words word = (Words)magnitude(x);
  const Words rounded = (word + 0xfff + ((word >> 13) & 1) - (112u << 23)) >> 13;
  const Words subnormal = (Words)((Floats)word + 0.5f) - 0x3f000000;  // units in the last place of 0.5 are 2^-24
  Words half = (Ints)word < 0x38800000 ? subnormal : rounded;
  half = (Ints)word >= 0x47800000 ? Words{} + 0x7c00 : half;
  return __builtin_convertvector(half | (((Words)x >> 16) & 0x8000), Shorts);
}
#endif

inline Floats widen_bfloat16(Shorts b) { return (Floats)(__builtin_convertvector(b, Words) << 16); }

inline Floats load(const float* x) { return read<Floats>(x); }
inline Doubles load(const double* x) { return read<Doubles>(x); }
inline Floats load(const Half* x) { return widen_half(read<Shorts>(x)); }
inline Floats load(const BFloat16* x) { return widen_bfloat16(read<Shorts>(x)); }

inline float widen(float x) { return x; }
inline double widen(double x) { return x; }
inline float widen(Half x) {
  const std::uint32_t exponent = x.bits & 0x7c00u;
  std::uint32_t word = (x.bits & 0x7fffu) << 13;
  float value;
  __builtin_memcpy(&value, &word, sizeof value);
  value *= 0x1p112f;
  __builtin_memcpy(&word, &value, sizeof value);
  if (exponent == 0x7c00u) word = 0x7f800000u | (x.bits & 0x3ffu) << 13;
  word |= (x.bits & 0x8000u) << 16;
  __builtin_memcpy(&value, &word, sizeof value);
  return value;
}
inline float widen(BFloat16 x) {
  const std::uint32_t word = static_cast<std::uint32_t>(x.bits) << 16;
  float value;
  __builtin_memcpy(&value, &word, sizeof value);
  return value;
}

// Rounds to the dtype, as it is stored; NaN becomes NaN or an infinity.
inline Floats narrow(const float*, Floats x) { return x; }
inline Doubles narrow(const double*, Doubles x) { return x; }
inline Shorts narrow(const Half*, Floats x) { return narrow_half(x); }
inline Shorts narrow(const BFloat16*, Floats x) {
  const Words word = (Words)x;
  const Words rounded = (word + 0x7fff + ((word >> 16) & 1)) >> 16;
  // Rounding would carry a NaN's bits into the sign.
  const Words finite = magnitude(x) > VectorOf<float>::kInfinity ? Words{} + 0x7f80 : rounded;
  return __builtin_convertvector(finite, Shorts);
}

// Does the same, but NaN stays NaN.
inline Floats narrow_any(const float*, Floats x) { return x; }
inline Doubles narrow_any(const double*, Doubles x) { return x; }
inline Shorts narrow_any(const Half* to, Floats x) {
  const Shorts rounded = narrow(to, x);
  return __builtin_convertvector(x != x, SignedShorts) ? Shorts{} + 0x7e00 : rounded;
}
inline Shorts narrow_any(const BFloat16* to, Floats x) {
  const Shorts rounded = narrow(to, x);
  return __builtin_convertvector(x != x, SignedShorts) ? Shorts{} + 0x7fc0 : rounded;
}

// Rounds towards zero. A value that no Ints can hold, which the language's conversion leaves undefined, becomes any
// number.
inline Ints truncate(Floats x) {
#if defined(__AVX512F__)
  return (Ints)_mm512_maskz_cvttps_epi32(0xffff, (__m512)x);
#elif defined(__AVX2__)
  return (Ints)_mm256_cvttps_epi32((__m256)x);
#elif defined(__SSE2__)
  return (Ints)_mm_cvttps_epi32((__m128)x);
#else
  return __builtin_convertvector(x, Ints);
#endif
}

// Returns -1 for a lane that is finite, else 0.
inline Ints is_finite(const float*, Floats x) { return magnitude(x) < VectorOf<float>::kInfinity; }
inline Longs is_finite(const double*, Doubles x) { return magnitude(x) < VectorOf<double>::kInfinity; }
inline SignedShorts is_finite(const Half*, Shorts x) { return (x & 0x7c00) != 0x7c00; }
inline SignedShorts is_finite(const BFloat16*, Shorts x) { return (x & 0x7f80) != 0x7f80; }

// Whether all lanes of a mask are set.
template <class B>
inline bool all_set(B mask) {
#if defined(__AVX512F__)
  return _mm512_movepi32_mask((__m512i)mask) == 0xffff;
#elif defined(__AVX2__)
  return _mm256_movemask_epi8((__m256i)mask) == -1;
#else
  const Longs words = (Longs)mask;
  return (words[0] & words[1]) == -1;
#endif
}

// Stores the lanes that are finite in the dtype.
template <class T>
inline void store_finite(T* to, Values<T> x) {
  const auto rounded = narrow(to, x);
  write(to, is_finite(to, rounded) ? rounded : read<decltype(narrow(to, x))>(to));
}

#ifdef __AVX2__
// Takes the lanes whose number has bit `Bit` set from b, the others from a.
template <int Bit>
inline Floats blend_lanes(Floats a, Floats b) {
  constexpr int mask = Bit == 1 ? 0xaaaa : Bit == 2 ? 0xcccc : Bit == 4 ? 0xf0f0 : 0xff00;
#ifdef __AVX512F__
  return (Floats)_mm512_mask_blend_ps(mask, (__m512)a, (__m512)b);
#else
  return (Floats)_mm256_blend_ps((__m256)a, (__m256)b, mask & 0xff);
#endif
}

inline Floats permute(Floats x, Ints index) {
#ifdef __AVX512F__
  return (Floats)_mm512_maskz_permutexvar_ps(0xffff, (__m512i)index, (__m512)x);
#else
  return (Floats)_mm256_permutevar8x32_ps((__m256)x, (__m256i)index);
#endif
}

constexpr int inverse(int value, int modulus) {
  for (int x = 1; x < modulus; ++x) {
    if (value * x % modulus == 1) return x;
  }
  return 0;
}

template <int K, int Bit>
inline void rotate_lanes(Floats* x) {
  constexpr int lanes = kLanes<float>;
  if constexpr (Bit < lanes) {
    constexpr int step = K - Bit * inverse(lanes % K, K) % K;
    Floats y[K];
#pragma GCC unroll 32
    for (int m = 0; m < K; ++m) y[m] = blend_lanes<Bit>(x[m], x[(m + step) % K]);
#pragma GCC unroll 32
    for (int m = 0; m < K; ++m) x[m] = y[m];
    rotate_lanes<K, Bit * 2>(x);
  }
}

// K vectors hold as many row-major kernels of K elements as there are lanes; afterwards lane i of element[k] is element
// k of kernel i. K is odd, so element k of all kernels lies in different lanes; which vector holds it in lane r moves
// by a fixed step, modulo K, from lane to lane: log2(lanes) rounds of blends bring it into one vector, a permutation
// orders the lanes.
template <int K, class T>
inline void deinterleave(const T* kernels, Floats* element) {
  constexpr int lanes = kLanes<float>;
  constexpr int unit = inverse(lanes % K, K);
  Floats x[K];
#pragma GCC unroll 32
  for (int m = 0; m < K; ++m) x[m] = load(kernels + m * lanes);
  rotate_lanes<K, 1>(x);
#pragma GCC unroll 32
  for (int k = 0; k < K; ++k) {
    Ints index;
#pragma GCC unroll 16
    for (int i = 0; i < lanes; ++i) index[i] = (K * i + k) % lanes;
    element[k] = permute(x[k * unit % K], index);
  }
}
#endif

}  // namespace
}  // namespace we::cpu
