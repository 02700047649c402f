#pragma once

#include <bit>
#include <cmath>
#include <cstdint>

struct __half {
  std::uint16_t bits;
};

inline __half __ushort_as_half(unsigned short bits) { return {bits}; }
inline unsigned short __half_as_ushort(__half value) { return value.bits; }

inline float __half2float(__half value) {
  const int exponent = value.bits >> 10 & 31;
  const int fraction = value.bits & 1023;
  float magnitude = exponent ? std::ldexp(static_cast<float>(1024 + fraction), exponent - 25)
                             : std::ldexp(static_cast<float>(fraction), -24);
  if (exponent == 31) magnitude = fraction ? NAN : INFINITY;
  return value.bits >> 15 ? -magnitude : magnitude;
}

inline __half __float2half_rn(float value) {
  const auto sign = static_cast<unsigned>(std::signbit(value)) << 15;
  const float size = std::fabs(value);
  if (std::isnan(value)) return {static_cast<std::uint16_t>(sign | 0x7fff)};
  if (size >= 65520) return {static_cast<std::uint16_t>(sign | 0x7c00)};
  int exponent = 0;
  std::frexp(size, &exponent);
  // Numbers of 11 bits, spaced by 2^(exponent - 11), below 2^-14 by 2^-24. Carries reach the exponent by themselves.
  const int spacing = size < 0x1p-14f ? -24 : exponent - 11;
  const auto steps = static_cast<unsigned>(std::nearbyint(std::ldexp(size, -spacing)));
  return {static_cast<std::uint16_t>(sign | ((static_cast<unsigned>(spacing + 24) << 10) + steps))};
}
