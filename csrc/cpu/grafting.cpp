#include "cpu/grafting.h"

#include <algorithm>
#include <atomic>
#include <numeric>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "cpu/simd.h"
#include "cpu/tasks.h"
#include "places.h"

namespace we::cpu {
namespace {

void count_per_filter(const Bank& bank, int bins, std::int64_t* counts, int threads) {
  const Kernels& simd = kernels();
  slice_filters(bank, threads).run([&](const Slice& slice) {
    const Layer& layer = bank.layers[slice.layer];
    const void* weight = bank.weights[slice.layer];
    for (std::int64_t f = slice.first; f < slice.first + slice.count; ++f) {
      std::int64_t* row = counts + (layer.first_filter + f) * bins;
      Range range;
      simd.range(layer, weight, f, 1, &range);
      if (range.finite) simd.count_bins(layer, weight, f, 1, range, bins, row);
      else row[0] = -1;
    }
  });
}

// One pass over a slice's elements finds their range, or how many fall into each bin.
struct Pass {
  std::size_t slice;
  bool counts;
};

// A tensor's elements cannot be counted before its range is known. So that they are still in a cache then, tensors
// take turns in groups of about so many bytes: the ranges of a group, then its counts, the last slice first.
constexpr std::int64_t kGroupBytes = 1 << 20;

std::vector<Pass> in_groups(const Slices& slices, std::span<const std::int64_t> layer_bytes) {
  std::vector<std::size_t> ends{0};
  std::int64_t bytes = 0;
  for (std::size_t i = 0; i < slices.size(); ++i) {
    const bool last = i + 1 == slices.size();
    if (!last && slices[i].layer == slices[i + 1].layer) continue;
    bytes += layer_bytes[static_cast<std::size_t>(slices[i].layer)];
    if (!last && bytes < kGroupBytes) continue;
    ends.push_back(i + 1);
    bytes = 0;
  }
  std::vector<Pass> passes;
  for (std::size_t g = 1; g < ends.size(); ++g) {
    for (std::size_t i = ends[g - 1]; i < ends[g]; ++i) passes.push_back({i, false});
    for (std::size_t i = ends[g]; i-- > ends[g - 1];) passes.push_back({i, true});
  }
  return passes;
}

void count_per_tensor(const Bank& bank, int bins, std::int64_t* counts, int threads) {
  std::vector<Layer> runs;
  std::vector<std::int64_t> bytes;
  for (const Layer& layer : bank.layers) {
    runs.push_back(as_run(layer));
    bytes.push_back(bytes_of(layer));
  }
  Slices slices(threads, std::accumulate(bytes.begin(), bytes.end(), std::int64_t{0}));
  std::vector<std::size_t> first(runs.size() + 1);
  for (std::size_t i = 0; i < runs.size(); ++i) {
    slices.add(static_cast<std::int32_t>(i), runs[i].filters, bytes_per_filter(runs[i]));
    first[i + 1] = slices.size();
  }
  std::vector<std::atomic<std::size_t>> unknown(runs.size());  // slices of a tensor whose range is not yet found
  for (std::size_t i = 0; i < runs.size(); ++i) unknown[i] = first[i + 1] - first[i];
  std::vector<Range> parts(slices.size());
  const Kernels& simd = kernels();
  const std::vector<Pass> passes = in_groups(slices, bytes);
  parallel_for(slices.threads(), static_cast<std::uint32_t>(passes.size()), [&](std::uint32_t number) {
    const auto [at, is_count] = passes[number];
    const Slice& slice = slices[at];
    const auto i = static_cast<std::size_t>(slice.layer);
    if (!is_count) {
      Range range;
      simd.range(runs[i], bank.weights[i], slice.first, slice.count, &range);
      parts[at] = range;
      unknown[i].fetch_sub(1, std::memory_order_release);
      return;
    }
    // Tasks are taken in order, so those ranges are found or being found.
    while (unknown[i].load(std::memory_order_acquire) != 0) std::this_thread::yield();
    Range range;
    for (std::size_t part = first[i]; part < first[i + 1]; ++part) {
      range.low = std::min(range.low, parts[part].low);
      range.high = std::max(range.high, parts[part].high);
      range.finite &= parts[part].finite;
    }
    std::int64_t* const row = counts + slice.layer * bins;
    if (!range.finite) {
      if (at == first[i]) row[0] = -1;
      return;
    }
    std::int64_t found[kMaxBins] = {};
    simd.count_bins(runs[i], bank.weights[i], slice.first, slice.count, range, bins, found);
    for (int b = 0; b < bins; ++b) __atomic_fetch_add(row + b, found[b], __ATOMIC_RELAXED);
  });
}

}  // namespace

void count_bins(const Bank& bank, int bins, bool per_filter, std::span<std::int64_t> counts, int threads) {
  std::fill(counts.begin(), counts.end(), 0);
  if (per_filter) count_per_filter(bank, bins, counts.data(), threads);
  else count_per_tensor(bank, bins, counts.data(), threads);
}

void check_networks(std::span<const Bank> networks) {
  if (networks.size() < 2 || networks.size() > kMaxNetworks) {
    throw std::invalid_argument("the number of networks is not in [2, " + std::to_string(kMaxNetworks) + "]");
  }
  const std::span<const Layer> first = networks[0].layers;
  for (const Bank& network : networks) {
    if (network.layers.size() != first.size()) throw std::invalid_argument("networks differ in their number of layers");
    for (std::size_t i = 0; i < first.size(); ++i) {
      if (!same_sizes(first[i], network.layers[i])) refuse_layer(i, "differs between networks");
    }
  }
}

void blend(std::span<const Bank> networks, std::span<const float> coefficients, int written, bool per_filter,
           int threads) {
  const std::size_t count = networks.size();
  const std::size_t layers = networks[0].layers.size();
  std::vector<Layer> rows(layers * count);
  std::vector<void*> weights(layers * count);
  std::vector<Blend> blends(layers);
  std::int64_t total = 0;
  for (std::size_t i = 0; i < layers; ++i) {
    const Layer& first = networks[0].layers[i];
    Blend& blend = blends[i];
    blend.alike = true;
    for (std::size_t k = 0; k < count; ++k) {
      rows[i * count + k] = networks[k].layers[i];
      weights[i * count + k] = networks[k].weights[i];
      blend.alike &= lie_alike(first, networks[k].layers[i]);
    }
    if (blend.alike && !per_filter) std::fill_n(rows.begin() + i * count, count, as_run(first));
    blend.layers = rows.data() + i * count;
    blend.weights = weights.data() + i * count;
    blend.coefficients = coefficients.data() + (per_filter ? first.first_filter : static_cast<std::int64_t>(i));
    blend.columns = static_cast<std::int64_t>(coefficients.size()) / written;
    blend.networks = static_cast<int>(count);
    blend.written = written;
    blend.per_filter = per_filter;
    total += static_cast<std::int64_t>(count) * bytes_of(first);
  }
  Slices slices(threads, 2 * total);
  // This goes from the last layer back: its filters are those that computing the entropies left in the caches.
  for (std::size_t i = layers; i-- > 0;) {
    const Layer& layer = blends[i].layers[0];
    slices.add(static_cast<std::int32_t>(i), layer.filters,
               2 * static_cast<std::int64_t>(count) * bytes_per_filter(layer));
  }
  const Kernels& simd = kernels();
  slices.run([&](const Slice& slice) { simd.blend(blends[slice.layer], slice.first, slice.count); });
}

}  // namespace we::cpu
