#include <algorithm>
#include <vector>

#include "cpu/operators.h"
#include "cpu/tasks.h"

namespace we::cpu {
namespace {

std::int64_t bytes_of(const Layer& layer) { return layer.filters * bytes_per_filter(layer); }

void count_per_filter(const Bank& bank, int bins, std::int64_t* counts, int threads) {
  std::int64_t total = 0;
  for (const Layer& layer : bank.layers) total += bytes_of(layer);
  Slices slices(threads, total);
  for (std::size_t i = 0; i < bank.layers.size(); ++i) {
    slices.add(static_cast<std::int32_t>(i), bank.layers[i].filters, bytes_per_filter(bank.layers[i]));
  }
  const Kernels& simd = kernels();
  slices.run([&](const Slice& slice) {
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

void count_per_tensor(const Bank& bank, int bins, std::int64_t* counts, int threads) {
  std::vector<Layer> runs;
  std::int64_t total = 0;
  for (const Layer& layer : bank.layers) {
    runs.push_back(as_run(layer));
    total += bytes_of(layer);
  }
  Slices slices(threads, total);
  for (std::size_t i = 0; i < runs.size(); ++i) {
    slices.add(static_cast<std::int32_t>(i), runs[i].filters, bytes_per_filter(runs[i]));
  }
  const Kernels& simd = kernels();
  std::vector<Range> parts(slices.size());
  slices.run([&](const Slice& slice, std::size_t number) {
    Range range;
    simd.range(runs[slice.layer], bank.weights[slice.layer], slice.first, slice.count, &range);
    parts[number] = range;
  });
  std::vector<Range> ranges(runs.size());
  for (std::size_t i = 0; i < parts.size(); ++i) {
    Range& range = ranges[slices[i].layer];
    range.low = std::min(range.low, parts[i].low);
    range.high = std::max(range.high, parts[i].high);
    range.finite &= parts[i].finite;
  }
  // From the last slice back: those are what the first pass left in the caches.
  slices.run([&](const Slice&, std::size_t number) {
    const Slice& slice = slices[slices.size() - 1 - number];
    const Range& range = ranges[slice.layer];
    if (!range.finite) return;
    std::int64_t found[kMaxBins] = {};
    simd.count_bins(runs[slice.layer], bank.weights[slice.layer], slice.first, slice.count, range, bins, found);
    for (int b = 0; b < bins; ++b) __atomic_fetch_add(counts + slice.layer * bins + b, found[b], __ATOMIC_RELAXED);
  });
  for (std::size_t i = 0; i < ranges.size(); ++i) {
    if (!ranges[i].finite) counts[static_cast<std::int64_t>(i) * bins] = -1;
  }
}

}  // namespace

void count_bins(const Bank& bank, int bins, bool per_filter, std::span<std::int64_t> counts, int threads) {
  std::fill(counts.begin(), counts.end(), 0);
  if (per_filter) count_per_filter(bank, bins, counts.data(), threads);
  else count_per_tensor(bank, bins, counts.data(), threads);
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
  // From the last layer back: those are what computing entropies left in the caches.
  for (std::size_t i = layers; i-- > 0;) {
    const Layer& layer = blends[i].layers[0];
    slices.add(static_cast<std::int32_t>(i), layer.filters,
               2 * static_cast<std::int64_t>(count) * bytes_per_filter(layer));
  }
  const Kernels& simd = kernels();
  slices.run([&](const Slice& slice) { simd.blend(blends[slice.layer], slice.first, slice.count); });
}

}  // namespace we::cpu
