#pragma once

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "cpu/bank.h"
#include "cpu/pool.h"

namespace we::cpu {

// Items first, ..., first + count - 1 of a layer.
struct Slice {
  std::int32_t layer;
  std::int64_t first;
  std::int64_t count;
};

// Work of fewer bytes is done by the caller's thread alone. One thread reads 16 MiB in about a millisecond; waking a
// second one took 50 us to 500 us (a virtual machine with two processors), so networks up to MobileNetV2 are faster on
// one. Tests lower it.
inline std::atomic<std::int64_t> worth_waking{1 << 24};

// Work cut into slices of about equal numbers of bytes, so that few large layers do not starve a thread.
class Slices {
 public:
  // `total` is the number of bytes of everything that will be added.
  Slices(int threads, std::int64_t total) : Slices(threads, total, total) {}

  // `call` is the number of bytes of everything that follows at once: threads are woken for all of it or for none.
  Slices(int threads, std::int64_t total, std::int64_t call)
      : threads_(call < worth_waking.load(std::memory_order_relaxed) ? 1 : threads),
        target_(std::clamp(total / (kSlicesPerThread * threads), kSmallest, kLargest)) {}

  void add(std::int32_t layer, std::int64_t items, std::int64_t bytes_per_item) {
    const std::int64_t step = std::max<std::int64_t>(target_ / std::max<std::int64_t>(bytes_per_item, 1), 1);
    for (std::int64_t first = 0; first < items; first += step) {
      slices_.push_back({layer, first, std::min(step, items - first)});
    }
  }

  int threads() const { return threads_; }
  std::size_t size() const { return slices_.size(); }
  const Slice& operator[](std::size_t number) const { return slices_[number]; }

  template <class F>
  void run(F&& body) const {
    parallel_for(threads_, static_cast<std::uint32_t>(slices_.size()), [&](std::uint32_t i) { body(slices_[i]); });
  }

 private:
  static constexpr std::int64_t kSlicesPerThread = 8;
  static constexpr std::int64_t kSmallest = 1 << 14;
  static constexpr std::int64_t kLargest = 1 << 18;

  int threads_;
  std::int64_t target_;
  std::vector<Slice> slices_;
};

// Cuts all filters of a bank into slices.
Slices slice_filters(const Bank& bank, int threads);

}  // namespace we::cpu
