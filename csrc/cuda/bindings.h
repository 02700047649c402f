#pragma once

#include <pybind11/pybind11.h>

// Adds cuda_status, cuda_architectures and the CUDA operators to the module.
void bind_cuda(pybind11::module_& module);
