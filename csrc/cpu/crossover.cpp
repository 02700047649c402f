#include "cpu/evolution.h"
#include "cpu/tasks.h"

namespace we::cpu {

void crossover(const Bank& bank, const Pairs& pairs, Rule rule, int threads) {
  std::int64_t total = 0;
  for (std::size_t i = 0; i < bank.layers.size(); ++i) total += pairs.count[i] * bytes_per_filter(bank.layers[i]);
  Slices slices(threads, 2 * total);
  // This goes from the last layer back: its filters are those that computing the importances left in the caches.
  for (std::size_t i = bank.layers.size(); i-- > 0;) {
    slices.add(static_cast<std::int32_t>(i), pairs.count[i], 2 * bytes_per_filter(bank.layers[i]));
  }
  const Kernels& simd = kernels();
  slices.run([&](const Slice& slice) {
    const Layer& layer = bank.layers[slice.layer];
    simd.crossover(layer, bank.weights[slice.layer], pairs.list.data() + layer.first_filter + slice.first, slice.count,
                   rule);
  });
}

void crossover(const Bank& bank, std::span<const std::int32_t> donor, Rule rule, int threads) {
  Pairs pairs;
  pairs.list.resize(donor.size());
  pairs.count.resize(bank.layers.size());
  for (std::size_t i = 0; i < bank.layers.size(); ++i) {
    const Layer& layer = bank.layers[i];
    const std::int32_t* donors = donor.data() + layer.first_filter;
    Pair* out = pairs.list.data() + layer.first_filter;
    const auto filters = static_cast<std::int32_t>(layer.filters);
    std::int32_t count = 0;
    for (std::int32_t row = 0; row < filters; ++row) {
      // Read once: another thread may write it after it was checked.
      const std::int32_t source = __atomic_load_n(donors + row, __ATOMIC_RELAXED);
      if (source >= 0 && source < filters) out[count++] = {row, source};
    }
    pairs.count[i] = count;
  }
  crossover(bank, pairs, rule, threads);
}

}  // namespace we::cpu
