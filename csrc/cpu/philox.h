#pragma once

#include <cstdint>

#include "places.h"

namespace we::cpu {

// The first number of Philox4x32-10 (Salmon et al. 2011) for one counter, or for a vector of them. A Word has 64 bits,
// of which the lower 32 count, in the result, too; product(x, factor) multiplies lower halves.
template <class Word, class Product>
WE_EVERYWHERE Word philox(Word c0, Word c1, Word c2, Word c3, std::uint64_t seed, Product product) {
  auto k0 = static_cast<std::uint32_t>(seed), k1 = static_cast<std::uint32_t>(seed >> 32);
  for (int round = 0; round < 10; ++round) {
    const Word a = product(c0, std::uint64_t{0xD2511F53});
    const Word b = product(c2, std::uint64_t{0xCD9E8D57});
    c0 = (b >> 32) ^ c1 ^ std::uint64_t{k0};
    c1 = b;
    c2 = (a >> 32) ^ c3 ^ std::uint64_t{k1};
    c3 = a;
    k0 += 0x9E3779B9;
    k1 += 0xBB67AE85;
  }
  return c0;
}

WE_EVERYWHERE std::uint32_t philox(std::uint32_t c0, std::uint32_t c1, std::uint64_t step, std::uint64_t seed) {
  const auto product = [](std::uint64_t x, std::uint64_t factor) { return (x & 0xffffffff) * factor; };
  return static_cast<std::uint32_t>(philox<std::uint64_t>(c0, c1, step, step >> 32, seed, product));
}

}  // namespace we::cpu
