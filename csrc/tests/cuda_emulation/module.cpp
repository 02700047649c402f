// The CUDA part of the extension as a module of its own, whose kernels run on the CPU. Addresses are of host memory.

// The bindings are one translation unit, since pybind11 takes longest to compile.
#include "bindings/cuda_device.cpp"
#include "bindings/cuda_evolution.cpp"
#include "emulation.h"

PYBIND11_MODULE(emulated_cuda, module) {
  bind_cuda(module);
  module.def("set_order", &set_order, "Lets blocks, warps and threads run forward, backward or shuffled.");
  module.def("set_driver", &set_driver, "Sets what the driver answers.");
  module.def("take_launches", &take_launches,
             "Returns (blocks, threads, device, stream) of each launch since the last call.");
}
