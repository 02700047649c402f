#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <vector>

#include "cpu/bank.h"
#include "cpu/simd.h"
#include "places.h"

namespace we::cpu {

inline constexpr unsigned char kGuard = 0xa5;
inline constexpr const char* kLevels[] = {"baseline", "avx2", "avx512"};

inline void require(bool condition, const char* what) {
  if (condition) return;
  std::fprintf(stderr, "stress: %s\n", what);
  std::exit(1);
}

// A weight in memory of its own, of exactly the bytes from its first to its last element.
struct Weight {
  Layer layer{};
  std::unique_ptr<unsigned char[]> memory;
  std::size_t bytes = 0;

  template <class F>
  void each_byte_offset(F&& visit) const {
    const Layer& l = layer;
    for (std::int64_t n = 0; n < l.filters; ++n)
      for (std::int64_t c = 0; c < l.channels; ++c)
        for (std::int64_t i = 0; i < l.kernel0; ++i)
          for (std::int64_t j = 0; j < l.kernel1; ++j)
            for (std::int64_t k = 0; k < l.kernel2; ++k)
              visit(static_cast<std::size_t>(n * l.filter_stride + c * l.channel_stride + i * l.stride0 +
                                             j * l.stride1 + k * l.stride2) *
                        static_cast<std::size_t>(kItemSize[l.dtype]),
                    n);
  }
};

// Returns the bits of a value in a dtype; float16 and bfloat16 are truncated.
inline std::uint64_t encode(double value, std::int64_t dtype) {
  const auto narrow = static_cast<float>(value);
  std::uint32_t word;
  std::memcpy(&word, &narrow, sizeof word);
  if (dtype == kFloat32) return word;
  if (dtype == kBFloat16) return word >> 16;
  if (dtype == kFloat16) {
    const std::uint32_t sign = word >> 16 & 0x8000u;
    const int exponent = static_cast<int>(word >> 23 & 0xffu) - 112;
    return exponent <= 0 ? sign : sign | static_cast<std::uint32_t>(exponent) << 10 | (word >> 13 & 0x3ffu);
  }
  std::uint64_t wide;
  std::memcpy(&wide, &value, sizeof wide);
  return wide;
}

class Generator {
 public:
  explicit Generator(unsigned seed) : engine_(seed) {}

  std::int64_t below(std::int64_t end) { return std::uniform_int_distribution<std::int64_t>(0, end - 1)(engine_); }

  double value() {
    switch (below(12)) {
      case 0:
        return 0.0;
      case 1:
        return -0.0;
      case 2:
        return 0.5;
      case 3:
        return 1e-39;
      default:
        return std::normal_distribution<double>()(engine_);
    }
  }

  Weight weight() {
    Layer l{};
    static constexpr std::int64_t kernels[][3] = {{1, 1, 1}, {1, 1, 9}, {1, 1, 9}, {1, 3, 3}, {2, 3, 2}, {1, 1, 25}};
    const auto& kernel = kernels[below(6)];
    l.filters = below(40);
    l.channels = 1 + below(45);
    l.kernel0 = kernel[0], l.kernel1 = kernel[1], l.kernel2 = kernel[2];
    l.dtype = below(kNumDTypes);
    l.blend = l.kernel0 * l.kernel1 * l.kernel2 == 1 ? 1 : 0;
    return like(l, false);
  }

  // Makes some elements the largest or least of their dtype.
  void stretch(Weight& weight) {
    static constexpr double largest[kNumDTypes] = {0x1.fffffep127, 0x1.fffffffffffffp1023, 65504, 0x1.fep127};
    const std::int64_t dtype = weight.layer.dtype;
    weight.each_byte_offset([&](std::size_t offset, std::int64_t) {
      if (below(20) > 0) return;
      const std::uint64_t bits = encode(below(2) == 0 ? largest[dtype] : -largest[dtype], dtype);
      std::memcpy(weight.memory.get() + offset, &bits, static_cast<std::size_t>(kItemSize[dtype]));
    });
  }

  std::vector<Weight> weights() {
    std::vector<Weight> made;
    for (std::int64_t i = below(12); i >= 0; --i) made.push_back(weight());
    return made;
  }

