// SGD of selected filters, and copies of the others. For the simd_*.cpp files only.
#pragma once

#include <cstdint>

#include "cpu/simd_rounding.h"
#include "cpu/simd_sgd_rule.h"
#include "cpu/simd_walk.h"
#include "layout.h"

namespace we::cpu {
namespace {

template <class T>
struct SgdScalars {
  explicit SgdScalars(const SgdRule& rule)
      : weight_decay(scalar<T>(rule.weight_decay)),
        momentum(scalar<T>(rule.momentum)),
        share(scalar<T>(1 - rule.dampening)),
        minus_lr(scalar<T>(-rule.lr)) {}
  Values<T> weight_decay;
  Values<T> momentum;
  Values<T> share;
  Values<T> minus_lr;
};

template <class T, bool once>
class SgdStep {
 public:
  SgdStep(const SgdRule& rule, bool first)
      : scalars_(rule),
        decays_(rule.weight_decay != 0),
        has_momentum_(rule.momentum != 0),
        first_(first),
        nesterov_(rule.nesterov),
        maximize_(rule.maximize) {}

  // Writes the new momentum in place, and the new parameters to `out` unless it is null.
  void run(const T* param, const T* grad, T* buffer, T* out, std::int64_t count) const {
    std::int64_t i = 0;
    for (; i + kLanes<T> <= count; i += kLanes<T>) {
      vector(param + i, grad + i, has_momentum_ ? buffer + i : nullptr, out == nullptr ? nullptr : out + i);
    }
    if (i == count) return;
    const auto bytes = static_cast<std::size_t>(count - i) * sizeof(T);
    T rest[4][kLanes<T>] = {};
    __builtin_memcpy(rest[0], param + i, bytes);
    __builtin_memcpy(rest[1], grad + i, bytes);
    if (has_momentum_) __builtin_memcpy(rest[2], buffer + i, bytes);
    vector(rest[0], rest[1], rest[2], rest[3]);
    if (has_momentum_) __builtin_memcpy(buffer + i, rest[2], bytes);
    if (out != nullptr) __builtin_memcpy(out + i, rest[3], bytes);
  }

 private:
  void vector(const T* param, const T* grad, T* buffer, T* out) const {
    using V = Values<T>;
    V update = load(grad);
    if (maximize_) update = -update;
    if (decays_) update = multiply_add<T, once>(update, load(param), scalars_.weight_decay);
    if (has_momentum_) {
      V m = update;
      if (!first_) m = multiply_add<T, once>(rounded<T>(load(buffer) * scalars_.momentum), update, scalars_.share);
      write(buffer, narrow_any(buffer, m));
      update = nesterov_ ? multiply_add<T, once>(update, m, scalars_.momentum) : m;
    }
    if (out != nullptr) write(out, narrow_any(out, multiply_add<T, once>(load(param), update, scalars_.minus_lr)));
  }

  SgdScalars<T> scalars_;
  bool decays_;
  bool has_momentum_;
  bool first_;
  bool nesterov_;
  bool maximize_;
};

// A step of one layer, with both ways to round, each where torch takes it.
template <class T>
class SgdLayer {
 public:
  SgdLayer(const SgdTensors& tensors, const SgdRule& rule, bool dense)
      : once_(rule, tensors.first),
        twice_(rule, tensors.first),
        rounding_(rule.rounding, *tensors.param_layer, dense),
        param_(static_cast<T*>(tensors.param)),
        grad_(static_cast<const T*>(tensors.grad)),
        buffer_(static_cast<T*>(tensors.buffer)) {}

  // Moves elements at `offset` of a tensor that lies in memory like its gradient and buffer; they go to `out`, if it is
  // not null.
  void run(std::int64_t offset, std::int64_t count, T* out) const {
    rounding_.each(offset, count, [&](bool once, std::int64_t at, std::int64_t now) {
      apply(once, at, now, out == nullptr ? nullptr : out + (at - offset));
    });
  }

  // Moves elements that were gathered from tensors of different layouts.
  void run_packed(const T* param, const T* grad, T* buffer, T* out, std::int64_t count) const {
    if (rounding_.gathered()) once_.run(param, grad, buffer, out, count);
    else twice_.run(param, grad, buffer, out, count);
  }

 private:
  void apply(bool once, std::int64_t offset, std::int64_t count, T* out) const {
    T* const buffer = buffer_ == nullptr ? nullptr : buffer_ + offset;
    if (once) once_.run(param_ + offset, grad_ + offset, buffer, out, count);
    else twice_.run(param_ + offset, grad_ + offset, buffer, out, count);
  }

