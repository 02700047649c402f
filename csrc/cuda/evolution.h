#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "cuda/plan.h"
#include "layout.h"
#include "rule.h"

// The launchers of Weight Evolution. All addresses are of memory of the current device; everything is enqueued on the
// stream, and nothing waits. Nothing is checked here: bindings/cuda_evolution.cpp has done so.
namespace we::cuda {

struct Bank {
  const std::int64_t* pointers;  // [num_layers]: addresses of the weights
  const Layer* layers;           // [num_layers]; first_filter ascends
  std::int64_t num_layers;
  std::int64_t num_filters;
};

struct MatchingRule {
  const double* rates;       // [G]
  const float* ratios;       // [2, G]: negative, no local selection; not 0, importance 0 is below any threshold
  std::int32_t* starvation;  // [G], or null: the starvation rule is off
  std::int32_t limit;        // at least 1
};

struct Selection {
  std::int32_t* donor;     // [F]
  float* threshold;        // [G]
  std::int32_t* inferior;  // [L]
};

// What one kernel leaves for the next.
struct Scratch {
  std::int32_t* counts;       // [L, 2]: filters that global selection allows, and locally inferior ones
  std::int32_t* order;        // [F]: each layer's rows, by descending importance; where global selection allows any
  std::int32_t* first_match;  // [L + 1]: matched filters in the slots before each slot, and in all

  static std::int64_t size(std::int64_t num_layers, std::int64_t num_filters) {
    return 3 * num_layers + 1 + num_filters;
  }
  Scratch(std::int32_t* memory, std::int64_t num_layers)
      : counts(memory), order(memory + 3 * num_layers + 1), first_match(memory + 2 * num_layers) {}
};

// Computes the importance (L1 norm / number of kernels), float32 [num_filters], of every filter, whatever its dtype.
// Sums are float64 for float64 weights, float32 for the others, in an order that depends on the layout only.
cudaError_t filter_importance(const Bank& bank, float* importance, cudaStream_t stream);

// Sets threshold[group] to the group's floor(filters * rate)-th smallest importance, or to NaN if one is negative or
// not finite.
cudaError_t select_threshold(const Plan& plan, const float* importance, const double* rates, float* threshold,
                             cudaStream_t stream);

// Fills scratch.counts and scratch.order, and sets every donor to -1.
cudaError_t rank(const Plan& plan, const float* importance, const MatchingRule& rule, const Selection& selection,
                 const Scratch& scratch, cudaStream_t stream);

// Fills inferior and scratch.first_match, updates the starvation counters, and makes every threshold NaN if one is.
cudaError_t count_inferior(const Plan& plan, const MatchingRule& rule, const Selection& selection,
                           const Scratch& scratch, cudaStream_t stream);

// Reads the donors off the ranking.
cudaError_t match(const Plan& plan, const Selection& selection, const Scratch& scratch, cudaStream_t stream);

// Overwrites the filters that have a donor; donors outside of the layer count as -1.
cudaError_t crossover(const Bank& bank, const std::int32_t* donor, Rule rule, cudaStream_t stream);

// Does what `match` and `crossover` do, in one launch.
cudaError_t match_and_cross(const Bank& bank, const Plan& plan, const Selection& selection, const Scratch& scratch,
                            Rule rule, cudaStream_t stream);

}  // namespace we::cuda
