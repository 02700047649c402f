#include <pybind11/stl.h>

#include "bindings/arguments.h"
#include "bindings/bindings.h"
#include "cpu/float_environment.h"
#include "cpu/grafting.h"
#include "cpu/simd.h"

namespace py = pybind11;

namespace {

using namespace we;
using namespace we::cpu;

void count_bins_binding(const py::list& weights, std::uintptr_t table, std::int64_t num_layers, int bins,
                        bool per_filter, std::uintptr_t counts, std::int64_t rows, int threads) {
  const std::vector<void*> pointers = addresses(weights);
  const py::gil_scoped_release unlocked;
  const FloatEnvironment environment;
  const Bank bank{array<const Layer>("table", table, num_layers), pointers};
  const std::int64_t filters = check_bank(bank, kAnyGroup);
  if (bins < 1 || bins > kMaxBins) throw std::invalid_argument("bins is not in [1, 256]");
  if (rows != (per_filter ? filters : num_layers)) throw std::invalid_argument("counts has the wrong number of rows");
  count_bins(bank, bins, per_filter, array<std::int64_t>("counts", counts, rows * bins), check_threads(threads));
}

void blend_binding(const py::list& weights, const std::vector<std::uintptr_t>& tables, std::int64_t num_layers,
                   std::uintptr_t coefficients, int written, std::int64_t columns, bool per_filter, int threads) {
  const std::vector<void*> pointers = addresses(weights);
  const py::gil_scoped_release unlocked;
  const FloatEnvironment environment;
  const auto count = static_cast<std::int64_t>(tables.size());
  if (num_layers < 0 || static_cast<std::int64_t>(pointers.size()) != count * num_layers) {
    throw std::invalid_argument("weights are not one per network and layer");
  }
  std::vector<Bank> networks;
  std::int64_t filters = 0;
  for (std::int64_t k = 0; k < count; ++k) {
    const std::span<void* const> own(pointers.data() + k * num_layers, static_cast<std::size_t>(num_layers));
    networks.push_back({array<const Layer>("table", tables[k], num_layers), own});
    filters = check_bank(networks.back(), kAnyGroup);
  }
  check_networks(networks);
  if (written < 1 || written > count) throw std::invalid_argument("written is not in [1, networks]");
  if (columns != (per_filter ? filters : num_layers)) throw std::invalid_argument("coefficients has the wrong size");
  const auto values = array<const float>("coefficients", coefficients, written * columns);
  blend(networks, values, written, per_filter, check_threads(threads));
}

}  // namespace

void bind_grafting(py::module_& module) {
  module.def("count_bins", &count_bins_binding, "Counts the elements in each bin, int64 [rows, bins].");
  module.def("blend", &blend_binding, "Blends each of the first networks with the one before it, in place.");
}
