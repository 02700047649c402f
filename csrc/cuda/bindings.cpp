#include "bindings/bindings.h"

#include <cuda_runtime_api.h>
#include <pybind11/stl.h>

#include <cmath>
#include <cstdint>
#include <limits>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "bindings/arguments.h"
#include "cpu/operators.h"
#include "cuda/operators.h"
#include "cuda/plan_tables.h"

namespace py = pybind11;

namespace {

using namespace we;

std::string version(int number) { return std::to_string(number / 1000) + "." + std::to_string(number % 1000 / 10); }

std::string describe(cudaError_t error) {
  const std::string text = cudaGetErrorString(error);
  switch (error) {
    case cudaErrorInsufficientDriver: {
      int driver = 0;
      cudaDriverGetVersion(&driver);
      if (driver == 0) return "no NVIDIA driver is installed";
      return "the NVIDIA driver supports CUDA " + version(driver) + "; the extension was built with CUDA " +
             version(CUDART_VERSION) + ", install a newer driver";
    }
    case cudaErrorNoKernelImageForDevice:
    case cudaErrorUnsupportedPtxVersion:
      return text + "; the extension was built for " WE_KERNELS_CUDA_ARCHITECTURES
                    ", set CUDAARCHS to this device's architecture and install again";
    default:
      return text;
  }
}

void check(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  cudaGetLastError();  // or the next call reports it again
  throw std::runtime_error(std::string(what) + ": " + describe(error));
}

std::optional<std::string> cuda_status() {
  int count = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  if (error == cudaSuccess && count > 0) return std::nullopt;
  cudaGetLastError();
  return describe(error == cudaSuccess ? cudaErrorNoDevice : error);
}

// A tensor as Python hands it over: address and number of bytes.
using Memory = std::pair<std::uintptr_t, std::int64_t>;

// Where the kernels of a call run. Its device becomes current, and stays so: the caller has made it torch's current
// one, and this copy of the CUDA runtime may remember an older one: to restore that would leave torch in the wrong
// context.
class Place {
 public:
  Place(int device, std::uintptr_t stream) : device_(device), stream_(reinterpret_cast<cudaStream_t>(stream)) {
    check(cudaSetDevice(device), "the CUDA device of the weights");
    cudaStreamCaptureStatus capture = cudaStreamCaptureStatusNone;
    check(cudaStreamIsCapturing(stream_, &capture), "the CUDA stream");
    capturing_ = capture != cudaStreamCaptureStatusNone;
  }

  cudaStream_t stream() const { return stream_; }

  // Throws unless the memory is on this device. Not asked of the driver while it captures a graph.
  void check_memory(const char* name, const void* address) const {
    if (address == nullptr || capturing_) return;
    cudaPointerAttributes attributes{};
    check(cudaPointerGetAttributes(&attributes, address), name);
    if (attributes.type != cudaMemoryTypeDevice && attributes.type != cudaMemoryTypeManaged) {
      throw std::invalid_argument(std::string(name) + " is not in the memory of a CUDA device");
    }
    if (attributes.type == cudaMemoryTypeDevice && attributes.device != device_) {
      throw std::invalid_argument(std::string(name) + " is on device " + std::to_string(attributes.device) + ", not " +
                                  std::to_string(device_));
    }
  }

 private:
  int device_;
  bool capturing_ = false;
  cudaStream_t stream_;
};

// Device arrays of a call: their sizes are checked at once, where they are when the place is known.
class Arrays {
 public:
  template <class T>
  T* get(const char* name, const Memory& memory, std::int64_t expected) {
    const auto size = static_cast<std::int64_t>(sizeof(T));
    if (memory.second % size != 0) throw std::invalid_argument(std::string(name) + " has elements of another size");
    const std::span<T> elements = array<T>(name, memory.first, memory.second / size);
    check_size(name, elements, expected);
    if (expected == 0) return nullptr;
    seen_.emplace_back(name, elements.data());
    return elements.data();
  }

  void check_places(const Place& place) const {
    for (const auto& [name, address] : seen_) place.check_memory(name, address);
  }

