#include "emulation.h"

#include "cuda_runtime.h"

void set_order(const std::string& order, unsigned seed) {
  using emulation::Order;
  emulation::order = order == "backward" ? Order::backward : order == "shuffled" ? Order::shuffled : Order::forward;
  emulation::generator.seed(seed);
}

void set_driver(int error, int memory_type, int memory_device, bool capturing) {
  emulation::status = static_cast<cudaError_t>(error);
  emulation::memory_type = static_cast<cudaMemoryType>(memory_type);
  emulation::memory_device = memory_device;
  emulation::capture = capturing ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone;
}

std::vector<std::tuple<unsigned, unsigned, int, std::uintptr_t>> take_launches() {
  std::vector<std::tuple<unsigned, unsigned, int, std::uintptr_t>> result;
  for (const auto& launch : emulation::launches) {
    result.emplace_back(launch.blocks, launch.threads, launch.device, reinterpret_cast<std::uintptr_t>(launch.stream));
  }
  emulation::launches.clear();
  return result;
}
