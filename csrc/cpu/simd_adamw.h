// Adam in which rows and columns have their own ages. For the simd_*.cpp files only.
#pragma once

#include <cstdint>

#include "cpu/simd_adamw_rule.h"
#include "cpu/simd_rounding.h"
#include "cpu/simd_walk.h"
#include "layout.h"

namespace we::cpu {
namespace {

inline Floats square_root(Floats x) {
#if defined(__AVX512F__)
  return (Floats)_mm512_maskz_sqrt_ps(0xffff, (__m512)x);
#elif defined(__AVX2__)
  return (Floats)_mm256_sqrt_ps((__m256)x);
#else
  Floats root{};
  for (int i = 0; i < kLanes<float>; ++i) root[i] = __builtin_sqrtf(x[i]);
  return root;
#endif
}
inline Doubles square_root(Doubles x) {
#if defined(__AVX512F__)
  return (Doubles)_mm512_maskz_sqrt_pd(0xff, (__m512d)x);
#elif defined(__AVX2__)
  return (Doubles)_mm256_sqrt_pd((__m256d)x);
#else
  Doubles root{};
  for (int i = 0; i < kLanes<double>; ++i) root[i] = __builtin_sqrt(x[i]);
  return root;
#endif
}

// Elements that are computed at a time.
constexpr std::int64_t kAdamwBlock = 512;

// The same element of a parameter and what belongs to it; `maximum` may be null.
template <class T>
struct AdamwPlace {
  T* param;
  const T* grad;
  T* mean;
  T* square;
  T* maximum;

  AdamwPlace operator+(std::int64_t offset) const {
    return {param + offset, grad + offset, mean + offset, square + offset,
            maximum == nullptr ? nullptr : maximum + offset};
  }
};

// Corrections of the elements of one block.
template <class T>
struct AdamwAges {
  typename Number<T>::Acc step_size[kAdamwBlock] = {};
  typename Number<T>::Acc root[kAdamwBlock] = {};
};

template <class T>
class AdamwStep {
 public:
  using Acc = typename Number<T>::Acc;
  using V = Values<T>;

  AdamwStep(const AdamwTensors& tensors, const AdamwRule& rule, bool dense)
      : decays_(rule.weight_decay != 0),
        decoupled_(rule.decoupled),
        maximize_(rule.maximize),
        fused_(rule.rounding.fused),
        rounding_(rule.rounding, *tensors.layers[0], dense),
        roots_(kIsNarrow<T> ? nullptr : rule.roots[sizeof(T) == 8]),
        roots_mode_(rule.roots_mode),
        limit_threads_(rule.limit_threads),
        kept_(scalar<T>(1 - rule.lr * rule.weight_decay)),
        weight_decay_(scalar<T>(rule.weight_decay)),
        beta2_(scalar<T>(rule.beta2)),
        eps_(scalar<T>(rule.eps)),
        grad_share_(wide(1 - rule.beta1)),
        square_share_(wide(1 - rule.beta2)),
        step_size_(wide(tensors.plain.step_size)),
        root_(wide(tensors.plain.root)) {
    const Acc share = static_cast<Acc>(1 - rule.beta1);
    from_mean_ = share > Acc{-0.5} && share < Acc{0.5};
    if (!from_mean_) grad_share_ = grad_share_ - all_lanes<V>(Acc{1});
  }

  // Moves at most kAdamwBlock elements at `place`, which is `offset` elements after the first one of a dense tensor, or
  // anywhere. `ages` may be null.
  void block(const AdamwPlace<T>& place, std::int64_t offset, std::int64_t count, const AdamwAges<T>* ages) const {
    Acc roots[kAdamwBlock];
    if (decays_ && !decoupled_) {
      rounding_.each(offset, count, [&](bool once, std::int64_t at, std::int64_t now) {
        moments(place + (at - offset), once, now, roots + (at - offset));
      });
    } else {
      moments(place, fused_, count, roots);
    }
    if (roots_ != nullptr) {
      // It would start a team of its own in each of ours.
      const int threads = limit_threads_(1);
      roots_(&count, roots, roots, &roots_mode_);
      limit_threads_(threads);
    }
    std::int64_t i = 0;
    for (; i + kLanes<T> <= count; i += kLanes<T>) move(place.param + i, place.mean + i, roots + i, ages, i);
    if (i == count) return;
    T param[kLanes<T>] = {}, mean[kLanes<T>] = {};
    Acc rest[kLanes<T>] = {};
    copy(param, place.param + i, count - i);
    copy(mean, place.mean + i, count - i);
    copy(rest, roots + i, count - i);
    move(param, mean, rest, ages, i);
    copy(place.param + i, param, count - i);
  }

