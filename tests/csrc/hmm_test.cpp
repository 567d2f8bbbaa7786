// The generator of hidden Markov text and its exact filter, against figures worked out by hand and sums over all texts.
#include "csrc/data/hmm.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <numeric>
#include <string>
#include <vector>

#include "tests/csrc/message.h"

namespace isentrope::data {
namespace ISENTROPE_UNIT {

const HmmConfig kTwo{
    .states = 2, .symbols = 2, .transition = {0.9, 0.1, 0.2, 0.8}, .emission = {0.8, 0.2, 0.3, 0.7}, .tokens = 200000};
const HmmConfig kThree{.states = 3,
                       .symbols = 3,
                       .transition = {0.8, 0.15, 0.05, 0.1, 0.8, 0.1, 0.05, 0.15, 0.8},
                       .emission = {0.7, 0.2, 0.1, 0.1, 0.7, 0.2, 0.2, 0.1, 0.7}};

HmmFilter filter_of(const HmmConfig& config) { return HmmFilter(std::make_shared<const Hmm>(config)); }
double pay(HmmFilter& filter, int64_t symbol) {
  const double nats = filter.nats(symbol);
  filter.see(symbol);
  return nats;
}

void expect_near(const std::vector<double>& found, const std::vector<double>& wanted, double tolerance) {
  ASSERT_EQ(found.size(), wanted.size());
  for (size_t i = 0; i < found.size(); ++i) EXPECT_NEAR(found[i], wanted[i], tolerance) << i;
}

TEST(Hmm, StationaryLaw) {
  expect_near(Hmm(kTwo).stationary(), {2.0 / 3, 1.0 / 3}, 1e-14);
  expect_near(Hmm(kThree).stationary(), {2.0 / 7, 3.0 / 7, 2.0 / 7}, 1e-14);
}

TEST(Hmm, FilterOfAWrittenText) {
  HmmFilter two = filter_of(kTwo);
  const double wanted[] = {0.45675840, 1.18658106, 0.86996666, 0.70540305};
  const int64_t text[] = {0, 1, 1, 0};
  for (size_t t = 0; t < 4; ++t) EXPECT_NEAR(pay(two, text[t]), wanted[t], 1e-8) << t;
  expect_near(two.belief(), {0.63971338, 0.36028662}, 1e-8);

  HmmFilter three = filter_of(kThree);
  double sum = 0;
  for (const int64_t symbol : {0, 0, 1, 1, 1, 2, 2, 0}) sum += pay(three, symbol);
  EXPECT_NEAR(sum / 8, 1.107374, 1e-6);
  expect_near(three.belief(), {0.292166, 0.258493, 0.449342}, 1e-6);
}

// H(x_L | x_<L), each text of L symbols weighted by its own probability; the probabilities of all are 1 together.
TEST(Hmm, FilterIsTheConditionalEntropy) {
  const std::vector<std::pair<int64_t, double>> wanted{{1, 0.65715776}, {2, 0.64327166}, {3, 0.63905759},
                                                       {4, 0.63766054}, {8, 0.63700102}, {12, 0.63699370}};
  for (const auto& [length, entropy] : wanted) {
    double sum = 0, all = 0;
    HmmFilter filter = filter_of(kTwo);
    for (int64_t text = 0; text < (int64_t{1} << length); ++text) {
      filter.reset();
      double nats = 0, last = 0;
      for (int64_t t = 0; t < length; ++t) nats += last = pay(filter, text >> t & 1);
      sum += std::exp(-nats) * last, all += std::exp(-nats);
    }
    EXPECT_NEAR(all, 1, 1e-12);
    EXPECT_NEAR(sum, entropy, 5e-9) << length;
  }
}

TEST(Hmm, TextOfTheChain) {
  const std::vector<int64_t> text = Hmm(kTwo).draw(Split::train);
  EXPECT_EQ(text, Hmm(kTwo).draw(Split::train));
  const std::vector<int64_t> other = Hmm(kTwo).draw(Split::validation);
  EXPECT_FALSE(std::equal(other.begin(), other.begin() + 1000, text.begin()));
  // 200,000 draws: the filter's mean loss has a standard error of 0.0013.
  HmmFilter filter = filter_of(kTwo);
  double sum = 0;
  for (const int64_t symbol : text) sum += pay(filter, symbol);
  EXPECT_NEAR(sum / static_cast<double>(text.size()), 0.6369937, 0.006);
  const double ones = static_cast<double>(std::accumulate(text.begin(), text.end(), int64_t{0}));
  EXPECT_NEAR(ones / static_cast<double>(text.size()), 0.2 * 2 / 3 + 0.7 / 3, 0.006);
}

TEST(Hmm, DrawnMatrices) {
  for (const double concentration : {0.01, 0.3, 1.0, 100.0}) {
    HmmConfig config{.states = 12, .symbols = 20, .concentration = concentration};
    std::vector<double> emission;
    for (config.seed = 1; emission.empty() && config.seed < 50; ++config.seed) try {
        emission = Hmm(config).emission();  // where few entries are large some chains are not ergodic
      } catch (const std::invalid_argument&) {
      }
    ASSERT_EQ(emission.size(), 240u) << concentration;
    double square = 0;
    for (size_t row = 0; row < 12; ++row) {
      double sum = 0;
      for (size_t x = 0; x < 20; ++x) sum += emission[row * 20 + x], square += std::pow(emission[row * 20 + x], 2) / 12;
      EXPECT_NEAR(sum, 1, 1e-12);
    }
    // E Σ p² of a Dirichlet row: (a + 1) / (n a + 1).
    EXPECT_NEAR(square, (concentration + 1) / (20 * concentration + 1), 0.15) << concentration;
  }
}

TEST(Hmm, WhatIsRefused) {
  const auto said = [](HmmConfig config, auto change) {
    change(config);
    return message([&] { Hmm h(config); });
  };
  EXPECT_NE(said(kTwo, [](auto& c) { c.transition = {1, 0, 0, 1}; }).find("not ergodic"), std::string::npos);
  EXPECT_NE(said(kTwo, [](auto& c) { c.transition = {0, 1, 1, 0}; }).find("not ergodic"), std::string::npos);
  EXPECT_NE(said(kTwo, [](auto& c) { c.transition = {0.5, 0.5, 0, 1}; }).find("not ergodic"), std::string::npos);
  EXPECT_NE(said(kTwo,
                 [](auto& c) {
                   c.transition = {0.5, 0.5, 1};
                 })
                .find("has 3 numbers; wanted 2 · 2"),
            std::string::npos);
  EXPECT_NE(said(kTwo,
                 [](auto& c) {
                   c.emission = {0.5, 0.4, 0.3, 0.7};
                 })
                .find("emission: row 0 sums to 0.9"),
            std::string::npos);
  // A state that returns after 2 or 3 steps only: no period.
  EXPECT_EQ(said(kThree, [](auto& c) { c.transition = {0, 1, 0, 0.5, 0, 0.5, 1, 0, 0}; }), "no error");
}

TEST(Hmm, FloorOfAWindow) {
  const std::string cache = ::testing::TempDir() + "isentrope_hmm_" + std::to_string(::getpid());
  HmmConfig config = kTwo;
  config.cache = cache, config.tokens = 100;
  const Tokenizer tokenizer({.kind = "characters", .characters = "10."});
  const auto shard = open_hmm(config, tokenizer, Split::train);
  const std::vector<int64_t> symbols = Hmm(config).draw(Split::train);
  std::vector<int64_t> tokens;
  for (const int64_t id : shard->tokens()) tokens.push_back(id);
  ASSERT_EQ(tokens.size(), 100u);
  for (size_t i = 0; i < 100; ++i) EXPECT_EQ(tokens[i], tokenizer.encode(symbols[i] == 0 ? "0" : "1").front());

  std::vector<int64_t> target(tokens.begin() + 1, tokens.begin() + 21);
  target.back() = -100;
  HmmFilter filter = filter_of(config);
  pay(filter, symbols[0]);
  double wanted = 0;
  for (size_t t = 1; t < 20; ++t) wanted += pay(filter, symbols[t]);
  EXPECT_DOUBLE_EQ(HmmFloor(config, tokenizer).nats(tokens.data(), target.data(), 20), wanted);

  config.symbols = 3, config.emission = {};
  EXPECT_NE(message([&] { HmmFloor floor(config, tokenizer); }).find("symbol \"2\" is no token of the tokenizer"),
            std::string::npos);
  std::filesystem::remove_all(cache);
}

}  // namespace ISENTROPE_UNIT
}  // namespace isentrope::data
