#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "bindings/arguments.h"

// The CUDA device that a call runs on, and its memory as Python hands it over.
namespace we {

// Throws std::runtime_error with `what`, CUDA's message and, where there is one, the remedy.
void check_cuda(cudaError_t error, const char* what);

// Why no CUDA device can be used, or nothing. Creates no context.
std::optional<std::string> cuda_status();

// The address and the number of bytes of a tensor.
using Memory = std::pair<std::uintptr_t, std::int64_t>;

// Where the kernels of a call run. Its device becomes current, and stays so: the caller has made it torch's current
// one, and this copy of the CUDA runtime may remember an older one: to restore that would leave torch in the wrong
// context.
class Place {
 public:
  Place(int device, std::uintptr_t stream);

  cudaStream_t stream() const { return stream_; }

  // Throws unless the memory is on this device. The driver is not asked while it captures a graph.
  void check_memory(const char* name, const void* address) const;

 private:
  int device_;
  bool capturing_ = false;
  cudaStream_t stream_;
};

// Device arrays of a call. Their sizes are checked at once, where they are when the place is known.
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

}  // namespace we
