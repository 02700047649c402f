#include "crossing.cuh"
#include "evolution.h"

namespace we::cuda {
namespace {

__global__ void __launch_bounds__(kCrossingThreads, kBlocksPerProcessor)
    crossover_kernel(Bank bank, const std::int32_t* donor, Rule rule) {
  for (std::int64_t filter = blockIdx.x; filter < bank.num_filters; filter += gridDim.x) {
    const std::int32_t source = donor[filter];
    if (source < 0) continue;
    const std::int64_t index = layer_of(bank.layers, bank.num_layers, filter);
    const Layer& layer = bank.layers[index];
    if (source >= layer.filters) continue;
    cross(layer, bank.pointers[index], filter - layer.first_filter, source, rule);
  }
}

}  // namespace

cudaError_t crossover(const Bank& bank, const std::int32_t* donor, Rule rule, cudaStream_t stream) {
  std::int64_t blocks = 0;
  const cudaError_t error = grid_blocks(bank.num_filters, kGridBlocks, blocks);
  if (error != cudaSuccess) return error;
  return launch(crossover_kernel, blocks, kCrossingThreads, stream, bank, donor, rule);
}

}  // namespace we::cuda
