// Blends of networks, element by element. For the simd_*.cpp files only.
#pragma once

#include <cstdint>

#include "cpu/simd.h"
#include "cpu/simd_walk.h"
#include "layout.h"

namespace we::cpu {
namespace {

inline void store_one(float* to, float x) { *to = x; }
inline void store_one(double* to, double x) { *to = x; }
template <class T>
inline void store_one(T* to, float x) {
  to->bits = narrow_any(to, all_lanes<Floats>(x))[0];
}

// Blends `length` elements of every network; those of the k-th one are at `network[k]`, and `share(k)` is its
// coefficient. The last network is read first, as the neighbour of the first one, and not again.
template <class T, class Share>
void blend_run(const Blend& blend, T* const* network, std::int64_t length, Share&& share) {
  using Acc = typename Number<T>::Acc;
  using V = Values<T>;
  constexpr int lanes = kLanes<T>;
  constexpr int vectors = 4;
  const int last = blend.networks - 1;
  std::int64_t i = 0;
  for (; i + vectors * lanes <= length; i += vectors * lanes) {
    V of_last[vectors], neighbour[vectors];
    for (int v = 0; v < vectors; ++v) of_last[v] = neighbour[v] = load(network[last] + i + v * lanes);
    for (int k = 0; k < blend.written; ++k) {
      T* const to = network[k] + i;
      const V c = all_lanes<V>(static_cast<Acc>(share(k)));
      for (int v = 0; v < vectors; ++v) {
        const V own = k == last ? of_last[v] : load(to + v * lanes);
        write(to + v * lanes, narrow_any(to, c * own + (1 - c) * neighbour[v]));
        neighbour[v] = own;
      }
    }
  }
  for (; i < length; ++i) {
    const Acc of_last = widen(network[last][i]);
    Acc neighbour = of_last;
    for (int k = 0; k < blend.written; ++k) {
      const Acc c = static_cast<Acc>(share(k));
      const Acc own = k == last ? of_last : widen(network[k][i]);
      store_one(network[k] + i, c * own + (1 - c) * neighbour);
      neighbour = own;
    }
  }
}

// Blends one filter whose elements lie differently in the networks.
template <class T, class Share>
void blend_strided(const Blend& blend, T* const* network, Share&& share) {
  constexpr std::int64_t size = 256;
  T packed[3][size];
  const int last = blend.networks - 1;
  const std::int64_t elements = elements_of(blend.layers[0]);
  for (std::int64_t start = 0; start < elements; start += size) {
    const std::int64_t count = elements - start < size ? elements - start : size;
    const auto gather = [&](int k, T* to) { Walk(blend.layers[k], start).gather(network[k], to, count); };
    T* const of_last = packed[0];
    T* neighbour = of_last;
    gather(last, of_last);
    for (int k = 0; k < blend.written; ++k) {
      T* own = of_last;
      if (k != last) {
        own = neighbour == packed[1] ? packed[2] : packed[1];
        gather(k, own);
      }
      // This is a run of two networks of which the first, a copy, is written: `own` is the next one's neighbour.
      T result[size];
      for (std::int64_t i = 0; i < count; ++i) result[i] = own[i];
      T* const pair[] = {result, neighbour};
      Blend two = blend;
      two.networks = 2;
      two.written = 1;
      blend_run(two, pair, count, [&](int) { return share(k); });
      Walk(blend.layers[k], start).scatter(network[k], result, count);
      neighbour = own;
    }
  }
}

template <class T>
void blend_filters(const Blend& blend, T*, std::int64_t first, std::int64_t count) {
  T* network[kMaxNetworks];
  const auto go_to = [&](std::int64_t filter) {
    for (int k = 0; k < blend.networks; ++k) {
      network[k] = static_cast<T*>(blend.weights[k]) + filter * blend.layers[k].filter_stride;
    }
  };
  const auto share_of = [&](std::int64_t filter) {
    const float* from = blend.coefficients + (blend.per_filter ? filter : 0);
    return [&blend, from](int k) { return from[k * blend.columns]; };
  };
  const std::int64_t elements = elements_of(blend.layers[0]);
  const bool dense = blend.alike && is_dense(blend.layers[0]);
  if (dense && !blend.per_filter && blend.layers[0].filter_stride == elements) {
    go_to(first);
    return blend_run(blend, network, count * elements, share_of(first));
  }
  for (std::int64_t filter = first; filter < first + count; ++filter) {
    go_to(filter);
    if (dense) blend_run(blend, network, elements, share_of(filter));
    else blend_strided(blend, network, share_of(filter));
  }
}

}  // namespace
}  // namespace we::cpu
