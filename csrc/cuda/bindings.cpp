#include "bindings/bindings.h"

#include <cuda_runtime_api.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <optional>
#include <stdexcept>
#include <string>

#include "cuda/importance.h"

namespace py = pybind11;

namespace {

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

// Makes a device current for the life of this object.
class DeviceGuard {
 public:
  explicit DeviceGuard(int device) {
    check(cudaGetDevice(&before_), "the current CUDA device");
    check(cudaSetDevice(device), "the CUDA device of the weights");
  }
  ~DeviceGuard() { cudaSetDevice(before_); }
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;

 private:
  int before_ = 0;
};

void require(bool condition, const char* message) {
  if (!condition) throw std::invalid_argument(message);
}

void cuda_importance(std::uintptr_t pointers, std::uintptr_t layers, std::int64_t num_layers, std::int64_t num_filters,
                     std::uintptr_t importance, int device, std::uintptr_t stream) {
  require(num_layers >= 0, "num_layers must not be negative");
  require(num_filters >= 0, "num_filters must not be negative");
  if (num_filters == 0) return;
  require(num_layers > 0, "num_filters must be 0 when there are no layers");
  require(pointers != 0 && pointers % alignof(std::int64_t) == 0, "pointers must be the address of int64 [num_layers]");
  require(layers != 0 && layers % alignof(we::Layer) == 0, "layers must be the address of int64 [num_layers, 14]");
  require(importance != 0 && importance % alignof(float) == 0,
          "importance must be the address of float32 [num_filters]");
  const DeviceGuard guard(device);
  check(we::cuda::filter_importance(reinterpret_cast<const std::int64_t*>(pointers),
                                    reinterpret_cast<const we::Layer*>(layers), num_layers, num_filters,
                                    reinterpret_cast<float*>(importance), reinterpret_cast<cudaStream_t>(stream)),
        "cuda_importance");
}

}  // namespace

void bind_cuda(py::module_& module) {
  module.def("cuda_architectures", [] { return WE_KERNELS_CUDA_ARCHITECTURES; },
             "The architectures the CUDA part was built for, as CMake names them.");
  module.def("cuda_status", &cuda_status, py::call_guard<py::gil_scoped_release>(),
             "Why no CUDA device can be used, or None. Creates no context.");
  module.def("cuda_importance", &cuda_importance, py::arg("pointers"), py::arg("layers"), py::arg("num_layers"),
             py::arg("num_filters"), py::arg("importance"), py::arg("device"), py::arg("stream"),
             py::call_guard<py::gil_scoped_release>(),
             "Importance of every filter, from device addresses: int64 pointers [num_layers], int64 layers "
             "[num_layers, 14], float32 importance [num_filters]. Enqueued on the stream; nothing waits.");
}
