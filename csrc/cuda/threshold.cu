#include "evolution.h"
#include "keys.cuh"
#include "threads.cuh"

namespace we::cuda {
namespace {

constexpr int kThreads = 1024;
constexpr int kBatch = 8;  // keys that a thread has under way at a time
constexpr int kDigitBits = 10;
constexpr int kTopBits = 11;  // of 31: a key has no sign
constexpr int kBins = 1 << kTopBits;
static_assert(kBins == 2 * kThreads);

__device__ std::uint32_t place_of(std::uint32_t total, double rate) {
  const double last = static_cast<double>(total) - 1;
  const double place = floor(static_cast<double>(total) * rate);
  if (!(place > 0)) return 0;  // a NaN, too
  return static_cast<std::uint32_t>(place < last ? place : last);
}

// Adds one to the bins of the lanes that count. Equal weights fill one bin: a warp then adds once.
__device__ void add_to_bins(std::uint32_t* bins, std::uint32_t bin, bool counts) {
  const unsigned lanes = __ballot_sync(kAllLanes, counts);
  if (lanes == 0) return;
  const int leader = __ffs(static_cast<int>(lanes)) - 1;
  const std::uint32_t common = __shfl_sync(kAllLanes, bin, leader);
  if (__all_sync(kAllLanes, !counts || bin == common)) {
    if (lane_index() == leader) atomicAdd(&bins[common], static_cast<std::uint32_t>(__popc(lanes)));
  } else if (counts) {
    atomicAdd(&bins[bin], 1u);
  }
}

// One block per group: radix select, three digits from the top; keys are read again for each.
__global__ void __launch_bounds__(kThreads)
    threshold_kernel(Plan plan, const float* importance, const double* rates, float* threshold) {
  __shared__ std::uint32_t bins[kBins];
  __shared__ std::uint32_t warp_counts[kThreads / kWarp];
  __shared__ std::uint32_t chosen_bin;
  __shared__ std::uint32_t chosen_place;
  const auto group = blockIdx.x;
  const std::int32_t* const members = plan.members + plan.group_starts[group];
  const auto total = static_cast<std::uint32_t>(plan.group_starts[group + 1] - plan.group_starts[group]);
  std::uint32_t place = place_of(total, rates[group]);
  std::uint32_t found = 0;  // the digits of the threshold so far
  bool poisoned = false;
  for (int shift = 2 * kDigitBits; shift >= 0 && total > 0; shift -= kDigitBits) {
    const bool top = shift == 2 * kDigitBits;
    for (int bin = thread_index(); bin < kBins; bin += kThreads) bins[bin] = 0;
    __syncthreads();
    for (std::uint32_t start = 0; start < total; start += kBatch * kThreads) {
      std::int32_t keys[kBatch];
#pragma unroll
      for (int i = 0; i < kBatch; ++i) {
        const std::uint32_t index = start + i * kThreads + threadIdx.x;
        keys[i] = index < total ? sort_key(importance[members[index]]) : 0;
      }
#pragma unroll
      for (int i = 0; i < kBatch; ++i) {
        if (start + i * kThreads >= total) break;
        const std::uint32_t index = start + i * kThreads + threadIdx.x;
        const auto key = static_cast<std::uint32_t>(keys[i]) & 0x7fffffffu;
        poisoned |= keys[i] < 0 || keys[i] > kLargestFinite;
        const bool counts = index < total && (top || key >> (shift + kDigitBits) == found);
        add_to_bins(bins, key >> shift & (top ? kBins - 1u : (1u << kDigitBits) - 1u), counts);
      }
    }
    __syncthreads();

    // Thread i has bins 2i and 2i + 1; one of all bins holds the place.
    const std::uint32_t first = bins[2 * thread_index()];
    const std::uint32_t both = first + bins[2 * thread_index() + 1];
    const std::uint32_t in_warp = warp_prefix_sum(both);
    if (lane_index() == kWarp - 1) warp_counts[warp_index()] = in_warp;
    __syncthreads();
    std::uint32_t before = in_warp - both;
    for (int warp = 0; warp < warp_index(); ++warp) before += warp_counts[warp];
    if (before <= place && place < before + both) {
      const bool second = place - before >= first;
      chosen_bin = 2 * threadIdx.x + second;
      chosen_place = place - before - (second ? first : 0);
    }
    __syncthreads();
    found = found << kDigitBits | chosen_bin;
    place = chosen_place;
  }
  poisoned = __syncthreads_or(poisoned);
  if (thread_index() == 0) threshold[group] = poisoned ? poison() : __uint_as_float(found);
}

}  // namespace

cudaError_t select_threshold(const Plan& plan, const float* importance, const double* rates, float* threshold,
                             cudaStream_t stream) {
  return launch(threshold_kernel, plan.num_groups, kThreads, stream, plan, importance, rates, threshold);
}

}  // namespace we::cuda
