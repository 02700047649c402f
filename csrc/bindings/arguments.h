#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <span>
#include <stdexcept>
#include <string>
#include <vector>

#include "cpu/rounding.h"
#include "rule.h"

// What Python hands over is checked here: a mistake would be a crash instead of an exception.
namespace we {

// An array that Python hands over as an address and a number of elements.
template <class T>
std::span<T> array(const char* name, std::uintptr_t address, std::int64_t size) {
  if (size < 0) throw std::invalid_argument(std::string(name) + " has a negative size");
  if (size > 0 && address == 0) throw std::invalid_argument(std::string(name) + " is null");
  if (address % alignof(T) != 0) throw std::invalid_argument(std::string(name) + " is misaligned");
  return {reinterpret_cast<T*>(address), static_cast<std::size_t>(size)};
}

template <class T>
void check_size(const char* name, std::span<T> array, std::int64_t expected) {
  if (static_cast<std::int64_t>(array.size()) != expected) {
    throw std::invalid_argument(std::string(name) + " has " + std::to_string(array.size()) + " elements, not " +
                                std::to_string(expected));
  }
}

inline std::vector<void*> addresses(const pybind11::list& weights) {
  std::vector<void*> result;
  result.reserve(weights.size());
  for (const pybind11::handle weight : weights) {
    result.push_back(PyLong_AsVoidPtr(weight.ptr()));
    if (PyErr_Occurred() != nullptr) throw pybind11::error_already_set();
  }
  return result;
}

inline Rule rule_of(const std::string& name) {
  if (name == "paper") return Rule::paper;
  if (name == "released") return Rule::released;
  throw std::invalid_argument("rule must be \"paper\" or \"released\"");
}

inline int check_threads(int threads) {
  if (threads < 1) throw std::invalid_argument("threads must be positive");
  return threads;
}

inline cpu::Rounding rounding_of(bool fused, const std::vector<std::int64_t>& steps, std::int64_t grain, int threads) {
  if (steps.size() != kNumDTypes) throw std::invalid_argument("steps must have one entry for each dtype");
  if (grain < 1) throw std::invalid_argument("grain must be positive");
  cpu::Rounding rounding{fused, {}, check_threads(threads), grain};
  for (std::size_t i = 0; i < kNumDTypes; ++i) {
    if (steps[i] < 0) throw std::invalid_argument("steps must not be negative");
    rounding.step[i] = steps[i];
  }
  return rounding;
}

}  // namespace we
