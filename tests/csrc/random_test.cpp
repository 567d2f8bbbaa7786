// Philox against its published answers; streams, splits and shuffles built on it.
#include "csrc/data/random.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <set>
#include <string>
#include <vector>

#include "csrc/data/shuffle.h"
#include "csrc/data/split.h"

namespace isentrope::data {
namespace ISENTROPE_UNIT {

// Statistic of Pearson's test that all counts have the same expectation.
double chi_square(const std::vector<int64_t>& counts) {
  double total = 0, sum = 0;
  for (const int64_t count : counts) total += static_cast<double>(count);
  const double expected = total / static_cast<double>(counts.size());
  for (const int64_t count : counts) sum += (count - expected) * (count - expected) / expected;
  return sum;
}

// Upper bound of a chi-square variable with k degrees of freedom that is passed once in 10^6: k + 4.75 √(2k)
// + 15 bounds the Wilson-Hilferty quantile for all k ≤ 1000.
double chi_square_bound(size_t cells) {
  const double k = static_cast<double>(cells) - 1;
  return k + 4.75 * std::sqrt(2 * k) + 15;
}

TEST(Philox, GivesThePublishedAnswers) {  // kat_vectors of Random123
  const auto words = [](PhiloxBlock b) { return std::array<uint32_t, 4>{b.word[0], b.word[1], b.word[2], b.word[3]}; };
  using Words = std::array<uint32_t, 4>;
  EXPECT_EQ(words(philox(0, 0, 0)), (Words{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
  EXPECT_EQ(words(philox(~0ull, ~0ull, ~0ull)), (Words{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
  EXPECT_EQ(words(philox(0x299f31d0a4093822ull, 0x85a308d3243f6a88ull, 0x0370734413198a2eull)),
            (Words{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}));
}

TEST(Stream, IsAFunctionOfItsIndices) {
  Stream one(7, Purpose::rollout, 1, 2, 3), same(7, Purpose::rollout, 1, 2, 3);
  std::vector<uint32_t> first, second;
  for (int i = 0; i < 33; ++i) first.push_back(one.bits());
  for (int i = 0; i < 33; ++i) second.push_back(same.bits());
  EXPECT_EQ(first, second);

  std::set<uint64_t> heads;
  int64_t streams = 0;
  const auto add = [&](Stream stream) {
    const uint64_t high = stream.bits();
    heads.insert(high << 32 | stream.bits());
    ++streams;
  };
  for (uint64_t seed = 0; seed < 3; ++seed)
    for (const Purpose purpose : {Purpose::example, Purpose::noise, Purpose::evaluation})
      for (uint64_t a = 0; a < 4; ++a)
        for (uint64_t b = 0; b < 4; ++b)
          for (uint64_t c = 0; c < 4; ++c) add(Stream(seed, purpose, a, b, c));
  EXPECT_EQ(static_cast<int64_t>(heads.size()), streams) << "two streams begin alike";
}

TEST(Stream, UniformIsOpenAndEven) {
  Stream stream(1, Purpose::example);
  std::vector<int64_t> counts(97);
  for (int i = 0; i < 97000; ++i) {
    const double u = stream.uniform();
    ASSERT_GT(u, 0.0);
    ASSERT_LT(u, 1.0);
    ++counts[static_cast<size_t>(u * 97)];
  }
  EXPECT_LT(chi_square(counts), chi_square_bound(counts.size()));
}

TEST(Stream, BelowIsEvenAndInRange) {
  for (const uint32_t n : {1u, 2u, 7u, 31u, 97u}) {
    Stream stream(2, Purpose::example, n);
    std::vector<int64_t> counts(n);
    for (uint32_t i = 0; i < 1000 * n; ++i) {
      const uint32_t draw = stream.below(n);
      ASSERT_LT(draw, n);
      ++counts[draw];
    }
    EXPECT_LT(chi_square(counts), chi_square_bound(n)) << "n = " << n;
  }
}

TEST(Stream, BelowRejectsWhatWouldBeBiased) {
  // With n = 3 · 2^30, draws without rejection would put half of all results into the multiples of 3 alone.
  Stream stream(3, Purpose::example);
  std::vector<int64_t> counts(3);
  for (int i = 0; i < 30000; ++i) ++counts[stream.below(3u << 30) % 3];
  EXPECT_LT(chi_square(counts), chi_square_bound(3));
}

TEST(Shuffle, IsAPermutationThatChangesWithEpochAndSeed) {
  for (const uint64_t n : {1, 2, 3, 5, 31, 33, 97, 1000}) {
    const auto order = [n](uint64_t seed, uint64_t epoch) {
      const Shuffle shuffle(seed, epoch, n);
      std::vector<uint64_t> values;
      for (uint64_t i = 0; i < n; ++i) values.push_back(shuffle(i));
      return values;
    };
    std::vector<uint64_t> sorted = order(1, 0);
    EXPECT_EQ(sorted, order(1, 0));
    if (n > 5) {
      EXPECT_NE(sorted, order(1, 1));
      EXPECT_NE(sorted, order(2, 0));
    }
    std::sort(sorted.begin(), sorted.end());
    for (uint64_t i = 0; i < n; ++i) ASSERT_EQ(sorted[i], i) << "n = " << n;
  }
}

TEST(Shuffle, PutsEveryElementEverywhere) {
  constexpr uint64_t kN = 11;
  std::vector<int64_t> counts(kN * kN);  // place × element, in each row and column even
  for (uint64_t epoch = 0; epoch < 11000; ++epoch) {
    const Shuffle shuffle(5, epoch, kN);
    for (uint64_t i = 0; i < kN; ++i) ++counts[i * kN + shuffle(i)];
  }
  for (uint64_t i = 0; i < kN; ++i) {
    const auto row = counts.begin() + static_cast<int64_t>(i * kN);
    EXPECT_LT(chi_square({row, row + kN}), chi_square_bound(kN)) << "place " << i;
  }
}

TEST(Split, TakesItsShareOfPrompts) {
  constexpr int kPrompts = 16000;
  int64_t validation = 0, test = 0;
  for (int i = 0; i < kPrompts; ++i) {
    const std::string prompt = "prompt " + std::to_string(i);
    const Split split = split_of(prompt, 0.25, 0.05);
    EXPECT_EQ(split, split_of(prompt, 0.25, 0.05));
    validation += split == Split::validation;
    test += split == Split::test;
  }
  const auto sigma = [](double p) { return std::sqrt(kPrompts * p * (1 - p)); };
  EXPECT_NEAR(validation, kPrompts * 0.25, 5 * sigma(0.25));
  EXPECT_NEAR(test, kPrompts * 0.05, 5 * sigma(0.05));
  EXPECT_EQ(split_of("x", 0, 0), Split::train);
}

}  // namespace ISENTROPE_UNIT
}  // namespace isentrope::data
