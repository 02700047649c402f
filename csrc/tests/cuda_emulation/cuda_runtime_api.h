#pragma once

// Runs .cu files on the CPU, for tests: put this folder before CUDA's headers and compile them as C++.
// Each CUDA thread is a fiber; blocks run one after another. A barrier that not every thread reaches ends the program.
// Nothing that waits for a device exists here: a launcher that does would not compile.

#include <cstddef>
#include <vector>

#define CUDART_VERSION 13000

enum cudaError_t {
  cudaSuccess = 0,
  cudaErrorInvalidConfiguration = 9,
  cudaErrorInsufficientDriver = 35,
  cudaErrorNoDevice = 100,
  cudaErrorNoKernelImageForDevice = 209,
  cudaErrorUnsupportedPtxVersion = 222,
};
enum cudaDeviceAttr { cudaDevAttrMultiProcessorCount = 16 };
enum cudaMemoryType { cudaMemoryTypeUnregistered, cudaMemoryTypeHost, cudaMemoryTypeDevice, cudaMemoryTypeManaged };
enum cudaStreamCaptureStatus { cudaStreamCaptureStatusNone, cudaStreamCaptureStatusActive };
using cudaStream_t = void*;

struct cudaPointerAttributes {
  cudaMemoryType type;
  int device;
};

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
};

struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  std::size_t dynamicSmemBytes = 0;
  cudaStream_t stream = nullptr;
  void* attrs = nullptr;
  unsigned numAttrs = 0;
};

namespace emulation {

struct Launch {
  unsigned blocks;
  unsigned threads;
  int device;
  cudaStream_t stream;
};

inline std::vector<Launch> launches;
inline int current_device = 0;
// What the driver answers.
inline int memory_device = 0;
inline cudaMemoryType memory_type = cudaMemoryTypeDevice;
inline cudaStreamCaptureStatus capture = cudaStreamCaptureStatusNone;
inline cudaError_t status = cudaSuccess;
inline int processors = 1;  // so that grids sized by it go round their loops several times

}  // namespace emulation

inline cudaError_t cudaGetDevice(int* device) {
  *device = emulation::current_device;
  return emulation::status;
}

inline cudaError_t cudaSetDevice(int device) {
  emulation::current_device = device;
  return emulation::status;
}

inline cudaError_t cudaGetDeviceCount(int* count) {
  *count = 2;
  return emulation::status;
}

inline cudaError_t cudaDriverGetVersion(int* version) {
  *version = 12040;
  return cudaSuccess;
}

inline cudaError_t cudaGetLastError() { return emulation::status; }
inline const char* cudaGetErrorString(cudaError_t) { return "emulated error"; }

inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr, int) {
  *value = emulation::processors;
  return emulation::status;
}

inline cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* attributes, const void*) {
  *attributes = {emulation::memory_type, emulation::memory_device};
  return emulation::status;
}

inline cudaError_t cudaStreamIsCapturing(cudaStream_t, cudaStreamCaptureStatus* status) {
  *status = emulation::capture;
  return emulation::status;
}
