// Sums of rows, random numbers, and what is written to rows and columns. For the simd_*.cpp files only.
#pragma once

#include <cstdint>

#include "cpu/philox.h"
#include "cpu/simd_walk.h"
#include "cpu/units.h"

namespace we::cpu {
namespace {

typedef std::uint64_t Pairs __attribute__((vector_size(kBytes)));
typedef std::int32_t HalfInts __attribute__((vector_size(kBytes / 2)));

// The products of the lanes' lower halves with a factor below 2^32.
inline Pairs lower_product(Pairs x, std::uint64_t factor) {
  const Pairs factors = all_lanes<Pairs>(factor);
#if defined(__AVX512F__)
  return (Pairs)_mm512_maskz_mul_epu32(0xff, (__m512i)x, (__m512i)factors);
#elif defined(__AVX2__)
  return (Pairs)_mm256_mul_epu32((__m256i)x, (__m256i)factors);
#elif defined(__SSE2__)
  return (Pairs)_mm_mul_epu32((__m128i)x, (__m128i)factors);
#else
  return (x & 0xffffffff) * factors;
#endif
}

// What elements first, first + 1, ... draw, in units of 2^-23, from -2^23 to 2^23 - 1.
inline Ints draw_lanes(const Draws& draws, std::uint32_t first) {
  Pairs lanes{};
  for (int lane = 0; lane < kBytes / 8; ++lane) lanes[lane] = static_cast<std::uint64_t>(2 * lane);
  const Pairs even = lanes + std::uint64_t{first}, odd = even + 1;
  const auto numbers = [&](Pairs elements) {
    const Pairs stream = all_lanes<Pairs>(std::uint64_t{draws.stream});
    return philox(elements, stream, all_lanes<Pairs>(draws.step), all_lanes<Pairs>(draws.step >> 32), draws.seed,
                  lower_product);
  };
  const Words bits = (Words)((numbers(even) & 0xffffffff) | (numbers(odd) << 32));
  return (Ints)(bits >> 8) - (1 << 23);
}

// The sum of their magnitudes, in units of 2^-23.
std::int64_t drawn_norm(const Draws& draws, std::uint32_t first, std::int64_t count) {
  constexpr int lanes = kLanes<float>;
  std::int64_t total = 0;
  for (std::int64_t i = 0; i < count; i += lanes) {
    const Ints drawn = draw_lanes(draws, first + static_cast<std::uint32_t>(i));
    const Words sizes = (Words)(drawn < 0 ? -drawn : drawn);
    Pairs sums = (Pairs)sizes >> 32;
    const std::int64_t left = count - i;
    if (left >= lanes) {
      sums += (Pairs)sizes & 0xffffffff;
      for (int lane = 0; lane < kBytes / 8; ++lane) total += static_cast<std::int64_t>(sums[lane]);
    } else {
      for (std::int64_t lane = 0; lane < left; ++lane) total += sizes[lane];
    }
  }
  return total;
}

// The compilers convert vectors in halves.
inline void widen_lanes(Floats x, Doubles* to) {
#if defined(__AVX512F__)
  __m256 halves[2];
  __builtin_memcpy(halves, &x, sizeof x);
  for (int half = 0; half < 2; ++half) to[half] = (Doubles)_mm512_maskz_cvtps_pd(0xff, halves[half]);
#elif defined(__AVX2__)
  to[0] = (Doubles)_mm256_cvtps_pd(_mm256_castps256_ps128((__m256)x));
  to[1] = (Doubles)_mm256_cvtps_pd(_mm256_extractf128_ps((__m256)x, 1));
#elif defined(__SSE2__)
  to[0] = (Doubles)_mm_cvtps_pd((__m128)x);
  to[1] = (Doubles)_mm_cvtps_pd(_mm_movehl_ps((__m128)x, (__m128)x));
#else
  typedef float HalfFloats __attribute__((vector_size(kBytes / 2)));
  HalfFloats halves[2];
  __builtin_memcpy(halves, &x, sizeof x);
  for (int half = 0; half < 2; ++half) to[half] = __builtin_convertvector(halves[half], Doubles);
#endif
}

template <class T>
inline void store_lanes(T* to, Floats x) {
  write(to, narrow_any(to, x));
}
inline void store_lanes(double* to, Floats x) {
  Doubles wide[2];
  widen_lanes(x, wide);
  __builtin_memcpy(to, wide, sizeof wide);
}

template <class T>
void draw_values(const Draws& draws, std::uint32_t first, float scale, T* to, std::int64_t count) {
  constexpr int lanes = kLanes<float>;
  for (std::int64_t i = 0; i < count; i += lanes) {
    const Ints drawn = draw_lanes(draws, first + static_cast<std::uint32_t>(i));
    const Floats values = __builtin_convertvector(drawn, Floats) * 0x1p-23f * draws.bound * scale;
    if (count - i >= lanes) {
      store_lanes(to + i, values);
    } else {
      T rest[lanes];
      store_lanes(rest, values);
      __builtin_memcpy(to + i, rest, static_cast<std::size_t>(count - i) * sizeof(T));
    }
  }
}

// A sum in double precision in a fixed order, whatever the instruction set: element i goes to lane i % 16, lanes are
// added as a tree, and what does not fill them at the end is added one by one.
template <class T, bool kMagnitudes>
class RowTotal {
 public:
  static constexpr int kWidth = 16;

