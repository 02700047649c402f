#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

#include "cpu/float_environment.h"
#include "cpu/operators.h"
#include "cpu/tasks.h"
#include "layout.h"
#ifdef WE_KERNELS_WITH_CUDA
#include "cuda/bindings.h"
#endif

namespace py = pybind11;

namespace {

using namespace we;
using namespace we::cpu;

constexpr std::int64_t kSegmentFields = 3;
static_assert(sizeof(Segment) == kSegmentFields * sizeof(std::int64_t));

// An array as Python hands it over: address and number of elements.
template <class T>
std::span<T> array(const char* name, std::uintptr_t address, std::int64_t size) {
  if (size < 0) throw std::invalid_argument(std::string(name) + " has a negative size");
  if (size > 0 && address == 0) throw std::invalid_argument(std::string(name) + " is null");
  if (address % alignof(T) != 0) throw std::invalid_argument(std::string(name) + " is misaligned");
  return {reinterpret_cast<T*>(address), static_cast<std::size_t>(size)};
}

template <class T>
void check_size(const char* name, std::span<T> array, std::int64_t expected) {
  if (static_cast<std::int64_t>(array.size()) != expected) {
    throw std::invalid_argument(std::string(name) + " has " + std::to_string(array.size()) + " elements, not " +
                                std::to_string(expected));
  }
}

std::vector<void*> addresses(const py::list& weights) {
  std::vector<void*> result;
  result.reserve(weights.size());
  for (const py::handle weight : weights) {
    result.push_back(PyLong_AsVoidPtr(weight.ptr()));
    if (PyErr_Occurred() != nullptr) throw py::error_already_set();
  }
  return result;
}

int check_threads(int threads) {
  if (threads < 1) throw std::invalid_argument("threads must be positive");
  return threads;
}

Rule rule_of(const std::string& name) {
  if (name == "paper") return Rule::paper;
  if (name == "released") return Rule::released;
  throw std::invalid_argument("rule must be \"paper\" or \"released\"");
}

MatchingRule matching_rule(std::uintptr_t rates, const std::vector<double>& local_ratios, std::uintptr_t starvation,
                           double limit) {
  const auto groups = static_cast<std::int64_t>(local_ratios.size());
  MatchingRule rule{array<const double>("rates", rates, groups), local_ratios, nullptr, limit};
  if (starvation != 0) rule.starvation = array<std::int32_t>("starvation", starvation, groups).data();
  return rule;
}


Selection selection_of(std::uintptr_t donor, std::uintptr_t threshold, std::uintptr_t inferior, std::int64_t filters,
                       std::int64_t groups, std::int64_t layers) {
  return {array<std::int32_t>("donor", donor, filters), array<float>("threshold", threshold, groups),
          array<std::int32_t>("inferior", inferior, layers)};
}

void importance_binding(const py::list& weights, std::uintptr_t table, std::int64_t num_layers,
                        std::uintptr_t importance, std::int64_t num_filters, int threads) {
  const std::vector<void*> pointers = addresses(weights);
  const py::gil_scoped_release unlocked;
  const FloatEnvironment environment;
  const Bank bank{array<const Layer>("table", table, num_layers), pointers};
  const auto result = array<float>("importance", importance, num_filters);
  check_size("importance", result, check_bank(bank, std::numeric_limits<std::int64_t>::max()));
  filter_importance(bank, result, check_threads(threads));
}

void match_binding(std::uintptr_t importance, std::int64_t num_filters, std::uintptr_t table, std::int64_t num_layers,
                   std::uintptr_t rates, const std::vector<double>& local_ratios, std::uintptr_t starvation,
                   double starvation_limit, std::uintptr_t donor, std::uintptr_t threshold, std::uintptr_t inferior,
                   int threads) {
  const py::gil_scoped_release unlocked;
  const FloatEnvironment environment;
  const auto groups = static_cast<std::int64_t>(local_ratios.size());
  const auto segments = array<const Segment>("table", table, num_layers);
  const auto values = array<const float>("importance", importance, num_filters);
  check_size("importance", values, check_segments(segments, groups));
  const MatchingRule rule = matching_rule(rates, local_ratios, starvation, starvation_limit);
  const Selection selection = selection_of(donor, threshold, inferior, num_filters, groups, num_layers);
  Pairs pairs;
  match_filters(values, segments, rule, selection, pairs, check_threads(threads));
}

void crossover_binding(const py::list& weights, std::uintptr_t table, std::int64_t num_layers, std::uintptr_t donor,
                       std::int64_t num_filters, const std::string& rule, int threads) {
  const std::vector<void*> pointers = addresses(weights);
  const py::gil_scoped_release unlocked;
  const FloatEnvironment environment;
  const Bank bank{array<const Layer>("table", table, num_layers), pointers};
  const auto donors = array<const std::int32_t>("donor", donor, num_filters);
  check_size("donor", donors, check_bank(bank, std::numeric_limits<std::int64_t>::max()));
  crossover(bank, donors, rule_of(rule), check_threads(threads));
}

void evolve_binding(const py::list& weights, std::uintptr_t table, std::int64_t num_layers, std::int64_t num_filters,
                    std::uintptr_t rates, const std::vector<double>& local_ratios, const std::string& rule,
                    std::uintptr_t starvation, double starvation_limit, std::uintptr_t donor, std::uintptr_t importance,
                    std::uintptr_t threshold, std::uintptr_t inferior, int threads) {
  const std::vector<void*> pointers = addresses(weights);
  const py::gil_scoped_release unlocked;
  const FloatEnvironment environment;
  const auto groups = static_cast<std::int64_t>(local_ratios.size());
  const Bank bank{array<const Layer>("table", table, num_layers), pointers};
  const auto values = array<float>("importance", importance, num_filters);
  check_size("importance", values, check_bank(bank, groups));
  const MatchingRule matching = matching_rule(rates, local_ratios, starvation, starvation_limit);
  const Selection selection = selection_of(donor, threshold, inferior, num_filters, groups, num_layers);
  evolve(bank, values, matching, rule_of(rule), selection, check_threads(threads));
}

std::string compiler() {
#if defined(__clang__)
  return "clang " __clang_version__;
#else
  return "gcc " __VERSION__;
#endif
}

}  // namespace

PYBIND11_MODULE(_native, module) {
  module.doc() = "The native backend: operators on raw addresses; we_kernels/backends/native.py calls them.";
  module.def("filter_importance", &importance_binding, "Importances float32 [F] of the weights at these addresses.");
  module.def("match_filters", &match_binding, "Donors int32 [F], thresholds float32 [G], inferior int32 [L].");
  module.def("crossover", &crossover_binding, "Overwrites filters that have a donor, int32 [F].");
  module.def("evolve", &evolve_binding, "The three in one.");
  module.def("compiler", &compiler, "Name and version of the C++ compiler.");
  module.def("simd", [] { return kernels().name; }, "The instruction set in use.");
  module.def(
      "limit_simd",
      [](const std::string& name) {
        if (!limit_simd(name.c_str())) throw std::invalid_argument("no instruction set is called '" + name + "'");
      },
      "Use this instruction set (baseline, avx2, avx512), or the best below it that this processor has.");
  module.def(
      "wake_threads_from", [](std::int64_t bytes) { return worth_waking.exchange(bytes); },
      "Work of fewer bytes stays in the caller's thread; returns the limit that was in force.");
#ifdef WE_KERNELS_WITH_CUDA
  bind_cuda(module);
#endif
}
