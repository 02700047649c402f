#include <pybind11/stl.h>

#include "bindings/arguments.h"
#include "bindings/bindings.h"
#include "cpu/evolution.h"
#include "cpu/float_environment.h"

namespace py = pybind11;

namespace {

using namespace we;
using namespace we::cpu;

MatchingRule matching_rule(std::uintptr_t rates, const std::vector<double>& local_ratios,
                           const std::vector<std::uint8_t>& zero_is_inferior, std::uintptr_t starvation, double limit) {
  const auto groups = static_cast<std::int64_t>(local_ratios.size());
  if (!zero_is_inferior.empty()) check_size("zero_is_inferior", std::span(zero_is_inferior), groups);
  MatchingRule rule{array<const double>("rates", rates, groups), local_ratios, zero_is_inferior, nullptr, limit};
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
  check_size("importance", result, check_bank(bank, kAnyGroup));
  filter_importance(bank, result, check_threads(threads));
}

void match_binding(std::uintptr_t importance, std::int64_t num_filters, std::uintptr_t table, std::int64_t num_layers,
                   std::uintptr_t rates, const std::vector<double>& local_ratios,
                   const std::vector<std::uint8_t>& zero_is_inferior, std::uintptr_t starvation,
                   double starvation_limit, std::uintptr_t donor, std::uintptr_t threshold, std::uintptr_t inferior,
                   int threads) {
  const py::gil_scoped_release unlocked;
  const FloatEnvironment environment;
  const auto groups = static_cast<std::int64_t>(local_ratios.size());
  const auto segments = array<const Segment>("table", table, num_layers);
  const auto values = array<const float>("importance", importance, num_filters);
  check_size("importance", values, check_segments(segments, groups));
  const MatchingRule rule = matching_rule(rates, local_ratios, zero_is_inferior, starvation, starvation_limit);
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
  check_size("donor", donors, check_bank(bank, kAnyGroup));
  crossover(bank, donors, rule_of(rule), check_threads(threads));
}

void evolve_binding(const py::list& weights, std::uintptr_t table, std::int64_t num_layers, std::int64_t num_filters,
                    std::uintptr_t rates, const std::vector<double>& local_ratios,
                    const std::vector<std::uint8_t>& zero_is_inferior, const std::string& rule,
                    std::uintptr_t starvation, double starvation_limit, std::uintptr_t donor, std::uintptr_t importance,
                    std::uintptr_t threshold, std::uintptr_t inferior, int threads) {
  const std::vector<void*> pointers = addresses(weights);
  const py::gil_scoped_release unlocked;
  const FloatEnvironment environment;
  const auto groups = static_cast<std::int64_t>(local_ratios.size());
  const Bank bank{array<const Layer>("table", table, num_layers), pointers};
  const auto values = array<float>("importance", importance, num_filters);
  check_size("importance", values, check_bank(bank, groups));
  const MatchingRule matching = matching_rule(rates, local_ratios, zero_is_inferior, starvation, starvation_limit);
  const Selection selection = selection_of(donor, threshold, inferior, num_filters, groups, num_layers);
  evolve(bank, values, matching, rule_of(rule), selection, check_threads(threads));
}

}  // namespace

void bind_evolution(py::module_& module) {
  module.def("filter_importance", &importance_binding,
             "Computes importances, float32 [F], of the weights at these addresses.");
  module.def("match_filters", &match_binding,
             "Finds donors int32 [F], thresholds float32 [G] and numbers of inferior filters int32 [L].");
  module.def("crossover", &crossover_binding, "Overwrites the filters that have a donor, int32 [F].");
  module.def("evolve", &evolve_binding, "Computes importances, matches and crosses over.");
}
