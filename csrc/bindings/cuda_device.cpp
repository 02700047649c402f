#include "bindings/cuda_device.h"

namespace we {
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

}  // namespace

void check_cuda(cudaError_t error, const char* what) {
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

Place::Place(int device, std::uintptr_t stream) : device_(device), stream_(reinterpret_cast<cudaStream_t>(stream)) {
  check_cuda(cudaSetDevice(device), "the CUDA device of the weights");
  cudaStreamCaptureStatus capture = cudaStreamCaptureStatusNone;
  check_cuda(cudaStreamIsCapturing(stream_, &capture), "the CUDA stream");
  capturing_ = capture != cudaStreamCaptureStatusNone;
}

void Place::check_memory(const char* name, const void* address) const {
  if (address == nullptr || capturing_) return;
  cudaPointerAttributes attributes{};
  check_cuda(cudaPointerGetAttributes(&attributes, address), name);
  if (attributes.type != cudaMemoryTypeDevice && attributes.type != cudaMemoryTypeManaged) {
    throw std::invalid_argument(std::string(name) + " is not in the memory of a CUDA device");
  }
  if (attributes.type == cudaMemoryTypeDevice && attributes.device != device_) {
    throw std::invalid_argument(std::string(name) + " is on device " + std::to_string(attributes.device) + ", not " +
                                std::to_string(device_));
  }
}

}  // namespace we
