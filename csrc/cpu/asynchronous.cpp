#include "cpu/asynchronous.h"

#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <string>
#include <vector>

#include "cpu/philox.h"
#include "cpu/tasks.h"

namespace we::cpu {
namespace {

constexpr std::int64_t kAlignment = 64;

// Rounds to the nearest integer, halves to even.
std::int64_t round_even(double x) {
  const double down = std::floor(x);
  const double rest = x - down;
  const auto whole = static_cast<std::int64_t>(down);
  return whole + (rest > 0.5 || (rest == 0.5 && whole % 2 != 0) ? 1 : 0);
}

// The bytes of the layer's place in a buffer.
std::int64_t place_bytes(const Layer& layer) { return (bytes_of(layer) + kAlignment - 1) / kAlignment * kAlignment; }

}  // namespace

void select_filters(std::span<const Segment> segments, const Draw& draw, std::span<std::uint8_t> selected) {
  const double rate = draw.rate > 0 ? std::min(draw.rate, 1.0) : 0.0;
  std::vector<std::uint64_t> keys;
  std::fill(selected.begin(), selected.end(), std::uint8_t{0});
  for (std::size_t i = 0; i < segments.size(); ++i) {
    const std::int64_t filters = segments[i].filters;
    if (filters == 0) continue;
    std::uint8_t* const chosen = selected.data() + segments[i].first;
    const double expected = rate * static_cast<double>(filters);
    const auto layer = static_cast<std::uint32_t>(i);
    const auto number = [&](std::int64_t index) {
      return std::uint64_t{philox(static_cast<std::uint32_t>(index), layer, draw.step, draw.seed)};
    };
    if (draw.replacement) {
      const auto draws = std::max<std::int64_t>(static_cast<std::int64_t>(std::floor(expected)), 1);
      for (std::int64_t d = 0; d < draws; ++d) chosen[number(d) * static_cast<std::uint64_t>(filters) >> 32] = 1;
      continue;
    }
    const std::int64_t wanted = std::clamp<std::int64_t>(round_even(expected), 1, filters);
    keys.resize(static_cast<std::size_t>(filters));
    for (std::int64_t row = 0; row < filters; ++row) {
      keys[static_cast<std::size_t>(row)] = number(row) << 32 | static_cast<std::uint64_t>(row);
    }
    std::nth_element(keys.begin(), keys.begin() + (wanted - 1), keys.end());
    for (std::int64_t k = 0; k < wanted; ++k) chosen[static_cast<std::uint32_t>(keys[static_cast<std::size_t>(k)])] = 1;
  }
}

std::int64_t snapshot_bytes(const Bank& bank) {
  std::int64_t bytes = 0;
  for (const Layer& layer : bank.layers) bytes += place_bytes(layer);
  return bytes;
}

void copy_unselected(const Bank& bank, std::span<const std::uint8_t> selected, std::span<std::uint8_t> buffer,
                     bool restore, int threads) {
  std::vector<std::int64_t> places(bank.layers.size());
  std::int64_t end = 0;
  for (std::size_t i = 0; i < bank.layers.size(); ++i) {
    places[i] = end;
    end += place_bytes(bank.layers[i]);
  }
  const Kernels& simd = kernels();
  slice_filters(bank, threads).run([&](const Slice& slice) {
    const Layer& layer = bank.layers[slice.layer];
    simd.copy_unselected(layer, bank.weights[slice.layer], buffer.data() + places[slice.layer],
                         selected.data() + layer.first_filter, slice.first, slice.count, restore);
  });
}

void check_sgd(const SgdBanks& banks) {
  const std::size_t layers = banks.params.layers.size();
  const auto refuse = [](const std::string& what) { throw std::invalid_argument(what); };
  if (banks.masked.size() != layers || banks.first.size() != layers) refuse("masked and first need one entry a layer");
  std::int64_t filters = 0;
  for (std::size_t i = 0; i < layers; ++i) {
    const Layer& layer = banks.params.layers[i];
    if (banks.masked[i] != 0) filters += layer.filters;
    for (const Bank* other : {&banks.grads, &banks.buffers}) {
      if (other == &banks.buffers && other->layers.empty()) continue;
      if (other->layers.size() != layers) refuse("the tables have different numbers of layers");
      if (!same_sizes(layer, other->layers[i])) {
        refuse("layer " + std::to_string(i) + " differs in size or dtype from table to table");
      }
    }
  }
  if (filters != static_cast<std::int64_t>(banks.selected.size())) {
    refuse("selected has " + std::to_string(banks.selected.size()) + " elements, not " + std::to_string(filters));
  }
}

void asynchronous_sgd(const SgdBanks& banks, const SgdRule& rule, int threads) {
  constexpr std::int64_t passes = 5;  // parameter, gradient and buffer read, buffer and parameter written
  const std::size_t layers = banks.params.layers.size();
  std::vector<SgdTensors> tensors(layers);
  std::int64_t total = 0;
  const std::uint8_t* selected = banks.selected.data();
  const bool has_momentum = rule.momentum != 0;
  for (std::size_t i = 0; i < layers; ++i) {
    const Layer& layer = banks.params.layers[i];
    tensors[i] = {&layer,
                  &banks.grads.layers[i],
                  has_momentum ? &banks.buffers.layers[i] : nullptr,
                  banks.params.weights[i],
                  banks.grads.weights[i],
                  has_momentum ? banks.buffers.weights[i] : nullptr,
                  banks.masked[i] != 0 ? selected : nullptr,
                  banks.first[i] != 0};
    if (banks.masked[i] != 0) selected += layer.filters;
    total += passes * bytes_of(layer);
  }
  Slices slices(threads, total);
  for (std::size_t i = 0; i < layers; ++i) {
    const Layer& layer = banks.params.layers[i];
    slices.add(static_cast<std::int32_t>(i), layer.filters, passes * bytes_per_filter(layer));
  }
  const Kernels& simd = kernels();
  slices.run([&](const Slice& slice) { simd.sgd(tensors[slice.layer], rule, slice.first, slice.count); });
}

}  // namespace we::cpu
