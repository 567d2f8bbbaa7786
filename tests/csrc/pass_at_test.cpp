// pass@k against the choices that it counts.
#include "csrc/rl/pass_at.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <limits>

namespace isentrope::rl {
namespace ISENTROPE_UNIT {

// Of all choices of k answers out of n, of which the first c are right, those that hold a right one.
double counted(int64_t n, int64_t c, int64_t k) {
  int64_t choices = 0, passed = 0;
  for (uint32_t chosen = 0; chosen < uint32_t{1} << n; ++chosen) {
    if (std::popcount(chosen) != k) continue;
    ++choices;
    passed += (chosen & ((uint32_t{1} << c) - 1)) != 0;
  }
  return static_cast<double>(passed) / static_cast<double>(choices);
}

TEST(PassAt, IsTheShareOfChoicesThatHoldARightAnswer) {
  for (int64_t n = 1; n <= 11; ++n)
    for (int64_t c = 0; c <= n; ++c)
      for (int64_t k = 1; k <= n; ++k)  // each factor and product rounds once
        EXPECT_NEAR(pass_at(n, c, k), counted(n, c, k), 2 * n * std::numeric_limits<double>::epsilon())
            << "n " << n << " c " << c << " k " << k;
}

TEST(PassAt, TheEndsAreExact) {
  for (const int64_t n : {1, 2, 7, 16, 1000, 65536})
    for (const int64_t k : {int64_t{1}, (n + 1) / 2, n}) {
      EXPECT_EQ(pass_at(n, 0, k), 0) << n;
      EXPECT_EQ(pass_at(n, n, k), 1) << n;
      EXPECT_EQ(pass_at(n, 1, n), 1) << n;
      EXPECT_EQ(pass_at(n, n - k + 1, k), 1) << n;  // fewer wrong answers than k
    }
}

// Binomials of these overflow a double.
TEST(PassAt, ManyAnswersKeepTheirDigits) {
  const int64_t n = 65536;
  for (const int64_t k : {1, 100, 32768, 65535}) {
    const double p = static_cast<double>(k) / static_cast<double>(n);
    EXPECT_NEAR(pass_at(n, 1, k), p, 1e-15);
    EXPECT_NEAR(pass_at(n, k, 1), p, 1e-15);
    EXPECT_NEAR(pass_at(n, 2, k), 1 - (1 - p) * static_cast<double>(n - k - 1) / static_cast<double>(n - 1), 1e-15);
  }
  const double expected = 1 - std::exp(std::lgamma(65036.0 + 1) - std::lgamma(64036.0 + 1) - std::lgamma(65536.0 + 1) +
                                       std::lgamma(64536.0 + 1));
  EXPECT_NEAR(pass_at(n, 500, 1000), expected, 1e-9);  // lgamma of 7e5 has 1e-10
}

TEST(PassAt, EachKOfFewAnswersAndPowersOfTwoOfMany) {
  EXPECT_EQ(pass_ks(1), (std::vector<int64_t>{1}));
  EXPECT_EQ(pass_ks(4), (std::vector<int64_t>{1, 2, 3, 4}));
  EXPECT_EQ(pass_ks(16).size(), 16u);
  EXPECT_EQ(pass_ks(17), (std::vector<int64_t>{1, 2, 4, 8, 16, 17}));
  EXPECT_EQ(pass_ks(32), (std::vector<int64_t>{1, 2, 4, 8, 16, 32}));
  EXPECT_EQ(pass_ks(65536).size(), 17u);
}

}  // namespace ISENTROPE_UNIT
}  // namespace isentrope::rl
