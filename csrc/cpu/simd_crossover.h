// Overwriting filters with a combination of theirs and their donors' elements. For the simd_*.cpp files only.
#pragma once

#include <cstdint>

#include "cpu/simd.h"
#include "cpu/simd_importance.h"
#include "layout.h"

namespace we::cpu {
namespace {

// q <- a q + (1 - a) p, a = |q|_1 / (|q|_1 + |p|_1). `count` elements, at most kLanes<T>.
template <class T>
inline void blend_vector(T* q, const T* p, typename Number<T>::Acc a) {
  const auto share = all_lanes<Values<T>>(a);
  store_finite(q, share * load(q) + (1 - share) * load(p));
}

template <class T>
void blend_dense(T* q, const T* p, std::int64_t count, typename Number<T>::Acc a) {
  constexpr std::int64_t lanes = kLanes<T>;
  std::int64_t i = 0;
  for (; i + lanes <= count; i += lanes) blend_vector(q + i, p + i, a);
  if (i == count) return;
  T rest_q[lanes] = {};
  T rest_p[lanes] = {};
  const std::int64_t rest = count - i;
  for (std::int64_t j = 0; j < rest; ++j) rest_q[j] = q[i + j], rest_p[j] = p[i + j];
  blend_vector(rest_q, rest_p, a);
  for (std::int64_t j = 0; j < rest; ++j) q[i + j] = rest_q[j];
}

template <class T>
void blend_strided(const Layer& layer, T* q, const T* p, typename Number<T>::Acc a) {
  constexpr std::int64_t size = 256;
  T packed_q[size];
  T packed_p[size];
  Walk from_q(layer);
  Walk from_p(layer);
  Walk to_q(layer);
  for (std::int64_t left = elements_of(layer); left > 0; left -= size) {
    const std::int64_t count = left < size ? left : size;
    from_q.gather(q, packed_q, count);
    from_p.gather(p, packed_p, count);
    blend_dense(packed_q, packed_p, count, a);
    to_q.scatter(q, packed_q, count);
  }
}

// Matched filters lie anywhere in their layer: the processor does not foresee where the next pair is.
template <class T>
inline void prefetch(const Layer& layer, const T* weight, const Pair& pair, std::int64_t elements) {
  constexpr std::int64_t line = 64 / sizeof(T);
  constexpr std::int64_t most = 8192 / sizeof(T);
  const T* q = weight + pair.row * layer.filter_stride;
  const T* p = weight + pair.donor * layer.filter_stride;
  for (std::int64_t i = 0; i < elements && i < most; i += line) {
    __builtin_prefetch(q + i, 1);
    __builtin_prefetch(p + i);
  }
}

template <class T>
void blend(const Layer& layer, T* weight, const Pair* pairs, std::int64_t count) {
  const bool dense = is_dense(layer);
  for (std::int64_t i = 0; i < count; ++i) {
    T* q = weight + pairs[i].row * layer.filter_stride;
    const T* p = weight + pairs[i].donor * layer.filter_stride;
    if (dense && i + 1 < count) prefetch(layer, weight, pairs[i + 1], elements_of(layer));
    const auto norm_q = norm(q, layer, dense);
    const auto a = norm_q / (norm_q + norm(p, layer, dense));
    if (dense) blend_dense(q, p, elements_of(layer), a);
    else blend_strided(layer, q, p, a);
  }
}

// Each lane sees one kernel: the donor's element of largest magnitude and the own one of smallest, the first of equals
// each.
template <class T>
struct Extremes {
  using V = Values<T>;
  using B = Bits<T>;
  V largest = {};
  V smallest = {};
  B position = {};           // of smallest, in row-major order
  B largest_bits = B{} - 1;  // below every magnitude
  B smallest_bits = B{} + VectorOf<typename Number<T>::Acc>::kMagnitude;
  B highest_bits = {};  // of the own kernel: shows a NaN

