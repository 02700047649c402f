#pragma once

#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <memory>
#include <numeric>
#include <random>
#include <type_traits>
#include <vector>

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
  jmp_buf point;  // where it goes on
  bool started = false;
  ucontext_t context;
  std::unique_ptr<char[]> stack{new char[kStack]};
  Wait wait = Wait::finished;
  std::uint64_t slot = 0;  // what the other threads see of this one in a shuffle or a vote
};

inline std::vector<Fiber> fibers;  // at least as many as the block has threads
inline jmp_buf scheduler;
inline unsigned current;
inline std::function<void()> body;

// The order in which blocks, warps and threads run. It must not change any result.
enum class Order { forward, backward, shuffled };
inline Order order = Order::forward;
inline std::mt19937 generator;

inline const std::vector<unsigned>& ordered(std::vector<unsigned>& indices, unsigned count) {
  if (indices.size() != count || order != Order::shuffled) {
    indices.resize(count);
    std::iota(indices.begin(), indices.end(), 0u);
  }
  if (order == Order::backward) std::reverse(indices.begin(), indices.end());
  if (order == Order::shuffled) std::shuffle(indices.begin(), indices.end(), generator);
  return indices;
}

// Contexts start fibers; from then on jumps, which make no system call, go from one to the other.
inline void wait(Wait what) {
  const unsigned self = current;
  fibers[self].wait = what;
  if (_setjmp(fibers[self].point) == 0) _longjmp(scheduler, 1);
}

inline void enter() {
  for (;;) {
    body();
    wait(Wait::finished);
  }
}

inline void go_on(unsigned thread) {
  current = thread;
  threadIdx.x = thread;
  Fiber& fiber = fibers[thread];
  if (_setjmp(scheduler) != 0) return;
  if (fiber.started) _longjmp(fiber.point, 1);
  fiber.started = true;
  getcontext(&fiber.context);
  fiber.context.uc_stack.ss_sp = fiber.stack.get();
  fiber.context.uc_stack.ss_size = kStack;
  fiber.context.uc_link = nullptr;
  makecontext(&fiber.context, enter, 0);
  setcontext(&fiber.context);
}

[[noreturn]] inline void fail(const char* message) {
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

// Runs a warp until all of its threads wait for other warps, or are done; false if they did so already.
inline bool run_warp(unsigned first) {
  static std::vector<unsigned> lanes;
  bool progress = false;
  for (bool again = true; again; progress |= again) {
    again = release(first, first + kWarp, Wait::warp);
    for (const unsigned lane : ordered(lanes, kWarp)) {
      if (fibers[first + lane].wait != Wait::nothing) continue;
      go_on(first + lane);
      again = true;
    }
  }
  return progress;
}

// Each warp runs ahead of the next as far as it can, so that a missing barrier shows.
inline void run_block() {
  static std::vector<unsigned> warps;
  const unsigned threads = blockDim.x;
  for (unsigned i = 0; i < threads; ++i) fibers[i].wait = Wait::nothing;
  for (bool progress = true; progress;) {
    progress = release(0, threads, Wait::block);
    for (const unsigned warp : ordered(warps, threads / kWarp)) progress |= run_warp(warp * kWarp);
  }
  const auto finished = [](const Fiber& fiber) { return fiber.wait == Wait::finished; };
  if (!std::all_of(fibers.begin(), fibers.begin() + threads, finished)) {
    fail("threads wait at a barrier that others of them do not reach");
  }
}

template <typename T>
std::uint64_t bits_of(T value) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8);
  return std::bit_cast<std::conditional_t<sizeof(T) == 4, std::uint32_t, std::uint64_t>>(value);
}

// The value that lane `source` of this warp shows; every lane has to get here.
template <typename T>
T exchange(unsigned mask, T value, unsigned source) {
  using Bits = std::conditional_t<sizeof(T) == 4, std::uint32_t, std::uint64_t>;
  if (mask != 0xffffffffu) fail("only operations of whole warps are supported");
  fibers[current].slot = bits_of(value);
  wait(Wait::warp);
  const T result = std::bit_cast<T>(static_cast<Bits>(fibers[current / kWarp * kWarp + source % kWarp].slot));
  wait(Wait::warp);
  return result;
}

}  // namespace emulation

template <typename... Parameters, typename... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               Arguments... arguments) {
  static std::vector<unsigned> blocks;
  const dim3 grid = config->gridDim;
  const dim3 block = config->blockDim;
  if (grid.x == 0 || block.x == 0 || block.x > 1024) return cudaErrorInvalidConfiguration;
  if (block.x % emulation::kWarp || grid.y * grid.z * block.y * block.z != 1) emulation::fail("launch not supported");
  if (emulation::status != cudaSuccess) return emulation::status;
  emulation::launches.push_back({grid.x, block.x, emulation::current_device, config->stream});
  gridDim = grid;
  blockDim = block;
  if (emulation::fibers.size() < block.x) emulation::fibers = std::vector<emulation::Fiber>(block.x);
  emulation::body = [=] { kernel(arguments...); };
  for (const unsigned i : emulation::ordered(blocks, grid.x)) {
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
  for (unsigned i = 0; i < blockDim.x; ++i) any |= static_cast<int>(emulation::fibers[i].slot);
  __syncthreads();
  return any;
}

template <typename T>
T __shfl_sync(unsigned mask, T value, int lane) {
  return emulation::exchange(mask, value, static_cast<unsigned>(lane));
}

template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int lane_mask) {
  return emulation::exchange(mask, value, emulation::current % emulation::kWarp ^ static_cast<unsigned>(lane_mask));
}

template <typename T>
T __shfl_up_sync(unsigned mask, T value, unsigned distance) {
  const unsigned lane = emulation::current % emulation::kWarp;
  return emulation::exchange(mask, value, lane >= distance ? lane - distance : lane);
}

inline unsigned __ballot_sync(unsigned mask, int predicate) {
  if (mask != 0xffffffffu) emulation::fail("only votes of whole warps are supported");
  emulation::fibers[emulation::current].slot = predicate != 0;
  emulation::wait(emulation::Wait::warp);
  unsigned lanes = 0;
  for (unsigned i = 0; i < emulation::kWarp; ++i) {
    const auto& fiber = emulation::fibers[emulation::current / emulation::kWarp * emulation::kWarp + i];
    lanes |= static_cast<unsigned>(fiber.slot) << i;
  }
  emulation::wait(emulation::Wait::warp);
  return lanes;
}

inline int __all_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) == 0xffffffffu; }

template <typename T>
T atomicAdd(T* address, T value) {
  const T old = *address;
  *address += value;
  return old;
}

inline int __popc(unsigned bits) { return std::popcount(bits); }
inline int __clz(int bits) { return std::countl_zero(static_cast<unsigned>(bits)); }
inline int __ffs(int bits) { return bits == 0 ? 0 : std::countr_zero(static_cast<unsigned>(bits)) + 1; }
inline float __uint_as_float(unsigned bits) { return std::bit_cast<float>(bits); }
inline unsigned __float_as_uint(float value) { return std::bit_cast<unsigned>(value); }
inline long long __double_as_longlong(double value) { return std::bit_cast<long long>(value); }