 private:
  std::vector<std::pair<const char*, const void*>> seen_;
};

cuda::Rule rule_of(const std::string& name) {
  if (name == "paper") return cuda::Rule::paper;
  if (name == "released") return cuda::Rule::released;
  throw std::invalid_argument("rule must be \"paper\" or \"released\"");
}

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

  std::vector<cpu::Segment> segments() const {
    std::vector<cpu::Segment> result;
    result.reserve(host.size());
    for (const Layer& layer : host) result.push_back({layer.filters, layer.first_filter, layer.group});
    return result;
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

  Matching(std::span<const cpu::Segment> segments, std::int64_t groups, const Memory& plan_memory,
           const Memory& scratch_memory, const Memory& rates, const Memory& ratios,
           const std::optional<Memory>& starvation, double limit, const Memory& donor,
           const Memory& threshold, const Memory& inferior, Arrays& arrays)
      : plan(arrays.get<const std::int32_t>("plan", plan_memory, cuda::plan_size(segments, groups)),
             cpu::check_segments(segments, groups), static_cast<std::int64_t>(segments.size()), groups,
             cuda::num_rank_tiles(segments)),
        rule{arrays.get<const double>("rates", rates, groups), arrays.get<const float>("ratios", ratios, 2 * groups),
             starvation ? arrays.get<std::int32_t>("starvation", *starvation, groups) : nullptr, limit_of(limit)},
        selection{arrays.get<std::int32_t>("donor", donor, plan.num_filters),
                  arrays.get<float>("threshold", threshold, groups),
                  arrays.get<std::int32_t>("inferior", inferior, plan.num_layers)},
        scratch(arrays.get<std::int32_t>("scratch", scratch_memory,
                                         cuda::Scratch::size(plan.num_layers, plan.num_filters)),
                plan.num_layers) {}

  void select(const float* importance, cudaStream_t stream) const {
    check(cuda::select_threshold(plan, importance, rule.rates, selection.threshold, stream), "threshold kernel");
    check(cuda::rank(plan, importance, rule, selection, scratch, stream), "rank kernel");
    check(cuda::count_inferior(plan, rule, selection, scratch, stream), "starvation kernel");
  }
};

std::int64_t groups_of(const Memory& ratios) { return ratios.second / static_cast<std::int64_t>(2 * sizeof(float)); }

constexpr std::int64_t kAnyGroup = std::numeric_limits<std::int64_t>::max();

void importance_binding(const py::list& weights, std::uintptr_t table, std::int64_t num_layers, const Memory& pointers,
                        const Memory& layers, const Memory& importance, int device, std::uintptr_t stream) {
  Arrays arrays;
  const CheckedBank bank(weights, table, num_layers, kAnyGroup, pointers, layers, arrays);
  auto* const result = arrays.get<float>("importance", importance, bank.device.num_filters);
  const py::gil_scoped_release unlocked;
  const Place place(device, stream);
  arrays.check_places(place);
  bank.check_place(place);
  check(cuda::filter_importance(bank.device, result, place.stream()), "importance kernel");
}

void match_binding(std::uintptr_t segments_table, std::int64_t num_layers, const Memory& importance, const Memory& plan,
                   const Memory& scratch, const Memory& rates, const Memory& ratios,
                   const std::optional<Memory>& starvation, double limit, const Memory& donor,
                   const Memory& threshold, const Memory& inferior, int device, std::uintptr_t stream) {
  Arrays arrays;
  const auto segments = array<const cpu::Segment>("table", segments_table, num_layers);
  const std::int64_t groups = groups_of(ratios);
  cpu::check_segments(segments, groups);
  const Matching matching(segments, groups, plan, scratch, rates, ratios, starvation, limit, donor, threshold, inferior,
                          arrays);
  const auto* const values = arrays.get<const float>("importance", importance, matching.plan.num_filters);
  const py::gil_scoped_release unlocked;
  const Place place(device, stream);
  arrays.check_places(place);
  matching.select(values, place.stream());
  check(cuda::match(matching.plan, matching.selection, matching.scratch, place.stream()), "match kernel");
}

void crossover_binding(const py::list& weights, std::uintptr_t table, std::int64_t num_layers, const Memory& pointers,
                       const Memory& layers, const Memory& donor, const std::string& rule, int device,
                       std::uintptr_t stream) {
  Arrays arrays;
  const CheckedBank bank(weights, table, num_layers, kAnyGroup, pointers, layers, arrays);
  const auto* const donors = arrays.get<const std::int32_t>("donor", donor, bank.device.num_filters);
  const cuda::Rule crossing = rule_of(rule);
  const py::gil_scoped_release unlocked;
  const Place place(device, stream);
  arrays.check_places(place);
  bank.check_place(place);
  check(cuda::crossover(bank.device, donors, crossing, place.stream()), "crossover kernel");
}

void evolve_binding(const py::list& weights, std::uintptr_t table, std::int64_t num_layers, const Memory& pointers,
                    const Memory& layers, const Memory& plan, const Memory& scratch, const Memory& rates,
                    const Memory& ratios, const std::optional<Memory>& starvation, double limit,
                    const std::string& rule, const Memory& donor, const Memory& importance, const Memory& threshold,
                    const Memory& inferior, int device, std::uintptr_t stream) {
  Arrays arrays;
  const std::int64_t groups = groups_of(ratios);
  const CheckedBank bank(weights, table, num_layers, groups, pointers, layers, arrays);
  const Matching matching(bank.segments(), groups, plan, scratch, rates, ratios, starvation, limit, donor, threshold,
                          inferior, arrays);
  auto* const values = arrays.get<float>("importance", importance, bank.device.num_filters);
  const cuda::Rule crossing = rule_of(rule);
  const py::gil_scoped_release unlocked;
  const Place place(device, stream);
  arrays.check_places(place);
  bank.check_place(place);
  check(cuda::filter_importance(bank.device, values, place.stream()), "importance kernel");
  matching.select(values, place.stream());
  check(cuda::match_and_cross(bank.device, matching.plan, matching.selection, matching.scratch, crossing,
                              place.stream()),
        "crossover kernel");
}

std::int64_t plan_size_binding(std::uintptr_t segments_table, std::int64_t num_layers, std::int64_t groups) {
  const auto segments = array<const cpu::Segment>("table", segments_table, num_layers);
  cpu::check_segments(segments, groups);
  return cuda::plan_size(segments, groups);
}

void make_plan_binding(std::uintptr_t segments_table, std::int64_t num_layers, std::int64_t groups,
                       const Memory& memory) {
  const auto segments = array<const cpu::Segment>("table", segments_table, num_layers);
  cpu::check_segments(segments, groups);
  const auto plan = array<std::int32_t>("plan", memory.first, memory.second / 4);
  check_size("plan", plan, cuda::plan_size(segments, groups));
  cuda::make_plan(segments, groups, plan);
}

}  // namespace

void bind_cuda(py::module_& module) {
  module.def("cuda_architectures", [] { return WE_KERNELS_CUDA_ARCHITECTURES; },
             "The architectures the CUDA part was built for, as CMake names them.");
  module.def("cuda_status", &cuda_status, py::call_guard<py::gil_scoped_release>(),
             "Why no CUDA device can be used, or None. Creates no context.");
  // Tensors on the device are (address, bytes). Kernels are enqueued on the stream; nothing waits.
  module.def("cuda_importance", &importance_binding, "Importances float32 [F].");
  module.def("cuda_match", &match_binding, "Donors int32 [F], thresholds float32 [G], inferior int32 [L].");
  module.def("cuda_crossover", &crossover_binding, "Overwrites filters that have a donor, int32 [F].");
  module.def("cuda_evolve", &evolve_binding, "The three in one, in five launches.");
  module.def("cuda_plan_size", &plan_size_binding, "Elements of the int32 tables that matching needs for segments.");
  module.def("cuda_make_plan", &make_plan_binding, "Fills the tables, on the host.");
  module.def("cuda_scratch_size", &cuda::Scratch::size, "Elements of the int32 scratch for L layers, F filters.");
}
