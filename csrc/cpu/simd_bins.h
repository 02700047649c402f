// The range of elements, and how many fall into each of equally wide bins. For the simd_*.cpp files only.
#pragma once

#include <cstdint>

#include "cpu/simd.h"
#include "cpu/simd_walk.h"
#include "layout.h"

namespace we::cpu {
namespace {

template <class T>
using AccOf = typename Number<T>::Acc;

// Calls visit(run, length) for the runs of memory that these filters fill; filters with gaps are packed.
template <class T, class F>
void each_run(const Layer& layer, const T* weight, std::int64_t first, std::int64_t count, F&& visit) {
  const std::int64_t elements = elements_of(layer);
  const T* filter = weight + first * layer.filter_stride;
  const bool dense = is_dense(layer);
  if (dense && layer.filter_stride == elements) return visit(filter, count * elements);
  constexpr std::int64_t size = 1024;
  T packed[size];
  std::int64_t used = 0;
  for (std::int64_t i = 0; i < count; ++i, filter += layer.filter_stride) {
    if (dense && elements >= size) {
      visit(filter, elements);
      continue;
    }
    Walk walk(layer);
    for (std::int64_t left = elements; left > 0;) {
      const std::int64_t part = left < size - used ? left : size - used;
      walk.gather(filter, packed + used, part);
      left -= part;
      used += part;
      if (used == size) {
        visit(packed, size);
        used = 0;
      }
    }
  }
  if (used > 0) visit(packed, used);
}

template <class T>
class RangeOf {
 public:
  void add(const T* x, std::int64_t count) {
    const T* const end = x + count;
    Values<T> low[kVectors], high[kVectors];  // in registers: stores to the members might change x
    Bits<T> other[kVectors];
    for (int v = 0; v < kVectors; ++v) low[v] = low_[v], high[v] = high_[v], other[v] = other_[v];
    for (; end - x >= kVectors * kLanes<T>; x += kVectors * kLanes<T>) {
      for (int v = 0; v < kVectors; ++v) {
        const Values<T> value = load(x + v * kLanes<T>);
        low[v] = value < low[v] ? value : low[v];
        high[v] = value > high[v] ? value : high[v];
        other[v] |= (Bits<T>)(value - value);  // 0 unless the value is NaN or infinite
      }
    }
    for (int v = 0; v < kVectors; ++v) low_[v] = low[v], high_[v] = high[v], other_[v] = other[v];
    for (; x < end; ++x) add_one(widen(*x));
  }

  void merge_into(Range* range) {
    for (int v = 0; v < kVectors; ++v) {
      for (int lane = 0; lane < kLanes<T>; ++lane) {
        if (low_[v][lane] < least_) least_ = low_[v][lane];
        if (high_[v][lane] > most_) most_ = high_[v][lane];
        finite_ &= other_[v][lane] == 0;
      }
    }
    if (least_ < range->low) range->low = least_;
    if (most_ > range->high) range->high = most_;
    range->finite &= finite_;
  }

 private:
  static constexpr int kVectors = 4;

  void add_one(AccOf<T> value) {
    if (value < least_) least_ = value;
    if (value > most_) most_ = value;
    finite_ &= value - value == 0;
  }

  AccOf<T> least_ = __builtin_inf();
  AccOf<T> most_ = -__builtin_inf();
  bool finite_ = true;
  Values<T> low_[kVectors] = {Values<T>{} + least_, Values<T>{} + least_, Values<T>{} + least_, Values<T>{} + least_};
  Values<T> high_[kVectors] = {Values<T>{} + most_, Values<T>{} + most_, Values<T>{} + most_, Values<T>{} + most_};
  Bits<T> other_[kVectors] = {};
};

template <class T>
void find_range(const Layer& layer, const T* weight, std::int64_t first, std::int64_t count, Range* range) {
  RangeOf<T> found;
  each_run(layer, weight, first, count, [&](const T* run, std::int64_t length) { found.add(run, length); });
  found.merge_into(range);
}

// The places of the bins: edge k is low + k * width, rounded after each operation; an element is in the bin of the last
// edge that is not above it.
template <class T>
class Bins {
 public:
  using Acc = AccOf<T>;

  Bins(const Range& range, int bins) : bins_(bins) {
    low_ = static_cast<Acc>(range.low);
    Acc high = static_cast<Acc>(range.high);
    if (high - low_ == static_cast<Acc>(__builtin_inf())) {
      part_ = static_cast<Acc>(0.25);
      low_ *= part_;
      high *= part_;
    }
    width_ = (high - low_) / static_cast<Acc>(bins);
    constexpr bool wide = sizeof(Acc) == 8;
    const Acc largest = absolute(low_) > absolute(high) ? absolute(low_) : absolute(high);
    // From 16 units in the last place on, and far from subnormal numbers and from infinity, the nearest edge is off by
    // less than one half of a bin when it is found by dividing.
    simple_ = width_ >= largest * static_cast<Acc>(wide ? 0x1p-48 : 0x1p-19) &&
              width_ >= static_cast<Acc>(wide ? 0x1p-1000 : 0x1p-100) &&
              largest <= static_cast<Acc>(wide ? 0x1p1000 : 0x1p100);
    inverse_ = 1 / width_;
    start_ = low_ - width_ / 2;
  }