  // Makes a weight of the same sizes and dtype, with values and, unless `alike`, strides of its own.
  Weight like(const Layer& layer, bool alike) {
    Weight made;
    made.layer = layer;
    if (!alike) lay_out(made.layer);
    const Layer& l = made.layer;
    made.bytes = l.filters == 0 ? 0 : static_cast<std::size_t>((last_of_layer(l) + 1) * kItemSize[l.dtype]);
    made.memory.reset(new unsigned char[made.bytes]);
    std::memset(made.memory.get(), kGuard, made.bytes);
    const auto item = static_cast<std::size_t>(kItemSize[l.dtype]);
    made.each_byte_offset([&](std::size_t offset, std::int64_t) {
      const std::uint64_t bits = encode(value(), l.dtype);
      std::memcpy(made.memory.get() + offset, &bits, item);
    });
    return made;
  }

 private:
  // Chooses strides in a random order, with gaps.
  void lay_out(Layer& l) {
    std::int64_t* const strides[] = {&l.filter_stride, &l.channel_stride, &l.stride0, &l.stride1, &l.stride2};
    const std::int64_t sizes[] = {l.filters, l.channels, l.kernel0, l.kernel1, l.kernel2};
    int order[] = {0, 1, 2, 3, 4};
    if (below(3) == 0) std::shuffle(order, order + 5, engine_);
    else if (below(3) == 0) std::swap(order[0], order[1]);
    const std::int64_t gap = below(3) == 0 ? below(3) : 0;
    std::int64_t step = 1;
    for (int i = 4; i >= 0; --i) {
      const std::int64_t size = sizes[order[i]];
      *strides[order[i]] = size > 1 ? step : 0;
      step *= size > 1 ? size + gap : 1;
    }
  }

  std::mt19937 engine_;
};

// Copies of weights as a bank.
class Copies {
 public:
  explicit Copies(const std::vector<Weight>& weights, std::int64_t groups = 1) : weights_(&weights) {
    for (const Weight& weight : weights) {
      layers_.push_back(weight.layer);
      layers_.back().first_filter = filters_;
      layers_.back().group = static_cast<std::int64_t>(layers_.size()) % groups;
      filters_ += weight.layer.filters;
      copies_.emplace_back(new unsigned char[weight.bytes]);
      std::memcpy(copies_.back().get(), weight.memory.get(), weight.bytes);
      pointers_.push_back(copies_.back().get());
    }
  }

  Bank bank() const { return {layers_, pointers_}; }
  const std::vector<Layer>& layers() const { return layers_; }
  std::int64_t filters() const { return filters_; }

  // Returns all bytes, those between the elements included.
  std::vector<unsigned char> bytes() const {
    std::vector<unsigned char> all;
    for (std::size_t i = 0; i < copies_.size(); ++i) {
      all.insert(all.end(), copies_[i].get(), copies_[i].get() + (*weights_)[i].bytes);
    }
    return all;
  }

  // Sets all bytes of the elements of some filters to this one.
  template <class F>
  void overwrite(F&& chosen, unsigned char byte = kGuard) {
    for (std::size_t i = 0; i < copies_.size(); ++i) {
      const auto item = static_cast<std::size_t>(kItemSize[layers_[i].dtype]);
      (*weights_)[i].each_byte_offset([&](std::size_t offset, std::int64_t filter) {
        if (chosen(layers_[i].first_filter + filter)) std::memset(copies_[i].get() + offset, byte, item);
      });
    }
  }

  void check_guards() {
    overwrite([](std::int64_t) { return true; });
    for (const unsigned char byte : bytes()) require(byte == kGuard, "a byte between the elements was written");
  }

 private:
  const std::vector<Weight>* weights_;
  std::vector<Layer> layers_;
  std::vector<std::unique_ptr<unsigned char[]>> copies_;
  std::vector<void*> pointers_;
  std::int64_t filters_ = 0;
};

// Requires that an operator's result on one thread, with the best instructions, is its result with others. It throws
// nothing: a difference ends the program.
template <class F>
void require_the_same(F&& result, bool change_level, const char* what) {
  const auto expected = result(1);
  for (const char* level : kLevels) {
    if (change_level) require(limit_simd(level), "an instruction set has no name");
    for (const int threads : {1, 2, 3}) require(result(threads) == expected, what);
  }
}

void stress_evolution(Generator& generator, bool change_level);
void stress_grafting(Generator& generator, bool change_level);
void stress_adamw(Generator& generator, bool change_level);
void stress_asynchronous(Generator& generator, bool change_level);
void stress_activity(Generator& generator, bool change_level);
void stress_reactivation(Generator& generator, bool change_level);
void stress_races(Generator& generator, bool change_level);

}  // namespace we::cpu
