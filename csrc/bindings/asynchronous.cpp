#include <pybind11/stl.h>

#include "bindings/arguments.h"
#include "bindings/bindings.h"
#include "cpu/asynchronous.h"
#include "cpu/float_environment.h"

namespace py = pybind11;

namespace {

using namespace we;
using namespace we::cpu;

void select_binding(std::uintptr_t table, std::int64_t num_layers, std::uintptr_t rate, std::int64_t seed,
                    std::uintptr_t step, bool replacement, std::uintptr_t selected, std::int64_t num_filters) {
  const py::gil_scoped_release unlocked;
  const FloatEnvironment environment;
  const auto segments = array<const Segment>("table", table, num_layers);
  const auto result = array<std::uint8_t>("selected", selected, num_filters);
  check_size("selected", result, check_segments(segments, kAnyGroup));
  const Draw draw{array<const double>("rate", rate, 1)[0], static_cast<std::uint64_t>(seed),
                  static_cast<std::uint64_t>(array<const std::int64_t>("step", step, 1)[0]), replacement};
  select_filters(segments, draw, result);
}

void copy_binding(const py::list& weights, std::uintptr_t table, std::int64_t num_layers, std::uintptr_t selected,
                  std::int64_t num_filters, std::uintptr_t buffer, std::int64_t bytes, bool restore, int threads) {
  const std::vector<void*> pointers = addresses(weights);
  const py::gil_scoped_release unlocked;
  const Bank bank{array<const Layer>("table", table, num_layers), pointers};
  const auto chosen = array<const std::uint8_t>("selected", selected, num_filters);
  check_size("selected", chosen, check_bank(bank, kAnyGroup));
  const auto places = array<std::uint8_t>("buffer", buffer, bytes);
  check_size("buffer", places, snapshot_bytes(bank));
  if (buffer % alignof(double) != 0) throw std::invalid_argument("buffer is misaligned");
  copy_unselected(bank, chosen, places, restore, check_threads(threads));
}

void sgd_binding(const std::vector<py::list>& weights, const std::vector<std::uintptr_t>& tables,
                 std::int64_t num_layers, const std::string& masked, const std::string& first, std::uintptr_t selected,
                 std::int64_t num_selected, std::uintptr_t lr, double momentum, double dampening, double weight_decay,
                 bool nesterov, bool maximize, bool fused, const std::vector<std::int64_t>& steps, std::int64_t grain,
                 int threads) {
  const bool has_momentum = momentum != 0;
  if (weights.size() != 3 || tables.size() != 3) throw std::invalid_argument("weights and tables must be three");
  std::vector<void*> pointers[3];
  for (std::size_t i = 0; i < 3; ++i) pointers[i] = addresses(weights[i]);
  const py::gil_scoped_release unlocked;
  const FloatEnvironment environment;
  Bank banks[3];
  for (std::size_t i = 0; i < 3; ++i) {
    if (i == 2 && !has_momentum) continue;
    banks[i] = {array<const Layer>("table", tables[i], num_layers), pointers[i]};
    check_bank(banks[i], kAnyGroup);
  }
  const auto bytes = [](const std::string& flags) {
    return std::span(reinterpret_cast<const std::uint8_t*>(flags.data()), flags.size());
  };
  const auto chosen = array<const std::uint8_t>("selected", selected, num_selected);
  const SgdBanks all{banks[0], banks[1], banks[2], bytes(masked), bytes(first), chosen};
  check_sgd(all);
  const SgdRule rule{array<const double>("lr", lr, 1)[0],      momentum, dampening, weight_decay, nesterov, maximize,
                     rounding_of(fused, steps, grain, threads)};
  asynchronous_sgd(all, rule, threads);
}

}  // namespace

void bind_asynchronous(py::module_& module) {
  module.def("select_filters", &select_binding, "Selects a random subset of every layer, bool [F].");
  module.def("copy_unselected", &copy_binding, "Copies the filters that are not selected to a buffer, or back.");
  module.def("asynchronous_sgd", &sgd_binding, "Does one step of SGD that moves selected filters only.");
}