  bool simple() const { return simple_; }

  // Returns a number in [0, bins], even of a value outside of the range, which another thread may write after the range
  // was found. It is `bins` for a value at or above the last edge.
  int of(Acc value) const {
    if (simple_) {
      const auto end = static_cast<Acc>(bins_);
      const Acc nearest = (value - start_) * inverse_;
      const Acc from_zero = nearest > 0 ? nearest : 0;  // 0 for a NaN, too
      const int k = static_cast<int>(from_zero < end ? from_zero : end);
      return k - (k > 0 && value < edge(k));
    }
    int found = 0;
    for (int step = 256; step > 0; step /= 2) {
      if (found + step <= bins_ && value * part_ >= edge(found + step)) found += step;
    }
    return found;
  }

  // For simple bins and four-byte lanes: returns the nearest edge, which is the bin's or the next one's. For a value
  // outside of the range it may be any number: it is to be compared, not to be an index.
  Ints nearest(Floats value) const { return truncate((value - start_) * inverse_); }
  Floats edges(Ints k) const { return low_ + __builtin_convertvector(k, Floats) * width_; }
  Floats low() const { return all_lanes<Floats>(low_); }
  Floats inverse() const { return all_lanes<Floats>(inverse_); }

 private:
  Acc edge(int k) const { return low_ + static_cast<Acc>(k) * width_; }