  void see_donor(V x) {
    const B bits = magnitude(x);
    const B take = bits > largest_bits;
    largest = take ? x : largest;
    largest_bits = take ? bits : largest_bits;
  }

  void see_own(V x, int k) {
    const B bits = magnitude(x);
    const B take = bits < smallest_bits;
    smallest = take ? x : smallest;
    smallest_bits = take ? bits : smallest_bits;
    position = take ? B{} + k : position;
    highest_bits = bits > highest_bits ? bits : highest_bits;
  }

  V combined(Rule rule) const {
    if (rule == Rule::paper) {
      const V s = absolute(smallest);
      const V a = s / (s + absolute(largest));
      return a * smallest + (1 - a) * largest;
    }
    const V a = smallest / (smallest + largest);
    return a * largest + (1 - a) * smallest;
  }

  // The lanes to be changed: not one whose own kernel has a NaN. (One in the donor's kernel makes the combination NaN.)
  B wanted() const { return highest_bits <= VectorOf<typename Number<T>::Acc>::kInfinity; }
};

template <class T>
class ElementCrossover {
 public:
  ElementCrossover(const Layer& layer, T* weight, Rule rule) : layer_(layer), weight_(weight), rule_(rule) {}

  void run(const Pair* pairs, std::int64_t count) {
    std::int64_t done = 0;  // channels that a faster way than lane by lane has dealt with
    for (std::int64_t i = 0; i < count; ++i) done = whole_vectors(pairs[i]);
    if (done == layer_.channels) return;
    std::int64_t own[kWidth];
    std::int64_t donor[kWidth];
    int used = 0;
    for (std::int64_t i = 0; i < count; ++i) {
      for (std::int64_t c = done; c < layer_.channels; ++c) {
        own[used] = pairs[i].row * layer_.filter_stride + c * layer_.channel_stride;
        donor[used] = pairs[i].donor * layer_.filter_stride + c * layer_.channel_stride;
        if (++used == kWidth) {
          lane_by_lane(own, donor, used);
          used = 0;
        }
      }
    }
    if (used > 0) lane_by_lane(own, donor, used);
  }

 private:
  using V = Values<T>;
  static constexpr int kWidth = kLanes<T>;

  // Deals with the first channels, as many as fill whole vectors, if memory lies in the right way.
  std::int64_t whole_vectors(Pair pair) {
    T* q = weight_ + pair.row * layer_.filter_stride;
    const T* p = weight_ + pair.donor * layer_.filter_stride;
    if (layer_.channel_stride == 1) return channels_last(q, p);
#ifdef __AVX2__
    const std::int64_t kernel = layer_.kernel2;
    if (sizeof(typename Number<T>::Acc) == 4 && layer_.kernel0 == 1 && layer_.kernel1 == 1 && layer_.stride2 == 1 &&
        layer_.channel_stride == kernel) {
      if (kernel == 9) return row_major<9>(q, p);
      if (kernel == 3) return row_major<3>(q, p);
      if (kernel == 25) return row_major<25>(q, p);
    }
#endif
    return 0;
  }

  std::int64_t channels_last(T* q, const T* p) {
    std::int64_t c = 0;
    for (; c + kWidth <= layer_.channels; c += kWidth) {
      Extremes<T> extremes;
      each_element([&](int k, std::int64_t offset) {
        extremes.see_donor(load(p + c + offset));
        extremes.see_own(load(q + c + offset), k);
      });
      store(extremes, kWidth, [&](int lane, std::int64_t position) { return q + c + lane + offset_of(position); });
    }
    return c;
  }

#ifdef __AVX2__
  template <int K>
  std::int64_t row_major(T* q, const T* p) {
    std::int64_t c = 0;
    if constexpr (sizeof(typename Number<T>::Acc) == 4) {
      for (; c + kWidth <= layer_.channels; c += kWidth) {
        Extremes<T> extremes;
        Floats x[K];
        deinterleave<K>(p + c * K, x);
#pragma GCC unroll 32
        for (int k = 0; k < K; ++k) extremes.see_donor(x[k]);
        deinterleave<K>(q + c * K, x);
#pragma GCC unroll 32
        for (int k = 0; k < K; ++k) extremes.see_own(x[k], k);
        store(extremes, kWidth, [&](int lane, std::int64_t position) { return q + (c + lane) * K + position; });
      }
    }
    return c;
  }
#endif