  SgdStep<T, true> once_;
  SgdStep<T, false> twice_;
  RoundingOf<T> rounding_;
  T* param_;
  const T* grad_;
  T* buffer_;
};

// Runs of one filter that are shorter than this are computed together with their neighbours, then copied if selected.
constexpr std::int64_t kShortRun = 64;
constexpr std::int64_t kBlock = 512;

// Moves `run` elements of each of `rows` filters that lie side by side.
template <class T>
void sgd_rows(const SgdLayer<T>& sgd, T* param, std::int64_t offset, std::int64_t run, std::int64_t rows,
              const std::uint8_t* selected) {
  if (selected == nullptr) {
    sgd.run(offset, rows * run, param + offset);
    return;
  }
  if (run >= kShortRun) {
    for (std::int64_t row = 0; row < rows; ++row, offset += run) {
      sgd.run(offset, run, selected[row] != 0 ? param + offset : nullptr);
    }
    return;
  }
  T moved[kBlock];
  const std::int64_t most = kBlock / run;
  for (std::int64_t first = 0; first < rows; first += most) {
    const std::int64_t count = rows - first < most ? rows - first : most;
    T* const target = param + offset + first * run;
    sgd.run(offset + first * run, count * run, moved);
    for (std::int64_t row = 0; row < count; ++row) {
      if (selected[first + row] == 0) continue;
      __builtin_memcpy(target + row * run, moved + row * run, static_cast<std::size_t>(run) * sizeof(T));
    }
  }
}

template <class T>
void sgd_gathered(const SgdLayer<T>& sgd, const SgdTensors& tensors, T* param, std::int64_t first, std::int64_t count) {
  const Layer& layer = *tensors.param_layer;
  const bool has_buffer = tensors.buffer != nullptr;
  for (std::int64_t f = first; f < first + count; ++f) {
    const bool moves = tensors.selected == nullptr || tensors.selected[f] != 0;
    T* const p = param + f * layer.filter_stride;
    const T* const g = static_cast<const T*>(tensors.grad) + f * tensors.grad_layer->filter_stride;
    T* const m = has_buffer ? static_cast<T*>(tensors.buffer) + f * tensors.buffer_layer->filter_stride : nullptr;
    Walk read_p(layer), write_p(layer), read_g(*tensors.grad_layer);
    Walk read_m(has_buffer ? *tensors.buffer_layer : layer);
    Walk write_m = read_m;
    T packed[4][kBlock];
    for (std::int64_t left = elements_of(layer); left > 0; left -= kBlock) {
      const std::int64_t now = left < kBlock ? left : kBlock;
      read_p.gather(p, packed[0], now);
      read_g.gather(g, packed[1], now);
      if (has_buffer) read_m.gather(m, packed[2], now);
      sgd.run_packed(packed[0], packed[1], has_buffer ? packed[2] : nullptr, moves ? packed[3] : nullptr, now);
      if (has_buffer) write_m.scatter(m, packed[2], now);
      if (moves) write_p.scatter(p, packed[3], now);
    }
  }
}

// Moves the filters first, ..., first + count - 1 of a layer.
template <class T>
void sgd_filters(const SgdTensors& tensors, const SgdRule& rule, T* param, std::int64_t first, std::int64_t count) {
  const Layer& layer = *tensors.param_layer;
  const bool same =
      lie_alike(layer, *tensors.grad_layer) && (tensors.buffer == nullptr || lie_alike(layer, *tensors.buffer_layer));
  const std::int64_t elements = elements_of(layer);
  const bool dense = same && is_one_run(layer);
  const SgdLayer<T> sgd(tensors, rule, dense);
  const std::uint8_t* const selected = tensors.selected == nullptr ? nullptr : tensors.selected + first;
  if (dense) {
    // This goes in the order of memory: dimensions within the filters', the filters, dimensions outside of it.
    const std::int64_t run = layer.filters == 1 ? elements : layer.filter_stride;
    for (std::int64_t outer = 0; outer < elements / run; ++outer) {
      sgd_rows(sgd, param, (outer * layer.filters + first) * run, run, count, selected);
    }
  } else if (same && is_dense(layer)) {
    for (std::int64_t f = 0; f < count; ++f) {
      sgd_rows(sgd, param, (first + f) * layer.filter_stride, elements, 1,
               selected == nullptr ? nullptr : selected + f);
    }
  } else {
    sgd_gathered(sgd, tensors, param, first, count);
  }
}

// Copies those of these filters that are not selected between a weight and their places in a buffer.
template <class T>
void copy_filters(const Layer& layer, T* weight, T* places, const std::uint8_t* selected, std::int64_t first,
                  std::int64_t count, bool restore) {
  const std::int64_t elements = elements_of(layer);
  const bool dense = is_dense(layer);
  const auto bytes = static_cast<std::size_t>(elements) * sizeof(T);
  for (std::int64_t f = first; f < first + count; ++f) {
    if (selected[f] != 0) continue;
    T* const row = weight + f * layer.filter_stride;
    T* const place = places + f * elements;
    if (dense && restore) __builtin_memcpy(row, place, bytes);
    else if (dense) __builtin_memcpy(place, row, bytes);
    else if (restore) Walk(layer).scatter(row, place, elements);
    else Walk(layer).gather(row, place, elements);
  }
}

}  // namespace
}  // namespace we::cpu
