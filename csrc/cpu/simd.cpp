#include "cpu/simd.h"

#include <atomic>
#include <cstdlib>
#include <cstring>

#ifdef WE_KERNELS_X86
#include <cpuid.h>
#endif

namespace we::cpu {
namespace {

#ifdef WE_KERNELS_X86
bool has_f16c() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  return __get_cpuid(1, &a, &b, &c, &d) != 0 && (c & bit_F16C) != 0;
}

bool has_avx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c(); }

bool has_avx512() {
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
}
#endif

constexpr const char* kNames[] = {"baseline", "avx2", "avx512"};
constexpr int kBest = 2;

const Kernels& best_up_to([[maybe_unused]] int level) {
#ifdef WE_KERNELS_X86
  if (level >= 2 && has_avx512()) return kAvx512;
  if (level >= 1 && has_avx2()) return kAvx2;
#endif
  return kBaseline;
}

int level_of(const char* name) {
  for (int level = 0; level <= kBest; ++level) {
    if (std::strcmp(name, kNames[level]) == 0) return level;
  }
  return -1;
}

std::atomic<const Kernels*>& current() {
  static std::atomic<const Kernels*> kernels = [] {
    const char* limit = std::getenv("WE_KERNELS_SIMD");
    const int level = limit == nullptr ? kBest : level_of(limit);
    return &best_up_to(level < 0 ? kBest : level);
  }();
  return kernels;
}

}  // namespace

const Kernels& kernels() { return *current().load(std::memory_order_relaxed); }

bool limit_simd(const char* name) {
  const int level = level_of(name);
  if (level < 0) return false;
  current().store(&best_up_to(level), std::memory_order_relaxed);
  return true;
}

}  // namespace we::cpu
