#include "cpu/activity.h"

#include <pybind11/stl.h>

#include <array>

#include "bindings/arguments.h"
#include "bindings/bindings.h"
#include "cpu/float_environment.h"

namespace py = pybind11;

namespace {

using namespace we;
using namespace we::cpu;

void activity_binding(std::uintptr_t values, std::int64_t dtype, std::int64_t columns, std::int64_t column_stride,
                      std::int64_t run, std::int64_t channels, const std::array<std::int64_t, 4>& sizes,
                      const std::array<std::int64_t, 4>& strides, std::uintptr_t sums, std::int64_t num_sums, bool wide,
                      bool overwrite, int threads) {
  const py::gil_scoped_release unlocked;
  const FloatEnvironment environment;
  Layer positions{};
  positions.channels = sizes[0], positions.channel_stride = strides[0];
  positions.kernel0 = sizes[1], positions.stride0 = strides[1];
  positions.kernel1 = sizes[2], positions.stride1 = strides[2];
  positions.kernel2 = sizes[3], positions.stride2 = strides[3];
  positions.dtype = dtype;
  const Activation activation{positions, columns, column_stride, run, channels};
  const auto* const memory = reinterpret_cast<const void*>(values);
  check_activation(activation, memory);
  check_threads(threads);
  if (wide) {
    const auto found = array<double>("sums", sums, num_sums);
    check_size("sums", found, channels);
    add_activity(activation, memory, found, overwrite, threads);
  } else {
    const auto found = array<float>("sums", sums, num_sums);
    check_size("sums", found, channels);
    add_activity(activation, memory, found, overwrite, threads);
  }
}

}  // namespace

void bind_activity(py::module_& module) {
  module.def("add_activity", &activity_binding, "Adds the magnitudes of each channel's activations to its sum.");
}
