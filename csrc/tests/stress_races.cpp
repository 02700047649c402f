// Another thread changes values while a kernel reads them: the result may be any, but nothing outside of the memory is
// touched.
#include <atomic>
#include <cmath>
#include <iterator>
#include <thread>

#include "cpu/asynchronous.h"
#include "cpu/evolution.h"
#include "cpu/grafting.h"
#include "stress.h"

namespace we::cpu {
namespace {

// Elements of these bytes are zeros, ordinary numbers of both signs, huge ones and NaN.
constexpr unsigned char kBytes[] = {0x00, 0x3c, 0xbc, 0x7b, 0xfb, 0xff};

// Calls change() again and again, in a thread of its own.
template <class F>
class Changing {
 public:
  explicit Changing(F change) : change_(change), thread_([this] { run(); }) {}
  ~Changing() {
    stop_.store(true);
    thread_.join();
  }

 private:
  void run() {
    while (!stop_.load()) change_();
  }

  F change_;
  std::atomic<bool> stop_{false};
  std::thread thread_;
};

// Counts where all values were replaced after the range was found.
void count_with_another_range(const Weight& weight, int bins) {
  if (weight.layer.filters == 0) return;
  for (const unsigned char byte : kBytes) {
    for (const Range range : {Range{-1, 1, true}, Range{0, 0, true}, Range{-3e38, 3e38, true}, Range{0, 1e-42, true}}) {
      std::vector<Weight> one;
      one.push_back(Generator(byte).like(weight.layer, true));
      Copies copies(one);
      copies.overwrite([](std::int64_t filter) { return filter % 2 == 0; }, byte);
      std::vector<std::int64_t> counts(static_cast<std::size_t>(bins));
      const Bank bank = copies.bank();
      kernels().count_bins(bank.layers[0], bank.weights[0], 0, weight.layer.filters, range, bins, counts.data());
      for (const std::int64_t count : counts) require(count >= 0, "a count is negative");
    }
  }
}

void run_all(Copies& copies, std::span<const float> importance, std::span<const std::int32_t> donor,
             std::span<const std::uint8_t> selected, int bins, int threads) {
  const Bank bank = copies.bank();
  const auto filters = static_cast<std::size_t>(copies.filters());
  std::vector<std::int64_t> counts(std::max(filters, bank.layers.size()) * static_cast<std::size_t>(bins));
  count_bins(bank, bins, false, std::span(counts).first(bank.layers.size() * static_cast<std::size_t>(bins)), threads);
  count_bins(bank, bins, true, std::span(counts).first(filters * static_cast<std::size_t>(bins)), threads);

  const std::vector<Segment> segments = segments_of(bank.layers);
  std::vector<float> found(filters), threshold(1);
  std::vector<std::int32_t> matched(filters), inferior(segments.size());
  const double rates[] = {0.5};
  const double ratios[] = {0.7};
  const MatchingRule matching{rates, ratios, {}, nullptr, INFINITY};
  const Selection selection{matched, threshold, inferior};
  Pairs pairs;
  match_filters(importance, segments, matching, selection, pairs, threads);
  evolve(bank, found, matching, Rule::paper, selection, threads);
  crossover(bank, donor, Rule::released, threads);

  std::vector<std::uint8_t> buffer(static_cast<std::size_t>(snapshot_bytes(bank)));
  copy_unselected(bank, selected, buffer, false, threads);
  copy_unselected(bank, selected, buffer, true, threads);
}

void run_while_changing(Generator& generator, const std::vector<Weight>& weights, int bins, int threads) {
  Copies copies(weights);
  const auto filters = static_cast<std::size_t>(copies.filters());
  std::vector<float> importance(filters, 1.0f);
  std::vector<std::int32_t> donor(filters, -1);
  std::vector<std::uint8_t> selected(filters);
  std::int64_t step = generator.below(1000);
  {
    const Changing changing([&, step]() mutable {
      ++step;
      const unsigned char byte = kBytes[step % std::ssize(kBytes)];
      copies.overwrite([&](std::int64_t filter) { return (filter + step) % 7 == 0; }, byte);
      for (std::size_t f = 0; f < filters; ++f) {
        std::memset(&importance[f], (static_cast<std::int64_t>(f) + step) % 31 == 0 ? byte : 0x3c, sizeof(float));
        donor[f] = (static_cast<std::int64_t>(f) + step) % 3 == 0 ? 1 << 30 : static_cast<std::int32_t>(step % 5) - 1;
        selected[f] = static_cast<std::uint8_t>(step % 2);
      }
    });
    for (int i = 0; i < 3; ++i) run_all(copies, importance, donor, selected, bins, threads);
  }
  copies.check_guards();
}

}  // namespace

void stress_races(Generator& generator, bool change_level) {
  const std::vector<Weight> weights = generator.weights();
  const int bins = 1 + static_cast<int>(generator.below(generator.below(2) == 0 ? 20 : kMaxBins));
  for (const char* level : kLevels) {
    if (change_level) require(limit_simd(level), "an instruction set has no name");
    count_with_another_range(weights[0], bins);
    run_while_changing(generator, weights, bins, 1);
    run_while_changing(generator, weights, bins, 3);
    if (!change_level) return;
  }
}

}  // namespace we::cpu