 private:
  static V wide(double value) { return all_lanes<V>(static_cast<Acc>(value)); }

  template <class X>
  static void copy(X* to, const X* from, std::int64_t count) {
    __builtin_memcpy(to, from, static_cast<std::size_t>(count) * sizeof(X));
  }

  // Returns a + b * c, in the precision of V.
  V add(V a, V b, V c) const { return fused_ ? fused(a, b, c) : a + b * c; }

  // Decays and extends the moments, and stores what square roots are to be taken of.
  void moments(const AdamwPlace<T>& place, bool once, std::int64_t count, Acc* roots) const {
    std::int64_t i = 0;
    for (; i + kLanes<T> <= count; i += kLanes<T>) moments(place + i, once, roots + i);
    if (i == count) return;
    T rest[kAdamwTensors][kLanes<T>] = {};
    Acc root[kLanes<T>];
    const AdamwPlace<T> from = place + i;
    copy(rest[0], from.param, count - i);
    copy(rest[1], from.grad, count - i);
    copy(rest[2], from.mean, count - i);
    copy(rest[3], from.square, count - i);
    if (from.maximum != nullptr) copy(rest[4], from.maximum, count - i);
    moments({rest[0], rest[1], rest[2], rest[3], from.maximum == nullptr ? nullptr : rest[4]}, once, root);
    copy(from.mean, rest[2], count - i);
    copy(from.square, rest[3], count - i);
    if (from.maximum != nullptr) copy(from.maximum, rest[4], count - i);
    copy(roots + i, root, count - i);
  }

  void moments(const AdamwPlace<T>& place, bool once, Acc* roots) const {
    V grad = load(place.grad);
    if (maximize_) grad = -grad;
    if (decays_ && !decoupled_) {
      const V param = load(place.param);
      grad =
          once ? multiply_add<T, true>(grad, param, weight_decay_) : multiply_add<T, false>(grad, param, weight_decay_);
    }
    const V mean = load(place.mean);
    write(place.mean, narrow_any(place.mean, add(from_mean_ ? mean : grad, grad - mean, grad_share_)));
    V square = rounded<T>(load(place.square) * beta2_);
    square = rounded<T>(add(square, square_share_ * grad, grad));
    write(place.square, narrow_any(place.square, square));
    if (place.maximum != nullptr) {
      const V maximum = load(place.maximum);
      square = (maximum > square) | (maximum != maximum) ? maximum : square;
      write(place.maximum, narrow_any(place.maximum, square));
    }
    write(roots, square);
  }

  void move(T* param, const T* mean, const Acc* roots, const AdamwAges<T>* ages, std::int64_t at) const {
    const V step_size = ages == nullptr ? step_size_ : read<V>(ages->step_size + at);
    const V correction = ages == nullptr ? root_ : read<V>(ages->root + at);
    V root = read<V>(roots);
    if (roots_ == nullptr) root = square_root(root);
    const V divisor = rounded<T>(rounded<T>(rounded<T>(root) / correction) + eps_);
    V kept = load(param);
    if (decays_ && decoupled_) kept = rounded<T>(kept * kept_);
    write(param, narrow_any(param, kept + step_size * load(mean) / divisor));
  }

