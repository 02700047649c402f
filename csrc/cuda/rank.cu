#include "evolution.h"
#include "keys.cuh"
#include "threads.cuh"

namespace we::cuda {
namespace {

constexpr int kWarps = 8;
constexpr int kThreads = kWarps * kWarp;
constexpr int kKeys = 1024;  // staged in shared memory at a time
constexpr int kKeysPerWarp = kKeys / kWarps;
constexpr int kWords = 4;  // keys in a 16-byte read
static_assert(kRankRows == kWarp, "a lane per row");

struct alignas(16) Words {
  std::int32_t keys[kWords];
};

struct LayerCounts {
  std::int32_t below;
  std::int32_t at_most;
  float peak;
};

__device__ LayerCounts count_layer(const float* importance, std::int32_t filters, float limit, bool zero_is_below) {
  LayerCounts counts{0, 0, 0};
  for (std::int32_t i = thread_index(); i < filters; i += kThreads) {
    const float value = importance[i];
    counts.below += value < limit || (zero_is_below && value == 0);
    counts.at_most += value <= limit;
    counts.peak = value > counts.peak ? value : counts.peak;
  }
  __shared__ float peaks[kWarps];
  for (int lane = kWarp / 2; lane > 0; lane /= 2) {
    const float other = __shfl_xor_sync(kAllLanes, counts.peak, lane);
    counts.peak = other > counts.peak ? other : counts.peak;
  }
  if (lane_index() == 0) peaks[warp_index()] = counts.peak;
  counts.below = block_sum<kThreads>(counts.below);
  counts.at_most = block_sum<kThreads>(counts.at_most);
  for (int warp = 0; warp < kWarps; ++warp) counts.peak = peaks[warp] > counts.peak ? peaks[warp] : counts.peak;
  return counts;
}

// Counts the keys that rank before that of `row`; words[0] is the layer's key number `first`.
__device__ std::int32_t count_before(const Words* words, std::int32_t first, std::int32_t row, std::int32_t own) {
  std::int32_t before = 0;
#pragma unroll 4
  for (int i = 0; i < kKeysPerWarp / kWords; ++i) {
    const Words four = words[i];
#pragma unroll
    for (int j = 0; j < kWords; ++j) {
      // A larger key, or an equal one that comes first.
      before += four.keys[j] > own - (first + i * kWords + j < row);
    }
  }
  return before;
}

// One block per tile (layer, first row). Whether the starvation rule raises a layer's second count is not known yet, so
// only the first, what global selection allows, decides whether there is anything to rank.
__global__ void __launch_bounds__(kThreads, 4)
    rank_kernel(Plan plan, const float* importance, MatchingRule rule, Selection selection, Scratch scratch) {
  __shared__ Words words[kKeys / kWords];
  __shared__ std::int32_t before[kRankRows];
  const std::int64_t layer = plan.tiles[2 * static_cast<std::int64_t>(blockIdx.x)];
  const std::int32_t first_row = plan.tiles[2 * static_cast<std::int64_t>(blockIdx.x) + 1];
  const std::int32_t filters = plan.segments[3 * layer];
  const std::int32_t start = plan.segments[3 * layer + 1];
  const std::int32_t group = plan.segments[3 * layer + 2];
  const float ratio = rule.ratios[group];
  const std::int32_t row = first_row + lane_index();
  importance += start;
  if (warp_index() == 0 && row < filters) selection.donor[start + row] = -1;

  const bool zero_is_below = rule.ratios[plan.num_groups + group] != 0;
  const LayerCounts counts = count_layer(importance, filters, selection.threshold[group], zero_is_below);
  std::int32_t allowed = ratio < 0 ? counts.at_most : counts.below;
  if (any_poisoned(selection.threshold, plan.num_groups)) allowed = 0;
  if (first_row == 0) {
    std::int32_t low = allowed;
    if (ratio >= 0 && allowed > 0) {
      const float bound = ratio * counts.peak;
      low = 0;
      for (std::int32_t i = thread_index(); i < filters; i += kThreads) low += importance[i] <= bound;
      low = block_sum<kThreads>(low);
    }
    if (thread_index() == 0) {
      scratch.counts[2 * layer] = allowed;
      scratch.counts[2 * layer + 1] = low;
    }
  }
  if (allowed == 0) return;

  const std::int32_t own = row < filters ? sort_key(importance[row]) : 0;
  if (warp_index() == 0) before[lane_index()] = 0;
  std::int32_t count = 0;
  for (std::int64_t chunk = 0; chunk < filters; chunk += kKeys) {
    __syncthreads();
    for (int i = thread_index(); i < kKeys; i += kThreads) {
      words[i / kWords].keys[i % kWords] = chunk + i < filters ? sort_key(importance[chunk + i]) : -1;
    }
    __syncthreads();
    const int part = warp_index() * kKeysPerWarp;
    if (chunk + part < filters) {
      count += count_before(words + part / kWords, static_cast<std::int32_t>(chunk + part), row, own);
    }
  }
  atomicAdd(&before[lane_index()], count);
  __syncthreads();
  // Importances that another stream changes now may count to more than there are.
  if (warp_index() == 0 && row < filters && before[lane_index()] < filters) {
    scratch.order[start + before[lane_index()]] = row;
  }
}

}  // namespace

cudaError_t rank(const Plan& plan, const float* importance, const MatchingRule& rule, const Selection& selection,
                 const Scratch& scratch, cudaStream_t stream) {
  return launch(rank_kernel, plan.num_tiles, kThreads, stream, plan, importance, rule, selection, scratch);
}

}  // namespace we::cuda
