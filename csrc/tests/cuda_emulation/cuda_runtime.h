#pragma once

#include "cuda_runtime_api.h"

#define __global__
#define __device__
#define __shared__ static  // one block runs at a time
#define __launch_bounds__(...)

inline dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace emulation {

constexpr unsigned kWarp = 32;
constexpr std::size_t kStack = 1 << 16;
enum class Wait { nothing, warp, block, finished };

struct Fiber {
  ucontext_t context;
  std::unique_ptr<char[]> stack;
  Wait wait = Wait::nothing;
  std::uint64_t slot = 0;  // what the other threads see of this one in a shuffle or a vote
};

inline std::vector<Fiber> fibers;
inline ucontext_t scheduler;
inline unsigned current;
inline std::function<void()> body;
inline bool reversed = false;  // run the threads last to first: another order must give the same result

inline void wait(Wait what) {
  const unsigned self = current;
  fibers[self].wait = what;
  swapcontext(&fibers[self].context, &scheduler);
}

inline void enter() {
  body();
  wait(Wait::finished);
}

inline void fail(const char* message) {
  std::fprintf(stderr, "cuda emulation: %s\n", message);
  std::abort();
}

// Lets the threads first .. last go on if all of them wait at the same kind of barrier.
inline bool release(unsigned first, unsigned last, Wait what) {
  for (unsigned i = first; i < last; ++i) {
    if (fibers[i].wait != what) return false;
  }
  for (unsigned i = first; i < last; ++i) fibers[i].wait = Wait::nothing;
  return true;
}

inline void prepare(Fiber& fiber) {
  getcontext(&fiber.context);
  fiber.context.uc_stack.ss_sp = fiber.stack.get();
  fiber.context.uc_stack.ss_size = kStack;
  fiber.context.uc_link = nullptr;
  fiber.wait = Wait::nothing;
  makecontext(&fiber.context, enter, 0);
}

// Runs a warp until all of its threads wait for other warps, or are done; false if they did so already.
inline bool run_warp(unsigned first) {
  bool progress = false;
  for (bool again = true; again; progress |= again) {
    again = release(first, first + kWarp, Wait::warp);
    for (unsigned i = 0; i < kWarp; ++i) {
      current = first + (reversed ? kWarp - 1 - i : i);
      if (fibers[current].wait != Wait::nothing) continue;
      threadIdx.x = current;
      swapcontext(&scheduler, &fibers[current].context);
      again = true;
    }
  }
  return progress;
}

// Each warp runs ahead of the next as far as it can, so that a missing barrier shows.
inline void run_block() {
  const unsigned threads = blockDim.x;
  for (auto& fiber : fibers) prepare(fiber);
  for (bool progress = true; progress;) {
    progress = release(0, threads, Wait::block);
    for (unsigned i = 0; i < threads; i += kWarp) progress |= run_warp(reversed ? threads - kWarp - i : i);
  }
  if (!release(0, threads, Wait::finished)) fail("threads wait at a barrier that others of them do not reach");
}

}  // namespace emulation

template <typename... Parameters, typename... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...), Arguments... arguments) {
  const dim3 grid = config->gridDim;
  const dim3 block = config->blockDim;
  if (grid.x == 0 || block.x == 0 || block.x > 1024) return cudaErrorInvalidConfiguration;
  if (block.x % emulation::kWarp || grid.y * grid.z * block.y * block.z != 1) emulation::fail("launch not supported");
  gridDim = grid;
  blockDim = block;
  emulation::fibers = std::vector<emulation::Fiber>(block.x);
  for (auto& fiber : emulation::fibers) fiber.stack = std::make_unique<char[]>(emulation::kStack);
  emulation::body = [=] { kernel(arguments...); };
  for (unsigned i = 0; i < grid.x; ++i) {
    blockIdx.x = i;
    emulation::run_block();
  }
  return cudaSuccess;
}

inline void __syncthreads() { emulation::wait(emulation::Wait::block); }

inline int __syncthreads_or(int predicate) {
  emulation::fibers[emulation::current].slot = predicate != 0;
  __syncthreads();
  int any = 0;
  for (const auto& fiber : emulation::fibers) any |= static_cast<int>(fiber.slot);
  __syncthreads();
  return any;
}

template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int lane_mask) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8);
  using Bits = std::conditional_t<sizeof(T) == 4, std::uint32_t, std::uint64_t>;
  if (mask != 0xffffffffu) emulation::fail("only shuffles of whole warps are supported");
  emulation::fibers[emulation::current].slot = std::bit_cast<Bits>(value);
  emulation::wait(emulation::Wait::warp);
  const unsigned other = emulation::current ^ static_cast<unsigned>(lane_mask);
  const T result = std::bit_cast<T>(static_cast<Bits>(emulation::fibers[other].slot));
  emulation::wait(emulation::Wait::warp);
  return result;
}

inline float __uint_as_float(unsigned bits) { return std::bit_cast<float>(bits); }