  bool decays_;
  bool decoupled_;
  bool maximize_;
  bool fused_;
  bool from_mean_;
  RoundingOf<T> rounding_;
  Roots roots_;
  std::int64_t roots_mode_;
  int (*limit_threads_)(int);
  V kept_;
  V weight_decay_;
  V beta2_;
  V eps_;
  V grad_share_;
  V square_share_;
  V step_size_;
  V root_;
};

// A number that goes from 0 to `size` - 1, then again, and stays for `stride` elements each time.
struct AdamwAxis {
  AdamwAxis(std::int64_t size, std::int64_t stride, std::int64_t offset)
      : size(size), stride(size == 1 ? INT64_MAX : stride) {
    number = offset / this->stride % size;
    at = offset % this->stride;
  }

  // At most to where the number changes next, or with stride 1 to where it starts again.
  void advance(std::int64_t count) {
    at += count;
    if (at < stride) return;
    number += stride == 1 ? count : 1;
    if (number == size) number = 0;
    at = 0;
  }

  std::int64_t size;
  std::int64_t stride;
  std::int64_t number;
  std::int64_t at;
};

// Goes through the elements of a tensor and finds the younger of each one's row and column.
template <class T>
class AdamwCursor {
 public:
  using Acc = typename Number<T>::Acc;

  AdamwCursor(const AdamwTensors& tensors, AdamwAxis row, AdamwAxis column)
      : rows_(static_cast<const Acc*>(tensors.rows)),
        columns_(static_cast<const Acc*>(tensors.columns)),
        filters_(tensors.layers[0]->filters),
        per_group_(filters_ / tensors.groups),
        all_columns_(tensors.groups * column.size),
        row_(row),
        column_(column) {}

  // The next `count` elements.
  void fill(AdamwAges<T>& ages, std::int64_t count) {
    for (std::int64_t i = 0; i < count;) {
      std::int64_t now = count - i;
      const Acc* const row = rows_ + row_.number;
      const std::int64_t group = per_group_ == filters_ ? 0 : row_.number / per_group_;
      const Acc* const column = columns_ + group * column_.size + column_.number;
      if (column_.stride == 1) {
        now = least(now, least(column_.size - column_.number, row_.stride - row_.at));
        younger(row, filters_, 0, column, all_columns_, 1, ages, i, now);
      } else if (row_.stride == 1) {
        const std::int64_t group_ends = per_group_ - row_.number % per_group_;
        now = least(now, least(group_ends, column_.stride - column_.at));
        younger(row, filters_, 1, column, all_columns_, 0, ages, i, now);
      } else {
        now = least(now, least(row_.stride - row_.at, column_.stride - column_.at));
        younger(row, filters_, 0, column, all_columns_, 0, ages, i, now);
      }
      row_.advance(now);
      column_.advance(now);
      i += now;
    }
  }

 private:
  static std::int64_t least(std::int64_t a, std::int64_t b) { return a < b ? a : b; }

  // Both corrections grow with the age. The second ones lie `rows` and `columns` elements after the first.
  static void younger(const Acc* row, std::int64_t rows, std::int64_t row_step, const Acc* column, std::int64_t columns,
                      std::int64_t column_step, AdamwAges<T>& ages, std::int64_t at, std::int64_t count) {
    for (std::int64_t k = 0; k < count; ++k) {
      const Acc* const r = row + k * row_step;
      const Acc* const c = column + k * column_step;
      ages.step_size[at + k] = r[0] < c[0] ? r[0] : c[0];
      ages.root[at + k] = r[rows] < c[columns] ? r[rows] : c[columns];
    }
  }

