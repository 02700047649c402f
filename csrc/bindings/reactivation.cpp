#include "cpu/reactivation.h"

#include <pybind11/stl.h>

#include "bindings/arguments.h"
#include "bindings/bindings.h"
#include "cpu/float_environment.h"

namespace py = pybind11;

namespace {

using namespace we;
using namespace we::cpu;

void dormant_binding(std::uintptr_t activity, std::int64_t num_units, const std::vector<std::int64_t>& sizes,
                     std::uintptr_t parents, std::int64_t num_parents, double threshold, std::uintptr_t dormant) {
  const py::gil_scoped_release unlocked;
  const FloatEnvironment environment;
  const auto values = array<const float>("activity", activity, num_units);
  const auto result = array<std::uint8_t>("dormant", dormant, num_units);
  const auto others = array<const std::int32_t>("parents", parents, num_parents);
  if (!others.empty()) check_size("parents", others, num_units);
  std::int64_t left = num_units;
  for (const std::int64_t size : sizes) {
    if (size < 1 || size > left) throw std::invalid_argument("sizes must be positive and sum to the number of units");
    left -= size;
  }
  if (left != 0) throw std::invalid_argument("sizes must be positive and sum to the number of units");
  dormant_units(values, sizes, others, threshold, result);
}

void reactivate_binding(const py::list& addresses_of_tensors, std::uintptr_t table, std::uintptr_t units,
                        std::int64_t num_entries, const std::vector<std::int64_t>& rows,
                        const std::vector<std::int64_t>& columns, const std::vector<std::int64_t>& groups,
                        const std::vector<std::int64_t>& row_values, const std::vector<std::int64_t>& column_values,
                        std::uintptr_t revived, std::int64_t num_units, std::uintptr_t given, std::int64_t num_given,
                        bool scaled, std::uintptr_t targets, std::int64_t seed, std::uintptr_t step, int threads) {
  const std::vector<void*> pointers = addresses(addresses_of_tensors);
  const py::gil_scoped_release unlocked;
  const FloatEnvironment environment;
  const UnitTensors tensors{{array<const Layer>("table", table, static_cast<std::int64_t>(pointers.size())), pointers},
                            array<const std::int32_t>("units", units, num_entries),
                            rows,
                            columns,
                            groups,
                            row_values,
                            column_values};
  check_bank(tensors.bank, kAnyGroup);
  const auto numbers = array<const float>("given", given, num_given);
  const DrawRule rule{scaled, array<const float>("targets", targets, targets == 0 ? 0 : num_entries),
                      static_cast<std::uint64_t>(seed),
                      static_cast<std::uint64_t>(array<const std::int64_t>("step", step, 1)[0])};
  check_unit_tensors(tensors, numbers);
  reactivate(tensors, array<const std::uint8_t>("revived", revived, num_units), numbers, rule, check_threads(threads));
}

}  // namespace

void bind_reactivation(py::module_& module) {
  module.def("dormant_units", &dormant_binding, "Finds the units that are dormant, bool [U].");
  module.def("reactivate", &reactivate_binding, "Writes what the rows and columns of revived units become.");
}
