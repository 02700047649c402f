#include "cpu/operators.h"
#include "cpu/tasks.h"

namespace we::cpu {

void filter_importance(const Bank& bank, std::span<float> importance, int threads) {
  std::int64_t total = 0;
  for (const Layer& layer : bank.layers) total += layer.filters * bytes_per_filter(layer);
  Slices slices(threads, total);
  for (std::size_t i = 0; i < bank.layers.size(); ++i) {
    slices.add(static_cast<std::int32_t>(i), bank.layers[i].filters, bytes_per_filter(bank.layers[i]));
  }
  const Kernels& simd = kernels();
  slices.run([&](const Slice& slice) {
    const Layer& layer = bank.layers[slice.layer];
    simd.importance(layer, bank.weights[slice.layer], slice.first, slice.count,
                    importance.data() + layer.first_filter + slice.first);
  });
}

}  // namespace we::cpu