  // Every call but the last adds a multiple of kWidth elements; `kept` may be null.
  void add(const T* x, const std::int32_t* kept, std::int64_t count) {
    if (kept == nullptr) add_some<true>(x, kept, count);
    else add_some<false>(x, kept, count);
  }

  double total() const {
    double lanes[kWidth];
    __builtin_memcpy(lanes, sums_, sizeof lanes);
    for (int step = kWidth / 2; step > 0; step /= 2) {
      for (int i = 0; i < step; ++i) lanes[i] += lanes[i + step];
    }
    return lanes[0] + rest_;
  }

  std::int64_t count() const {
    std::int64_t all = rest_count_;
    for (int v = 0; v < kVectors; ++v) {
      for (int lane = 0; lane < kLanes<T>; ++lane) all -= counts_[v][lane];
    }
    return all;
  }

 private:
  static constexpr int kVectors = kWidth / kLanes<T>;
  static constexpr int kSums = kWidth / kLanes<double>;
  static constexpr std::uintptr_t kPage = 4096;
  using Form = VectorOf<typename Number<T>::Acc>;

  template <bool kAll>
  void add_some(const T* x, const std::int32_t* kept, std::int64_t count) {
    Doubles sums[kSums];  // in registers: stores to the members might change x
    Bits<T> counts[kVectors];
    for (int s = 0; s < kSums; ++s) sums[s] = sums_[s];
    for (int v = 0; v < kVectors; ++v) counts[v] = counts_[v];
    std::int64_t i = 0;
    for (; i + kWidth <= count; i += kWidth) {
      // The processor's own prefetching stops at the end of a page.
      __builtin_prefetch(reinterpret_cast<const void*>(reinterpret_cast<std::uintptr_t>(x + i) + kPage));
      for (int v = 0; v < kVectors; ++v) {
        const std::int64_t at = i + v * kLanes<T>;
        Bits<T> bits = (Bits<T>)load(x + at);
        Bits<T> keep = ~Bits<T>{};
        if constexpr (kMagnitudes) bits &= Form::kMagnitude;
        else keep = (bits & Form::kInfinity) != Form::kInfinity;
        if constexpr (!kAll) keep &= mask(kept + at);
        counts[v] += keep;
        bits &= keep;
        add_lanes(sums + v * kSums / kVectors, (Values<T>)bits);
      }
    }
    for (int s = 0; s < kSums; ++s) sums_[s] = sums[s];
    for (int v = 0; v < kVectors; ++v) counts_[v] = counts[v];
    for (; i < count; ++i) {
      const double value = kMagnitudes ? absolute(widen(x[i])) : widen(x[i]);
      if ((!kAll && kept[i] == 0) || (!kMagnitudes && value - value != 0)) continue;
      rest_ += value;
      ++rest_count_;
    }
  }

  static Bits<T> mask(const std::int32_t* kept) {
    if constexpr (sizeof(typename Number<T>::Acc) == 8) return __builtin_convertvector(read<HalfInts>(kept), Longs);
    else return read<Ints>(kept);
  }

  static void add_lanes(Doubles* sums, Floats x) {
    Doubles wide[2];
    widen_lanes(x, wide);
    sums[0] += wide[0];
    sums[1] += wide[1];
  }
  static void add_lanes(Doubles* sums, Doubles x) { sums[0] += x; }

