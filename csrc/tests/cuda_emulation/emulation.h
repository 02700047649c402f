#pragma once

#include <cstdint>
#include <string>
#include <tuple>
#include <vector>

// How tests steer and watch the emulation.
void set_order(const std::string& order, unsigned seed);
void set_driver(int error, int memory_type, int memory_device, bool capturing);
std::vector<std::tuple<unsigned, unsigned, int, std::uintptr_t>> take_launches();
