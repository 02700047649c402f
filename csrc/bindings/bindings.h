#pragma once

#include <pybind11/pybind11.h>

// Each adds the operators of one source file to the module.
void bind_activity(pybind11::module_& module);
void bind_adamw(pybind11::module_& module);
void bind_asynchronous(pybind11::module_& module);
void bind_evolution(pybind11::module_& module);
void bind_grafting(pybind11::module_& module);
void bind_reactivation(pybind11::module_& module);
void bind_cuda(pybind11::module_& module);