  Doubles sums_[kSums] = {};
  Bits<T> counts_[kVectors] = {};
  double rest_ = 0;
  std::int64_t rest_count_ = 0;
};

template <bool kMagnitudes, class T>
void sum_rows(const RowSums& sums, const T* tensor, std::int64_t first, std::int64_t count) {
  constexpr std::int64_t size = 512;
  const Layer& layer = *sums.layer;
  const std::int64_t elements = elements_of(layer);
  const bool dense = is_dense(layer);
  Walk walk(layer);
  for (std::int64_t r = first; r < first + count; ++r) {
    RowTotal<T, kMagnitudes> found;
    if (sums.rows[r] != 0) {
      const T* row = tensor + r * layer.filter_stride;
      const std::int32_t* kept =
          sums.elements == nullptr ? nullptr : sums.elements + r / sums.rows_per_group * elements;
      if (dense) {
        found.add(row, kept, elements);
      } else {
        T packed[size];
        for (std::int64_t done = 0; done < elements; done += size) {
          const std::int64_t part = elements - done < size ? elements - done : size;
          walk.gather(row, packed, part);
          found.add(packed, kept == nullptr ? nullptr : kept + done, part);
        }
      }
    }
    sums.totals[r] = found.total();
    sums.counts[r] = found.count();
  }
}

// The elements of a row, or those of a column in a row.
template <class T>
class Part {
 public:
  explicit Part(const Layer& layer)
      : elements_(elements_of(layer)), dense_(is_dense(layer)), in_order_(lies_in_order(layer)), walk_(layer) {}

  void put(T* at, const UnitValue& value, T number, const Draws& draws, std::uint32_t first, std::int64_t place) {
    if (value.scales == nullptr) fill(at, number);
    else draw(at, draws, first, value.scales[place]);
  }

 private:
  static bool lies_in_order(const Layer& layer) {
    return (layer.channels == 1 || layer.channel_stride == layer.kernel2) && layer.kernel0 * layer.kernel1 == 1 &&
           (layer.kernel2 == 1 || layer.stride2 == 1);
  }

  void fill(T* at, T number) {
    if (dense_) {
      for (std::int64_t i = 0; i < elements_; ++i) at[i] = number;
    } else {
      for (std::int64_t i = 0; i < elements_; ++i) at[walk_.next()] = number;
    }
  }

  void draw(T* at, const Draws& draws, std::uint32_t first, float scale) {
    if (in_order_) return draw_values(draws, first, scale, at, elements_);
    constexpr std::int64_t size = 512;
    T packed[size];
    for (std::int64_t done = 0; done < elements_; done += size) {
      const std::int64_t part = elements_ - done < size ? elements_ - done : size;
      draw_values(draws, first + static_cast<std::uint32_t>(done), scale, packed, part);
      walk_.scatter(at, packed, part);
    }
  }

  std::int64_t elements_;
  bool dense_;
  bool in_order_;
  Walk walk_;  // at its start again after all elements
};

template <class T>
inline T number_in(double number) {
  const auto lanes =
      narrow_any(static_cast<T*>(nullptr), all_lanes<Values<T>>(static_cast<typename Number<T>::Acc>(number)));
  T result;
  __builtin_memcpy(&result, &lanes, sizeof result);
  return result;
}

template <class T>
void write_rows(const UnitWrites& writes, T* tensor, std::int64_t first, std::int64_t count) {
  const Layer& layer = *writes.layer;
  Layer one_column = layer;
  one_column.channels = 1;
  Part<T> row(layer), column(one_column);
  const T row_number = number_in<T>(writes.row.number), column_number = number_in<T>(writes.column.number);
  const std::int64_t elements = elements_of(layer), kernel = elements_of(one_column);
  const std::int64_t last = (layer.kernel2 - 1) * layer.stride2;
  for (std::int64_t r = first; r < first + count; ++r) {
    T* const at = tensor + r * layer.filter_stride;
    T* const next = r + 1 < layer.filters ? at + layer.filter_stride : at;
    const auto element = static_cast<std::uint32_t>(r * elements);
    if (writes.rows[r] != 0) {
      row.put(at, writes.row, row_number, writes.draws, element, r);
      if (!writes.columns_first) continue;
    }
    const std::int64_t group = r / writes.rows_per_group;
    for (std::int64_t i = writes.starts[group]; i < writes.starts[group + 1]; ++i) {
      const std::int64_t c = writes.columns[i];
      // On its own, a store waits for its line. Kernels of 3x3 lie in two of them half of the time.
      __builtin_prefetch(next + c * layer.channel_stride, 1);
      __builtin_prefetch(next + c * layer.channel_stride + last, 1);
      column.put(at + c * layer.channel_stride, writes.column, column_number, writes.draws,
                 element + static_cast<std::uint32_t>(c * kernel), group * layer.channels + c);
    }
  }
}

}  // namespace
}  // namespace we::cpu
