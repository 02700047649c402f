#include "cpu/tasks.h"

namespace we::cpu {

Slices slice_filters(const Bank& bank, int threads) {
  std::int64_t total = 0;
  for (const Layer& layer : bank.layers) total += bytes_of(layer);
  Slices slices(threads, total);
  for (std::size_t i = 0; i < bank.layers.size(); ++i) {
    slices.add(static_cast<std::int32_t>(i), bank.layers[i].filters, bytes_per_filter(bank.layers[i]));
  }
  return slices;
}

}  // namespace we::cpu
