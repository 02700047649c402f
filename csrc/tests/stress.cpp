// Random banks through every operator, for the sanitizers: odd strides and sizes, exact allocations, guard elements in
// the gaps, several callers at once. Exits with 1 and a message when a result is wrong.
//   stress [rounds] [callers]
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <numeric>
#include <random>
#include <thread>
#include <vector>

#include "cpu/float_environment.h"
#include "cpu/operators.h"
#include "cpu/tasks.h"

namespace {

using namespace we;
using namespace we::cpu;

constexpr unsigned char kGuard = 0xa5;

void require(bool condition, const char* what) {
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
                    static_cast<std::size_t>(kItemSize[l.dtype]));
  }
};

// The bits of a value in a dtype; float16 and bfloat16 by truncation.
std::uint64_t encode(double value, std::int64_t dtype) {
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
    Weight made;
    Layer& l = made.layer;
    static constexpr std::int64_t kernels[][3] = {{1, 1, 1}, {1, 1, 9}, {1, 1, 9}, {1, 3, 3}, {2, 3, 2}, {1, 1, 25}};
    const auto& kernel = kernels[below(6)];
    l.filters = below(40);
    l.channels = 1 + below(45);
    l.kernel0 = kernel[0], l.kernel1 = kernel[1], l.kernel2 = kernel[2];
    l.dtype = below(kNumDTypes);
    l.blend = l.kernel0 * l.kernel1 * l.kernel2 == 1 ? 1 : 0;
    std::int64_t* const strides[] = {&l.filter_stride, &l.channel_stride, &l.stride0, &l.stride1, &l.stride2};
    const std::int64_t sizes[] = {l.filters, l.channels, l.kernel0, l.kernel1, l.kernel2};
    int order[] = {0, 1, 2, 3, 4};
    if (below(3) == 0) std::shuffle(order, order + 5, engine_);
    else if (below(3) == 0) std::swap(order[0], order[1]);
    const std::int64_t gap = below(3) == 0 ? below(3) : 0;
    std::int64_t step = 1;
    std::int64_t last = 0;
    for (int i = 4; i >= 0; --i) {
      const std::int64_t size = sizes[order[i]];
      *strides[order[i]] = size > 1 ? step : 0;
      last += (std::max<std::int64_t>(size, 1) - 1) * *strides[order[i]];
      step *= size > 1 ? size + gap : 1;
    }
    made.bytes = l.filters == 0 ? 0 : static_cast<std::size_t>((last + 1) * kItemSize[l.dtype]);
    made.memory.reset(new unsigned char[made.bytes]);
    std::memset(made.memory.get(), kGuard, made.bytes);
    const auto item = static_cast<std::size_t>(kItemSize[l.dtype]);
    made.each_byte_offset([&](std::size_t offset) {
      const std::uint64_t bits = encode(value(), l.dtype);
      std::memcpy(made.memory.get() + offset, &bits, item);
    });
    return made;
  }

 private:
  std::mt19937 engine_;
};

struct Result {
  std::vector<float> importance, threshold;
  std::vector<std::int32_t> donor, inferior, starvation;
  std::vector<std::vector<unsigned char>> memory;

  bool operator==(const Result&) const = default;
};

// On copies of the weights; in one call or operator by operator.
Result evolved(const std::vector<Weight>& weights, Rule rule, int threads, bool in_one) {
  Result result;
  std::vector<Layer> layers;
  std::vector<Segment> segments;
  std::vector<void*> pointers;
  std::vector<std::unique_ptr<unsigned char[]>> copies;
  std::int64_t filters = 0;
  for (const Weight& weight : weights) {
    layers.push_back(weight.layer);
    layers.back().first_filter = filters;
    layers.back().group = static_cast<std::int64_t>(layers.size()) % 2;
    segments.push_back({weight.layer.filters, filters, layers.back().group});
    filters += weight.layer.filters;
    copies.emplace_back(new unsigned char[weight.bytes]);
    std::memcpy(copies.back().get(), weight.memory.get(), weight.bytes);
    pointers.push_back(copies.back().get());
  }
  result.importance.assign(static_cast<std::size_t>(filters), NAN);
  result.donor.assign(static_cast<std::size_t>(filters), -77);
  result.threshold.assign(2, NAN);
  result.inferior.assign(layers.size(), -77);
  result.starvation.assign(2, 0);
  const double rates[] = {0.5, 0.8};
  const double ratios[] = {0.7, -1.0};
  const MatchingRule matching{rates, ratios, result.starvation.data(), 1.5};
  const Selection selection{result.donor, result.threshold, result.inferior};
  const Bank bank{layers, pointers};
  require(check_bank(bank, 2) == filters, "check_bank() counts other filters");
  if (in_one) {
    evolve(bank, result.importance, matching, rule, selection, threads);
  } else {
    filter_importance(bank, result.importance, threads);
    Pairs pairs;
    match_filters(result.importance, segments, matching, selection, pairs, threads);
    crossover(bank, result.donor, rule, threads);
  }
  for (std::size_t i = 0; i < copies.size(); ++i) {
    result.memory.emplace_back(copies[i].get(), copies[i].get() + weights[i].bytes);
  }
  return result;
}

void check_guards(const std::vector<Weight>& weights, Result result) {
  for (std::size_t i = 0; i < weights.size(); ++i) {
    std::vector<unsigned char>& memory = result.memory[i];
    const auto item = static_cast<std::size_t>(kItemSize[weights[i].layer.dtype]);
    weights[i].each_byte_offset([&](std::size_t offset) { std::memset(memory.data() + offset, kGuard, item); });
    for (const unsigned char byte : memory) require(byte == kGuard, "a byte between the elements was written");
  }
}

void run(unsigned seed, int rounds, bool change_level) {
  const FloatEnvironment environment;
  Generator generator(seed);
  for (int round = 0; round < rounds; ++round) {
    std::vector<Weight> weights;
    for (std::int64_t i = generator.below(12); i >= 0; --i) weights.push_back(generator.weight());
    const Rule rule = generator.below(2) == 0 ? Rule::paper : Rule::released;
    const Result expected = evolved(weights, rule, 1, true);
    check_guards(weights, expected);
    for (const float importance : expected.importance) require(importance >= 0, "an importance was not written");
    for (const char* level : {"baseline", "avx2", "avx512"}) {
      if (change_level) require(limit_simd(level), "an instruction set has no name");
      require(evolved(weights, rule, 2, true) == expected, "another result with two threads");
      require(evolved(weights, rule, 3, false) == expected, "another result operator by operator");
    }
  }
}

}  // namespace

int main(int argc, char** argv) {
  worth_waking = 1 << 16;
  const int rounds = argc > 1 ? std::atoi(argv[1]) : 20;
  const int callers = argc > 2 ? std::atoi(argv[2]) : 3;
  run(1, rounds, true);
  std::vector<std::thread> threads;
  for (int i = 0; i < callers; ++i) {
    threads.emplace_back([=] { run(static_cast<unsigned>(i + 2), rounds, false); });
  }
  for (std::thread& thread : threads) thread.join();
  std::puts("stress: all results agree");
}
