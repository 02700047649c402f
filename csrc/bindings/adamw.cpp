#include "cpu/adamw.h"

#include <pybind11/stl.h>

#include "bindings/arguments.h"
#include "bindings/bindings.h"
#include "cpu/float_environment.h"

namespace py = pybind11;

namespace {

using namespace we;
using namespace we::cpu;

// Addresses of vectors of floats, of which some are null.
std::vector<const float*> vectors(const char* name, const py::list& list) {
  std::vector<const float*> result;
  for (void* const address : addresses(list)) {
    if (reinterpret_cast<std::uintptr_t>(address) % alignof(float) != 0) {
      throw std::invalid_argument(std::string(name) + " is misaligned");
    }
    result.push_back(static_cast<const float*>(address));
  }
  return result;
}

void adamw_binding(const std::vector<py::list>& weights, const std::vector<std::uintptr_t>& tables,
                   std::int64_t num_layers, const py::list& row_resets, const py::list& column_resets,
                   const std::vector<std::int64_t>& groups, const std::vector<double>& steps,
                   const std::vector<std::pair<double, double>>& corrections, double lr, double beta1, double beta2,
                   double eps, double weight_decay, bool decoupled, bool maximize,
                   const std::vector<std::uintptr_t>& roots, std::int64_t roots_mode, bool fused,
                   const std::vector<std::int64_t>& rounding_steps, std::int64_t grain, int threads) {
  if (weights.size() != kAdamwTensors || tables.size() != kAdamwTensors) {
    throw std::invalid_argument("weights and tables must be five");
  }
  if (roots.size() != 3) throw std::invalid_argument("roots must be three addresses");
  if (roots[2] == 0 && (roots[0] != 0 || roots[1] != 0)) throw std::invalid_argument("roots need a limit of threads");
  std::vector<void*> pointers[kAdamwTensors];
  for (std::size_t i = 0; i < kAdamwTensors; ++i) pointers[i] = addresses(weights[i]);
  const std::vector<const float*> rows = vectors("row_resets", row_resets);
  const std::vector<const float*> columns = vectors("column_resets", column_resets);
  const py::gil_scoped_release unlocked;
  const FloatEnvironment environment;
  AdamwBanks banks{};
  for (std::size_t i = 0; i < kAdamwTensors; ++i) {
    if (i == kAdamwTensors - 1 && tables[i] == 0) continue;
    banks.banks[i] = {array<const Layer>("table", tables[i], num_layers), pointers[i]};
    check_bank(banks.banks[i], kAnyGroup);
  }
  std::vector<Correction> plain;
  for (const auto& [step_size, root] : corrections) plain.push_back({step_size, root});
  banks.steps = steps;
  banks.plain = plain;
  banks.groups = groups;
  banks.row_resets = rows;
  banks.column_resets = columns;
  check_adamw(banks);
  AdamwRule rule{lr,
                 beta1,
                 beta2,
                 eps,
                 weight_decay,
                 decoupled,
                 maximize,
                 {},
                 roots_mode,
                 nullptr,
                 rounding_of(fused, rounding_steps, grain, threads)};
  for (std::size_t i = 0; i < 2; ++i) rule.roots[i] = reinterpret_cast<Roots>(roots[i]);
  rule.limit_threads = reinterpret_cast<int (*)(int)>(roots[2]);
  unit_adamw(banks, rule, threads);
}

}  // namespace

void bind_adamw(py::module_& module) {
  module.def("unit_adamw", &adamw_binding, "Does one step of AdamW in which rows and columns have their own ages.");
}
