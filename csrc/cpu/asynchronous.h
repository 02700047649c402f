#pragma once

#include <cstdint>
#include <span>

#include "cpu/bank.h"
#include "cpu/simd.h"

// The operators of asynchronous updates, for checked arguments; what cpu/evolution.h says of threads holds here, too.
namespace we::cpu {

struct Draw {
  double rate;  // clamped to [0, 1], NaN counts as 0
  std::uint64_t seed;
  std::uint64_t step;
  bool replacement;
};

// Fills in one byte, 0 or 1, per filter; the reference backend defines which.
void select_filters(std::span<const Segment> segments, const Draw& draw, std::span<std::uint8_t> selected);

// The bytes of a buffer in which every filter of the bank has its place.
std::int64_t snapshot_bytes(const Bank& bank);

// Copies the filters with a 0 in `selected` to the buffer, or back from it.
void copy_unselected(const Bank& bank, std::span<const std::uint8_t> selected, std::span<std::uint8_t> buffer,
                     bool restore, int threads);

// Parameters, gradients and, with momentum, its buffers: layer by layer of equal sizes and dtypes.
struct SgdBanks {
  Bank params;
  Bank grads;
  Bank buffers;
  std::span<const std::uint8_t> masked;    // [L]
  std::span<const std::uint8_t> first;     // [L], the momentum buffer holds nothing yet
  std::span<const std::uint8_t> selected;  // of the filters of masked layers
};

// Throws std::invalid_argument unless the banks fit together; they have been checked one by one.
void check_sgd(const SgdBanks& banks);

void asynchronous_sgd(const SgdBanks& banks, const SgdRule& rule, int threads);

}  // namespace we::cpu
