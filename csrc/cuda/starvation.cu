#include "evolution.h"
#include "keys.cuh"
#include "threads.cuh"

namespace we::cuda {
namespace {

constexpr int kWarps = 8;
constexpr int kThreads = kWarps * kWarp;

// The starvation counter of a group is sequential, but only in its definition: between two layers that reset it, it
// counts the starving layers and fires at every multiple of the limit. So this counts on, and never goes back to 0 when
// it fires. Each bit of the masks is a layer.
struct Counter {
  std::int64_t count;

  __device__ void pass(unsigned starving, unsigned resetting) {
    if (resetting != 0) {
      count = 0;
      starving &= ~(0xffffffffu >> __clz(static_cast<int>(resetting)));  // those after the last reset
    }
    count += __popc(starving);
  }
};

// One block. Layers are visited group by group, a thread each, kThreads at a time.
__global__ void __launch_bounds__(kThreads)
    starvation_kernel(Plan plan, MatchingRule rule, Selection selection, Scratch scratch) {
  __shared__ unsigned starving_lanes[kWarps];
  __shared__ unsigned resetting_lanes[kWarps];
  __shared__ std::int32_t warp_matches[kWarps];
  const unsigned up_to_this_lane = kAllLanes >> (kWarp - 1 - lane_index());
  const std::int64_t limit = rule.limit;
  std::int32_t matched = 0;
  if (thread_index() == 0) scratch.first_match[0] = 0;
  for (std::int64_t group = 0; group < plan.num_groups; ++group) {
    const float ratio = rule.ratios[group];
    std::int64_t counter = rule.starvation == nullptr ? 0 : rule.starvation[group];
    // One that is past the limit already fires at the next starving layer.
    Counter before{counter < limit ? counter : limit - 1};
    bool any_event = false;
    const std::int32_t end = plan.slot_starts[group + 1];
    for (std::int32_t first = plan.slot_starts[group]; first < end; first += kThreads) {
      const std::int32_t slot = first + thread_index();
      const std::int32_t filters = slot < end ? plan.slots[2 * slot + 1] : 0;
      const std::int32_t layer = slot < end ? plan.slots[2 * slot] : 0;
      std::int32_t allowed = 0;
      std::int32_t low = 0;
      if (filters > 0) {
        allowed = scratch.counts[2 * layer];
        low = scratch.counts[2 * layer + 1];
      }
      const bool ruled = rule.starvation != nullptr && ratio >= 0 && allowed > 0;
      const unsigned starving = __ballot_sync(kAllLanes, ruled && low == 0);
      const unsigned resetting = __ballot_sync(kAllLanes, ruled && low > 0);
      if (lane_index() == 0) {
        starving_lanes[warp_index()] = starving;
        resetting_lanes[warp_index()] = resetting;
      }
      __syncthreads();
      Counter here = before;
      for (int warp = 0; warp < kWarps; ++warp) {
        if (warp == warp_index()) here = before;
        before.pass(starving_lanes[warp], resetting_lanes[warp]);
        any_event |= (starving_lanes[warp] | resetting_lanes[warp]) != 0;
      }
      here.pass(starving & up_to_this_lane, resetting & up_to_this_lane);
      if (ruled && low == 0 && here.count >= limit && here.count % limit == 0) low = 1;

      const std::int32_t n_low = ratio < 0 || low < allowed ? low : allowed;
      const std::int32_t matches = n_low < filters - n_low ? n_low : filters - n_low;
      const std::int32_t in_warp = warp_prefix_sum(matches);
      if (lane_index() == kWarp - 1) warp_matches[warp_index()] = in_warp;
      __syncthreads();
      std::int32_t matches_here = matched + in_warp;
      for (int warp = 0; warp < kWarps; ++warp) {
        if (warp < warp_index()) matches_here += warp_matches[warp];
        matched += warp_matches[warp];
      }
      if (slot < end) {
        selection.inferior[layer] = n_low;
        scratch.first_match[slot + 1] = matches_here;
      }
    }
    if (any_event && thread_index() == 0) {
      rule.starvation[group] = static_cast<std::int32_t>(before.count < limit ? before.count : before.count % limit);
    }
  }

  if (any_poisoned(selection.threshold, plan.num_groups)) {
    for (std::int64_t group = thread_index(); group < plan.num_groups; group += kThreads) {
      selection.threshold[group] = poison();
    }
  }
}

}  // namespace

cudaError_t count_inferior(const Plan& plan, const MatchingRule& rule, const Selection& selection,
                           const Scratch& scratch, cudaStream_t stream) {
  return launch(starvation_kernel, 1, kThreads, stream, plan, rule, selection, scratch);
}

}  // namespace we::cuda
