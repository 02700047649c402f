#include "crossing.cuh"
#include "evolution.h"

namespace we::cuda {
namespace {

// The k-th best of a layer's inferior filters gets the k-th most important filter of the layer.
struct Match {
  std::int64_t layer;
  std::int64_t first_filter;
  std::int32_t row;
  std::int32_t source;
  bool valid;  // the order holds anything where another stream changed importances while they were ranked
};

__device__ Match read_match(const Plan& plan, const Selection& selection, const Scratch& scratch, std::int64_t match) {
  const std::int64_t slot =
      last_at_most(plan.num_layers, match, [&](std::int64_t i) { return scratch.first_match[i]; });
  const std::int64_t layer = plan.slots[2 * slot];
  const std::int64_t first_filter = plan.segments[3 * layer + 1];
  const std::int64_t dominant = plan.slots[2 * slot + 1] - selection.inferior[layer];
  const std::int32_t* const order = scratch.order + first_filter + (match - scratch.first_match[slot]);
  const std::int32_t row = order[dominant];
  const std::int32_t source = order[0];
  const std::int32_t filters = plan.slots[2 * slot + 1];
  return {layer, first_filter, row, source, row >= 0 && row < filters && source >= 0 && source < filters};
}

__global__ void __launch_bounds__(kCrossingThreads) match_kernel(Plan plan, Selection selection, Scratch scratch) {
  const std::int64_t end = scratch.first_match[plan.num_layers];
  const std::int64_t step = static_cast<std::int64_t>(gridDim.x) * kCrossingThreads;
  for (std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * kCrossingThreads + thread_index(); i < end; i += step) {
    const Match match = read_match(plan, selection, scratch, i);
    if (match.valid) selection.donor[match.first_filter + match.row] = match.source;
  }
}

__global__ void __launch_bounds__(kCrossingThreads, kBlocksPerProcessor)
    match_and_cross_kernel(Bank bank, Plan plan, Selection selection, Scratch scratch, Rule rule) {
  const std::int64_t end = scratch.first_match[plan.num_layers];
  for (std::int64_t i = blockIdx.x; i < end; i += gridDim.x) {
    const Match match = read_match(plan, selection, scratch, i);
    if (!match.valid) continue;
    if (thread_index() == 0) selection.donor[match.first_filter + match.row] = match.source;
    cross(bank.layers[match.layer], bank.pointers[match.layer], match.row, match.source, rule);
  }
}

}  // namespace

cudaError_t match(const Plan& plan, const Selection& selection, const Scratch& scratch, cudaStream_t stream) {
  std::int64_t blocks = 0;
  // At most half of the filters get a donor.
  const std::int64_t wanted = (plan.num_filters / 2 + kCrossingThreads - 1) / kCrossingThreads;
  if (const cudaError_t error = grid_blocks(wanted, kGridBlocks, blocks); error != cudaSuccess) return error;
  return launch(match_kernel, blocks, kCrossingThreads, stream, plan, selection, scratch);
}

cudaError_t match_and_cross(const Bank& bank, const Plan& plan, const Selection& selection, const Scratch& scratch,
                            Rule rule, cudaStream_t stream) {
  std::int64_t blocks = 0;
  const cudaError_t error = grid_blocks(plan.num_filters / 2, kGridBlocks, blocks);
  if (error != cudaSuccess) return error;
  return launch(match_and_cross_kernel, blocks, kCrossingThreads, stream, bank, plan, selection, scratch, rule);
}

}  // namespace we::cuda
