#include "cpu/activity.h"

#include <algorithm>
#include <cstdint>
#include <limits>
#include <stdexcept>
#include <string>
#include <vector>

#include "cpu/bank.h"
#include "cpu/pool.h"
#include "cpu/tasks.h"
#include "places.h"

namespace we::cpu {
namespace {

constexpr std::int64_t kMaxBytes = std::numeric_limits<std::int64_t>::max() / 2;
constexpr std::int64_t kPartBytes = 1 << 18;
constexpr std::int64_t kMostChunks = 256;  // of each column: each has a sum of its own
constexpr std::int64_t kRunLength = 1 << 15;

[[noreturn]] void refuse(const std::string& what) { throw std::invalid_argument("activation: " + what); }

std::int64_t parts_of(std::int64_t count, std::int64_t size) { return (count + size - 1) / size; }

// How an activation is cut into parts: chunks of items times blocks of columns. It depends on nothing but the
// activation, so that the order of summation does not either.
struct Cut {
  std::int64_t run_length;
  std::int64_t items;
  std::int64_t chunk;
  std::int64_t block;

  explicit Cut(const Activation& activation) {
    const Layer& positions = activation.positions;
    const std::int64_t step = positions.stride2;
    const bool rows = activation.columns > 1 && (step == 0 || step > activation.column_stride);
    const std::int64_t bytes = kItemSize[positions.dtype];
    items = elements_of(positions);
    run_length = 0;
    std::int64_t item_bytes = bytes;
    if (!rows) {
      run_length = std::min(positions.kernel2, kRunLength);
      items = items / positions.kernel2 * parts_of(positions.kernel2, run_length);
      item_bytes = run_length * bytes;
    }
    block = std::clamp<std::int64_t>(rows ? kPartColumns : kPartBytes / item_bytes, 1,
                                     std::min(activation.columns, kPartColumns));
    const std::int64_t wanted = std::max<std::int64_t>(kPartBytes / (block * item_bytes), 1);
    chunk = std::max(wanted, parts_of(items, kMostChunks));
  }
};

}  // namespace

void check_activation(const Activation& activation, const void* values) {
  const Layer& l = activation.positions;
  if (l.dtype < 0 || l.dtype >= kNumDTypes) refuse("dtype is not in [0, 4)");
  if (activation.run < 1 || activation.channels < 1) refuse("run or channels is not positive");
  const std::int64_t sizes[] = {activation.columns, l.channels, l.kernel0, l.kernel1, l.kernel2};
  const std::int64_t strides[] = {activation.column_stride, l.channel_stride, l.stride0, l.stride1, l.stride2};
  const std::int64_t limit = kMaxBytes / kItemSize[l.dtype];
  std::int64_t last = 0, elements = 1;
  for (int d = 0; d < 5; ++d) {
    if (sizes[d] < 1) refuse("a size is not positive");
    if (strides[d] < 0) refuse("a stride is negative");
    if (elements > limit / sizes[d]) refuse("too many elements");
    elements *= sizes[d];
    if (sizes[d] > 1 && strides[d] > (limit - last) / (sizes[d] - 1)) refuse("a stride is too large");
    last += (sizes[d] - 1) * strides[d];
  }
  if (activation.channels > activation.columns || activation.run > activation.columns / activation.channels ||
      activation.columns % (activation.channels * activation.run) != 0) {
    refuse("columns are not a multiple of channels and run");
  }
  const auto address = reinterpret_cast<std::uintptr_t>(values);
  if (address == 0) refuse("it has no memory");
  if (address % static_cast<std::uintptr_t>(kItemSize[l.dtype]) != 0) refuse("it is misaligned");
  const auto bytes = static_cast<std::uintptr_t>((last + 1) * kItemSize[l.dtype]);
  if (bytes > std::numeric_limits<std::uintptr_t>::max() - address) refuse("it ends past all memory");
}

template <class S>
void add_activity(const Activation& activation, const void* values, std::span<S> sums, bool overwrite, int threads) {
  const Cut cut(activation);
  const std::int64_t blocks = parts_of(activation.columns, cut.block);
  const std::int64_t chunks = parts_of(cut.items, cut.chunk);
  const std::int64_t bytes =
      activation.columns * elements_of(activation.positions) * kItemSize[activation.positions.dtype];
  std::vector<double> found(static_cast<std::size_t>(chunks * activation.columns));
  const Kernels& simd = kernels();
  parallel_for(bytes < worth_waking.load(std::memory_order_relaxed) ? 1 : threads,
               static_cast<std::uint32_t>(blocks * chunks), [&](std::uint32_t number) {
                 const std::int64_t chunk = number / blocks, column = number % blocks * cut.block;
                 const std::int64_t first = chunk * cut.chunk;
                 simd.magnitudes(activation, values,
                                 {column, std::min(cut.block, activation.columns - column), first,
                                  std::min(cut.chunk, cut.items - first), cut.run_length},
                                 found.data() + chunk * activation.columns + column);
               });
  std::vector<double> totals(static_cast<std::size_t>(activation.channels));
  const double* next = found.data();
  while (next != found.data() + found.size()) {
    for (double& total : totals) {
      for (std::int64_t r = 0; r < activation.run; ++r) total += *next++;
    }
  }
  for (std::size_t c = 0; c < totals.size(); ++c) {
    sums[c] = static_cast<S>(overwrite ? totals[c] : static_cast<double>(sums[c]) + totals[c]);
  }
}

template void add_activity(const Activation&, const void*, std::span<float>, bool, int);
template void add_activity(const Activation&, const void*, std::span<double>, bool, int);

}  // namespace we::cpu