  Acc low_;
  Acc width_;
  Acc inverse_;
  Acc start_;
  Acc part_ = 1;
  int bins_;
  bool simple_;
};

#ifdef __AVX512F__
// With so many bins all edges fit into one vector, and an element's bin into four bits.
constexpr int kFewBins = 15;

// Counts the elements of each bin among the first of `count`, as many as fill groups of four vectors; returns how many
// those are. Bins are at most `most`. Their four bits, all that is used of a number, become four masks of 64 elements;
// products of masks count the elements that have all of some bits, found[those bits], and differences of these the
// elements that have no other.
template <int most, class T>
std::int64_t count_few(const T* x, std::int64_t count, const Bins<T>& bin, int bins, std::int64_t* counts) {
  constexpr std::int64_t lanes = kLanes<T>;
  Ints numbers{};
  for (int k = 0; k < kLanes<T>; ++k) numbers[k] = k;
  const auto edges = (__m512)bin.edges(numbers);
  const Floats low = bin.low(), inverse = bin.inverse();
  const __m512 round = _mm512_set1_ps(0x1.8p23f);  // the sum's last bits are the nearest integer
  // The forms with all lanes in a mask are those that GCC does not call uninitialized.
  const auto bin_of = [&](Floats value) {
    const auto nearest = (__m512i)_mm512_fmadd_ps((__m512)(value - low), (__m512)inverse, round);
    const __m512 edge = _mm512_maskz_permutexvar_ps(0xffff, nearest, edges);
    const __mmask16 below = _mm512_cmp_ps_mask((__m512)value, edge, _CMP_LT_OQ);
    return (Words)_mm512_mask_sub_epi32(nearest, below, nearest, _mm512_set1_epi32(1));
  };
  // Joins the lower halves of both, which hold the bins.
  const auto join = [](Words a, Words b) {
    return _mm512_mask_blend_epi16(0xaaaaaaaa, (__m512i)a, (__m512i)(b << 16));
  };
  const auto bit = [](__m512i bytes, char value) { return _mm512_test_epi8_mask(bytes, _mm512_set1_epi8(value)); };
  const std::int64_t end = count / (4 * lanes) * (4 * lanes);
  std::int64_t found[16] = {end};
  for (std::int64_t i = 0; i < end; i += 4 * lanes) {
    const __m512i even = join(bin_of(load(x + i)), bin_of(load(x + i + lanes)));
    const __m512i odd = join(bin_of(load(x + i + 2 * lanes)), bin_of(load(x + i + 3 * lanes)));
    const __m512i bytes = _mm512_or_si512(even, _mm512_maskz_slli_epi16(0xffffffff, odd, 8));
    std::uint64_t all[16];
    for (int k = 0; k < 4; ++k) all[1 << k] = bit(bytes, static_cast<char>(1 << k));
    asm("" : "+r"(all[1]), "+r"(all[2]), "+r"(all[4]), "+r"(all[8]));  // not in mask registers: one operation a cycle
#pragma GCC unroll 15
    for (int b = 1; b <= most; ++b) {
      all[b] = (b & (b - 1)) == 0 ? all[b] : all[b & (b - 1)] & all[b & -b];
      found[b] += __builtin_popcountll(all[b]);
    }
  }
  for (int k = 1; k <= 8; k *= 2) {
    for (int b = 0; b < 16; ++b) found[b] -= (b & k) == 0 ? found[b | k] : 0;
  }
  for (int b = 0; b < bins; ++b) counts[b] += found[b];
  return end;
}
#else
constexpr int kFewBins = 16;

typedef std::int8_t Bytes __attribute__((vector_size(kBytes)));
typedef std::uint8_t Counters __attribute__((vector_size(kBytes)));

// Returns the elements of four vectors as bytes, in any order.
inline Bytes pack_bytes(Ints a, Ints b, Ints c, Ints d) {
#if defined(__AVX2__)
  return (Bytes)_mm256_packs_epi16(_mm256_packs_epi32((__m256i)a, (__m256i)b),
                                   _mm256_packs_epi32((__m256i)c, (__m256i)d));
#elif defined(__SSE2__)
  return (Bytes)_mm_packs_epi16(_mm_packs_epi32((__m128i)a, (__m128i)b), _mm_packs_epi32((__m128i)c, (__m128i)d));
#else
  Bytes bytes;
  for (int i = 0; i < kBytes / 4; ++i) {
    bytes[4 * i] = static_cast<std::int8_t>(a[i]), bytes[4 * i + 1] = static_cast<std::int8_t>(b[i]);
    bytes[4 * i + 2] = static_cast<std::int8_t>(c[i]), bytes[4 * i + 3] = static_cast<std::int8_t>(d[i]);
  }
  return bytes;
#endif
}

// Counts the elements of each bin among the first of `count`, as many as fill groups of four vectors; returns how many
// those are. Each of `most` bins has its own vector of byte counters. Other numbers than theirs are not counted.
template <int most, class T>
std::int64_t count_few(const T* x, std::int64_t count, const Bins<T>& where, int bins, std::int64_t* counts) {
  constexpr std::int64_t lanes = kLanes<T>;
  const std::int64_t groups = count / (4 * lanes);
  const Bins<T> bin = where;
  const auto bin_of = [&](Floats value) {
    const Ints k = bin.nearest(value);
    return (Ints)((Words)k + (Words)(value < bin.edges(k)));  // unsigned: any number plus -1
  };
  std::int64_t done = 0;
  while (done < groups) {
    const std::int64_t part = groups - done < 255 ? groups - done : 255;  // a byte counts no further
    Counters counter[most] = {};
    for (std::int64_t g = 0; g < part; ++g, ++done) {
      const T* from = x + done * 4 * lanes;
      const Bytes found = pack_bytes(bin_of(load(from)), bin_of(load(from + lanes)), bin_of(load(from + 2 * lanes)),
                                     bin_of(load(from + 3 * lanes)));
#pragma GCC unroll 16
      for (int b = 0; b < most; ++b) counter[b] -= (Counters)(found == static_cast<std::int8_t>(b));
    }
    for (int b = 0; b < bins; ++b) {
      std::uint8_t bytes[kBytes];
      write(bytes, counter[b]);
      std::int64_t sum = 0;
      for (int i = 0; i < kBytes; ++i) sum += bytes[i];
      counts[b] += sum;
    }
  }
  return groups * 4 * lanes;
}
#endif

template <class T>
void count_run(const T* x, std::int64_t count, const Bins<T>& where, int bins, std::int64_t* counts) {
  const T* const end = x + count;
  if constexpr (sizeof(AccOf<T>) == 4) {
    if (where.simple() && bins <= kFewBins) {
      x += bins <= 10 ? count_few<10>(x, count, where, bins, counts)
                      : count_few<kFewBins>(x, count, where, bins, counts);
    }
  }
  if (end - x < 256) {
    for (; x < end; ++x) {
      const int bin = where.of(widen(*x));
      if (bin < bins) ++counts[bin];
    }
    return;
  }
  // Neighbours often are in one bin: counters of their own let them not wait for each other.
  constexpr int parts = 4;
  std::int64_t part[parts][kMaxBins + 1] = {};
  for (; end - x >= parts; x += parts) {
    for (int p = 0; p < parts; ++p) ++part[p][where.of(widen(x[p]))];
  }
  for (; x < end; ++x) ++part[0][where.of(widen(*x))];
  for (int b = 0; b < bins; ++b) counts[b] += (part[0][b] + part[1][b]) + (part[2][b] + part[3][b]);
}

template <class T>
void count_bins(const Layer& layer, const T* weight, std::int64_t first, std::int64_t count, const Range& range,
                int bins, std::int64_t* counts) {
  const Bins<T> where(range, bins);
  each_run(layer, weight, first, count,
           [&](const T* run, std::int64_t length) { count_run(run, length, where, bins, counts); });
}

}  // namespace
}  // namespace we::cpu
