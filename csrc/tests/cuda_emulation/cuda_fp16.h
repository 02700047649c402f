#pragma once

#include <bit>
#include <cmath>
#include <cstdint>

struct __half {
  std::uint16_t bits;
};

inline __half __ushort_as_half(unsigned short bits) { return {bits}; }

inline float __half2float(__half value) {
  const int exponent = value.bits >> 10 & 31;
  const int fraction = value.bits & 1023;
  float magnitude = exponent ? std::ldexp(static_cast<float>(1024 + fraction), exponent - 25)
                             : std::ldexp(static_cast<float>(fraction), -24);
  if (exponent == 31) magnitude = fraction ? NAN : INFINITY;
  return value.bits >> 15 ? -magnitude : magnitude;
}
