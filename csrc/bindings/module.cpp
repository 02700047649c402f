#include <pybind11/pybind11.h>

#include <cstdint>
#include <stdexcept>
#include <string>

#include "bindings/bindings.h"
#include "cpu/simd.h"
#include "cpu/tasks.h"

namespace py = pybind11;

namespace {

using namespace we::cpu;

std::string compiler() {
#if defined(__clang__)
  return "clang " __clang_version__;
#else
  return "gcc " __VERSION__;
#endif
}

}  // namespace

PYBIND11_MODULE(_native, module) {
  module.doc() = "Operators on raw addresses; the native backend of we_kernels calls them.";
  bind_activity(module);
  bind_adamw(module);
  bind_asynchronous(module);
  bind_evolution(module);
  bind_grafting(module);
  bind_reactivation(module);
  module.def("compiler", &compiler, "Returns the name and version of the C++ compiler.");
  module.def("simd", [] { return kernels().name; }, "Returns the name of the instruction set in use.");
  module.def(
      "limit_simd",
      [](const std::string& name) {
        if (!limit_simd(name.c_str())) throw std::invalid_argument("no instruction set is called '" + name + "'");
      },
      "Lets this instruction set (baseline, avx2, avx512) be used, or the best below it that this processor has.");
  module.def(
      "wake_threads_from", [](std::int64_t bytes) { return worth_waking.exchange(bytes); },
      "Keeps work of fewer bytes in the caller's thread; returns the limit that was in force.");
#ifdef WE_KERNELS_WITH_CUDA
  bind_cuda(module);
#endif
}
