#include "cpu/evolution.h"
#include "cpu/tasks.h"

namespace we::cpu {

void filter_importance(const Bank& bank, std::span<float> importance, int threads) {
  const Kernels& simd = kernels();
  slice_filters(bank, threads).run([&](const Slice& slice) {
    const Layer& layer = bank.layers[slice.layer];
    simd.importance(layer, bank.weights[slice.layer], slice.first, slice.count,
                    importance.data() + layer.first_filter + slice.first);
  });
}

}  // namespace we::cpu