  // Strides may be any: own[i] and donor[i] are the offsets of lane i's kernels in the weight.
  void lane_by_lane(const std::int64_t* own, const std::int64_t* donor, int used) {
    Extremes<T> extremes;
    each_element([&](int k, std::int64_t offset) {
      V q = {};
      V p = {};
      for (int i = 0; i < kWidth; ++i) {
        const int lane = i < used ? i : 0;
        q[i] = widen(weight_[own[lane] + offset]);
        p[i] = widen(weight_[donor[lane] + offset]);
      }
      extremes.see_donor(p);
      extremes.see_own(q, k);
    });
    store(extremes, used, [&](int lane, std::int64_t position) { return weight_ + own[lane] + offset_of(position); });
  }

  // element(lane, position) is where the lane's own kernel has the element at a row-major position.
  template <class F>
  void store(const Extremes<T>& extremes, int used, F&& element) {
    using Acc = typename Number<T>::Acc;
    using Scalar = typename VectorOf<Acc>::Scalar;
    constexpr const T* tag = nullptr;
    Scalar position[kWidth];
    Scalar wanted[kWidth];
    T value[kWidth];
    const auto rounded = narrow(tag, extremes.combined(rule_));
    const Bits<T> changes = extremes.wanted() & __builtin_convertvector(is_finite(tag, rounded), Bits<T>);
    write(position, extremes.position);
    write(wanted, changes);
    write(value, rounded);
    if (rule_ == Rule::paper && used == kWidth && all_set(changes)) {
      for (int i = 0; i < kWidth; ++i) *element(i, position[i]) = value[i];
      return;
    }
    if (rule_ == Rule::paper) {
      for (int i = 0; i < used; ++i) {
        if (wanted[i] != 0) *element(i, position[i]) = value[i];
      }
      return;
    }
    Acc smallest[kWidth];
    write(smallest, extremes.smallest);
    for (int i = 0; i < used; ++i) {
      if (wanted[i] == 0) continue;
      T* const kernel = element(i, 0);
      each_element([&](int, std::int64_t offset) {
        if (widen(kernel[offset]) == smallest[i]) kernel[offset] = value[i];
      });
    }
  }

  std::int64_t offset_of(std::int64_t position) const {
    if (layer_.kernel0 == 1 && layer_.kernel1 == 1) return position * layer_.stride2;
    const std::int64_t row = position / layer_.kernel2;
    return row / layer_.kernel1 * layer_.stride0 + row % layer_.kernel1 * layer_.stride1 +
           position % layer_.kernel2 * layer_.stride2;
  }

  template <class F>
  void each_element(F&& visit) const {
    int k = 0;
    for (std::int64_t i = 0; i < layer_.kernel0; ++i) {
      for (std::int64_t j = 0; j < layer_.kernel1; ++j) {
        const std::int64_t start = i * layer_.stride0 + j * layer_.stride1;
        for (std::int64_t l = 0; l < layer_.kernel2; ++l) visit(k++, start + l * layer_.stride2);
      }
    }
  }

  const Layer& layer_;
  T* weight_;
  Rule rule_;
};

template <class T>
void crossover(const Layer& layer, T* weight, const Pair* pairs, std::int64_t count, Rule rule) {
  if (layer.blend != 0) blend(layer, weight, pairs, count);
  else ElementCrossover<T>(layer, weight, rule).run(pairs, count);
}

}  // namespace
}  // namespace we::cpu