  const Acc* rows_;
  const Acc* columns_;
  std::int64_t filters_;
  std::int64_t per_group_;
  std::int64_t all_columns_;
  AdamwAxis row_;
  AdamwAxis column_;
};

template <class T>
AdamwPlace<T> adamw_start(const AdamwTensors& tensors, std::int64_t filter) {
  T* data[kAdamwTensors] = {};
  for (int i = 0; i < kAdamwTensors; ++i) {
    if (tensors.data[i] != nullptr) {
      data[i] = static_cast<T*>(tensors.data[i]) + filter * tensors.layers[i]->filter_stride;
    }
  }
  return {data[0], data[1], data[2], data[3], data[4]};
}

// Moves `count` elements that lie one after the other from `offset` on; `cursor` may be null.
template <class T>
void adamw_run(const AdamwStep<T>& step, const AdamwPlace<T>& start, std::int64_t offset, std::int64_t count,
               AdamwCursor<T>* cursor, AdamwAges<T>& ages) {
  for (std::int64_t done = 0; done < count; done += kAdamwBlock) {
    const std::int64_t now = count - done < kAdamwBlock ? count - done : kAdamwBlock;
    if (cursor != nullptr) cursor->fill(ages, now);
    step.block(start + (offset + done), offset + done, now, cursor == nullptr ? nullptr : &ages);
  }
}

template <class T>
void adamw_gathered(const AdamwStep<T>& step, const AdamwTensors& tensors, std::int64_t filter, AdamwCursor<T>* cursor,
                    AdamwAges<T>& ages) {
  const AdamwPlace<T> start = adamw_start<T>(tensors, filter);
  const T* const sources[kAdamwTensors] = {start.param, start.grad, start.mean, start.square, start.maximum};
  T* const targets[kAdamwTensors] = {start.param, nullptr, start.mean, start.square, start.maximum};
  T packed[kAdamwTensors][kAdamwBlock];
  const AdamwPlace<T> place{packed[0], packed[1], packed[2], packed[3], start.maximum == nullptr ? nullptr : packed[4]};
  const std::int64_t elements = elements_of(*tensors.layers[0]);
  for (std::int64_t done = 0; done < elements; done += kAdamwBlock) {
    const std::int64_t now = elements - done < kAdamwBlock ? elements - done : kAdamwBlock;
    for (int i = 0; i < kAdamwTensors; ++i) {
      if (sources[i] != nullptr) Walk(*tensors.layers[i], done).gather(sources[i], packed[i], now);
    }
    if (cursor != nullptr) cursor->fill(ages, now);
    step.block(place, done, now, cursor == nullptr ? nullptr : &ages);
    for (int i = 0; i < kAdamwTensors; ++i) {
      if (targets[i] != nullptr) Walk(*tensors.layers[i], done).scatter(targets[i], packed[i], now);
    }
  }
}

// Moves the filters first, ..., first + count - 1 of a parameter.
template <class T>
void adamw_filters(const AdamwTensors& tensors, const AdamwRule& rule, const T*, std::int64_t first,
                   std::int64_t count) {
  const Layer& layer = *tensors.layers[0];
  bool same = true;
  for (int i = 1; i < kAdamwTensors; ++i) {
    if (tensors.data[i] != nullptr) same = same && lie_alike(layer, *tensors.layers[i]);
  }
  const std::int64_t elements = elements_of(layer);
  const bool dense = same && is_one_run(layer);
  const AdamwStep<T> step(tensors, rule, dense);
  const bool aged = tensors.rows != nullptr;
  AdamwAges<T> ages;
  if (dense) {
    // In the order of memory: dimensions within the filters', the filters, dimensions outside of it.
    const std::int64_t run = layer.filters == 1 ? elements : layer.filter_stride;
    const AdamwPlace<T> start = adamw_start<T>(tensors, 0);
    for (std::int64_t outer = 0; outer < elements / run; ++outer) {
      const std::int64_t offset = (outer * layer.filters + first) * run;
      AdamwCursor<T> cursor(tensors, {layer.filters, layer.filter_stride, offset},
                            {layer.channels, layer.channel_stride, offset});
      adamw_run(step, start, offset, run * count, aged ? &cursor : nullptr, ages);
    }
    return;
  }
  for (std::int64_t f = first; f < first + count; ++f) {
    const AdamwAxis row(layer.filters, elements, f * elements);
    if (same && is_dense(layer)) {
      AdamwCursor<T> cursor(tensors, row, {layer.channels, layer.channel_stride, 0});
      adamw_run(step, adamw_start<T>(tensors, f), 0, elements, aged ? &cursor : nullptr, ages);
    } else {
      AdamwCursor<T> cursor(tensors, row, {layer.channels, elements / layer.channels, 0});
      adamw_gathered(step, tensors, f, aged ? &cursor : nullptr, ages);
    }
  }
}

}  // namespace
}  // namespace we::cpu
