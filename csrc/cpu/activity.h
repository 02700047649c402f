#pragma once

#include <span>

#include "cpu/simd.h"

// Activity by channel, for checked arguments; what cpu/evolution.h says of threads holds here, too.
namespace we::cpu {

// Throws std::invalid_argument unless sizes, strides, dtype and address are such that nothing but the activation's
// elements is read.
void check_activation(const Activation& activation, const void* values);

// Sets the sums [channels] to those of the channels' magnitudes, or adds these to them. S is float or double.
template <class S>
void add_activity(const Activation& activation, const void* values, std::span<S> sums, bool overwrite, int threads);

}  // namespace we::cpu
