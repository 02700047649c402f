#include <pybind11/stl.h>

#include <cmath>
#include <cstdint>
#include <limits>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "bindings/arguments.h"
#include "bindings/bindings.h"
#include "bindings/cuda_device.h"
#include "cpu/bank.h"
#include "cuda/evolution.h"
#include "cuda/plan_tables.h"
#include "layout.h"

namespace py = pybind11;

namespace {

using namespace we;

std::int32_t limit_of(double limit) {
  if (!(limit > 0)) throw std::invalid_argument("starvation_limit must be positive");
  constexpr double never = std::numeric_limits<std::int32_t>::max();
  return static_cast<std::int32_t>(std::ceil(limit < never ? limit : never));
}

// The host's copy of a bank, checked, and its tables on the device.
struct CheckedBank {
  std::vector<void*> weights;
  std::span<const Layer> host;
  cuda::Bank device;

  CheckedBank(const py::list& list, std::uintptr_t table, std::int64_t num_layers, std::int64_t groups,
              const Memory& pointers, const Memory& layers, Arrays& arrays)
      : weights(addresses(list)), host(array<const Layer>("table", table, num_layers)) {
    device.num_filters = cpu::check_bank({host, weights}, groups);
    device.num_layers = num_layers;
    device.pointers = arrays.get<const std::int64_t>("pointers", pointers, num_layers);
    device.layers = arrays.get<const Layer>("layers", layers, num_layers);
  }

  // One address stands for all: asking the driver about each would take longer than the kernels.
  void check_place(const Place& place) const {
    for (std::size_t i = 0; i < weights.size(); ++i) {
      if (host[i].filters > 0) return place.check_memory("the first weight", weights[i]);
    }
  }
};

// Everything that matching reads and writes, besides the importances.
struct Matching {
  cuda::Plan plan;
  cuda::MatchingRule rule;
  cuda::Selection selection;
  cuda::Scratch scratch;

  Matching(std::span<const Segment> segments, std::int64_t groups, const Memory& plan_memory,
           const Memory& scratch_memory, const Memory& rates, const Memory& ratios,
           const std::optional<Memory>& starvation, double limit, const Memory& donor, const Memory& threshold,
           const Memory& inferior, Arrays& arrays)
      : plan(arrays.get<const std::int32_t>("plan", plan_memory, cuda::plan_size(segments, groups)),
             cpu::check_segments(segments, groups), static_cast<std::int64_t>(segments.size()), groups,
             cuda::num_rank_tiles(segments)),
        rule{arrays.get<const double>("rates", rates, groups), arrays.get<const float>("ratios", ratios, 2 * groups),
             starvation ? arrays.get<std::int32_t>("starvation", *starvation, groups) : nullptr, limit_of(limit)},
        selection{arrays.get<std::int32_t>("donor", donor, plan.num_filters),
                  arrays.get<float>("threshold", threshold, groups),
                  arrays.get<std::int32_t>("inferior", inferior, plan.num_layers)},
        scratch(arrays.get<std::int32_t>("scratch", scratch_memory, scratch_size()), plan.num_layers) {}

  std::int64_t scratch_size() const { return cuda::Scratch::size(plan.num_layers, plan.num_filters); }

  void select(const float* importance, cudaStream_t stream) const {
    check_cuda(cuda::select_threshold(plan, importance, rule.rates, selection.threshold, stream), "threshold kernel");
    check_cuda(cuda::rank(plan, importance, rule, selection, scratch, stream), "rank kernel");
    check_cuda(cuda::count_inferior(plan, rule, selection, scratch, stream), "starvation kernel");
  }

  void match(cudaStream_t stream) const { check_cuda(cuda::match(plan, selection, scratch, stream), "match kernel"); }

