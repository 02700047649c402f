#include "cpu/grafting.h"
#include "stress.h"

namespace we::cpu {
namespace {

std::vector<std::int64_t> counted(const std::vector<Weight>& weights, int bins, bool per_filter, int threads) {
  Copies copies(weights);
  const auto rows = per_filter ? static_cast<std::size_t>(copies.filters()) : weights.size();
  std::vector<std::int64_t> counts(rows * static_cast<std::size_t>(bins), -77);
  count_bins(copies.bank(), bins, per_filter, counts, threads);
  for (const std::int64_t count : counts) require(count >= 0, "a count was not written");
  return counts;
}

// Blends the first `written` of the networks with the one before each; returns the bytes of all.
std::vector<unsigned char> blended(const std::vector<std::vector<Weight>>& networks,
                                   const std::vector<float>& coefficients, int written, bool per_filter, int threads) {
  std::vector<Copies> copies;
  for (const std::vector<Weight>& weights : networks) copies.emplace_back(weights);
  std::vector<Bank> banks;
  for (const Copies& network : copies) banks.push_back(network.bank());
  check_networks(banks);
  blend(banks, coefficients, written, per_filter, threads);
  std::vector<unsigned char> all;
  for (std::size_t k = 0; k < copies.size(); ++k) {
    const std::vector<unsigned char> bytes = copies[k].bytes();
    const bool unwritten = k >= static_cast<std::size_t>(written);
    require(!unwritten || bytes == Copies(networks[k]).bytes(), "a network that is only read has changed");
    all.insert(all.end(), bytes.begin(), bytes.end());
    copies[k].check_guards();
  }
  return all;
}

}  // namespace

void stress_grafting(Generator& generator, bool change_level) {
  std::vector<std::vector<Weight>> networks;
  networks.push_back(generator.weights());
  const std::int64_t others = 1 + generator.below(3);
  const bool alike = generator.below(2) == 0;
  for (std::int64_t k = 0; k < others; ++k) {
    networks.emplace_back();
    for (const Weight& weight : networks[0]) networks.back().push_back(generator.like(weight.layer, alike));
  }
  for (const bool per_filter : {false, true}) {
    const int bins = 1 + static_cast<int>(generator.below(kMaxBins));
    const auto count = [&](int threads) { return counted(networks[0], bins, per_filter, threads); };
    require_the_same(count, change_level, "other counts with other threads or instructions");
    std::vector<Weight> stretched;
    for (const Weight& weight : networks[0]) {
      stretched.push_back(generator.like(weight.layer, true));
      generator.stretch(stretched.back());
    }
    const auto count_stretched = [&](int threads) { return counted(stretched, bins, per_filter, threads); };
    require_the_same(count_stretched, change_level, "other counts of a huge range with other threads or instructions");
    const int written = 1 + static_cast<int>(generator.below(static_cast<std::int64_t>(networks.size())));
    const std::size_t columns =
        per_filter ? static_cast<std::size_t>(Copies(networks[0]).filters()) : networks[0].size();
    std::vector<float> coefficients;
    for (std::size_t i = 0; i < columns * static_cast<std::size_t>(written); ++i) {
      coefficients.push_back(static_cast<float>(generator.below(101)) / 100);
    }
    const auto blend_in = [&](int threads) { return blended(networks, coefficients, written, per_filter, threads); };
    require_the_same(blend_in, change_level, "another blend with other threads or instructions");
  }
}

}  // namespace we::cpu