  void match_and_cross(const cuda::Bank& bank, Rule crossing, cudaStream_t stream) const {
    check_cuda(cuda::match_and_cross(bank, plan, selection, scratch, crossing, stream), "crossover kernel");
  }
};

std::int64_t groups_of(const Memory& ratios) { return ratios.second / static_cast<std::int64_t>(2 * sizeof(float)); }

void importance_binding(const py::list& weights, std::uintptr_t table, std::int64_t num_layers, const Memory& pointers,
                        const Memory& layers, const Memory& importance, int device, std::uintptr_t stream) {
  Arrays arrays;
  const CheckedBank bank(weights, table, num_layers, cpu::kAnyGroup, pointers, layers, arrays);
  auto* const result = arrays.get<float>("importance", importance, bank.device.num_filters);
  const py::gil_scoped_release unlocked;
  const Place place(device, stream);
  arrays.check_places(place);
  bank.check_place(place);
  check_cuda(cuda::filter_importance(bank.device, result, place.stream()), "importance kernel");
}

void match_binding(std::uintptr_t segments_table, std::int64_t num_layers, const Memory& importance, const Memory& plan,
                   const Memory& scratch, const Memory& rates, const Memory& ratios,
                   const std::optional<Memory>& starvation, double limit, const Memory& donor, const Memory& threshold,
                   const Memory& inferior, int device, std::uintptr_t stream) {
  Arrays arrays;
  const auto segments = array<const Segment>("table", segments_table, num_layers);
  const std::int64_t groups = groups_of(ratios);
  cpu::check_segments(segments, groups);
  const Matching matching(segments, groups, plan, scratch, rates, ratios, starvation, limit, donor, threshold, inferior,
                          arrays);
  const auto* const values = arrays.get<const float>("importance", importance, matching.plan.num_filters);
  const py::gil_scoped_release unlocked;
  const Place place(device, stream);
  arrays.check_places(place);
  matching.select(values, place.stream());
  matching.match(place.stream());
}

void crossover_binding(const py::list& weights, std::uintptr_t table, std::int64_t num_layers, const Memory& pointers,
                       const Memory& layers, const Memory& donor, const std::string& rule, int device,
                       std::uintptr_t stream) {
  Arrays arrays;
  const CheckedBank bank(weights, table, num_layers, cpu::kAnyGroup, pointers, layers, arrays);
  const auto* const donors = arrays.get<const std::int32_t>("donor", donor, bank.device.num_filters);
  const Rule crossing = rule_of(rule);
  const py::gil_scoped_release unlocked;
  const Place place(device, stream);
  arrays.check_places(place);
  bank.check_place(place);
  check_cuda(cuda::crossover(bank.device, donors, crossing, place.stream()), "crossover kernel");
}

void evolve_binding(const py::list& weights, std::uintptr_t table, std::int64_t num_layers, const Memory& pointers,
                    const Memory& layers, const Memory& plan, const Memory& scratch, const Memory& rates,
                    const Memory& ratios, const std::optional<Memory>& starvation, double limit,
                    const std::string& rule, const Memory& donor, const Memory& importance, const Memory& threshold,
                    const Memory& inferior, int device, std::uintptr_t stream) {
  Arrays arrays;
  const std::int64_t groups = groups_of(ratios);
  const CheckedBank bank(weights, table, num_layers, groups, pointers, layers, arrays);
  const Matching matching(cpu::segments_of(bank.host), groups, plan, scratch, rates, ratios, starvation, limit, donor,
                          threshold, inferior, arrays);
  auto* const values = arrays.get<float>("importance", importance, bank.device.num_filters);
  const Rule crossing = rule_of(rule);
  const py::gil_scoped_release unlocked;
  const Place place(device, stream);
  arrays.check_places(place);
  bank.check_place(place);
  check_cuda(cuda::filter_importance(bank.device, values, place.stream()), "importance kernel");
  matching.select(values, place.stream());
  matching.match_and_cross(bank.device, crossing, place.stream());
}

std::int64_t plan_size_binding(std::uintptr_t segments_table, std::int64_t num_layers, std::int64_t groups) {
  const auto segments = array<const Segment>("table", segments_table, num_layers);
  cpu::check_segments(segments, groups);
  return cuda::plan_size(segments, groups);
}

void make_plan_binding(std::uintptr_t segments_table, std::int64_t num_layers, std::int64_t groups,
                       const Memory& memory) {
  const auto segments = array<const Segment>("table", segments_table, num_layers);
  cpu::check_segments(segments, groups);
  const auto plan = array<std::int32_t>("plan", memory.first, memory.second / 4);
  check_size("plan", plan, cuda::plan_size(segments, groups));
  cuda::make_plan(segments, groups, plan);
}

}  // namespace

void bind_cuda(py::module_& module) {
  module.def(
      "cuda_architectures", [] { return WE_KERNELS_CUDA_ARCHITECTURES; },
      "Returns the architectures that the CUDA part was built for, as CMake names them.");
  module.def("cuda_status", &cuda_status, py::call_guard<py::gil_scoped_release>(),
             "Returns why no CUDA device can be used, or None. Creates no context.");
  // Tensors on the device are passed as (address, bytes). Kernels are enqueued on the stream; nothing waits.
  module.def("cuda_importance", &importance_binding, "Computes importances, float32 [F].");
  module.def("cuda_match", &match_binding,
             "Finds donors int32 [F], thresholds float32 [G] and numbers of inferior filters int32 [L].");
  module.def("cuda_crossover", &crossover_binding, "Overwrites the filters that have a donor, int32 [F].");
  module.def("cuda_evolve", &evolve_binding, "Computes importances, matches and crosses over, in five launches.");
  module.def("cuda_plan_size", &plan_size_binding,
             "Returns the number of elements of the int32 tables that matching needs.");
  module.def("cuda_make_plan", &make_plan_binding, "Fills in these tables, on the host.");
  module.def("cuda_scratch_size", &cuda::Scratch::size,
             "Returns the number of elements of the int32 scratch memory for L layers and F filters.");
}
