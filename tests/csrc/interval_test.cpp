// Intervals against figures that were computed elsewhere.
#include "csrc/train/interval.h"

#include <gtest/gtest.h>

#include <cmath>

namespace isentrope::train {
namespace ISENTROPE_UNIT {

void expect(const Interval& found, double low, double high) {
  EXPECT_NEAR(found.low, low, 1e-4);
  EXPECT_NEAR(found.high, high, 1e-4);
}

TEST(Interval, Wilson) {
  // Closed forms: p = 1/2 gives 1/2 +- z / (2 sqrt(n + z^2)), p = 0 gives [0, z^2 / (n + z^2)].
  expect(wilson(0.5, 100), 0.5 - 1.959964 / (2 * std::sqrt(103.841459)), 0.5 + 1.959964 / (2 * std::sqrt(103.841459)));
  expect(wilson(0, 10), 0, 3.841459 / 13.841459);
  expect(wilson(1, 10), 10 / 13.841459, 1);
}

TEST(Interval, SamplesOfAPromptCountAsFarAsTheyDiffer) {
  const Interval alike = wilson_of_groups({0, 1, 0, 1, 0, 1, 0, 1}, 100);
  expect(alike, wilson(0.5, 8).low, wilson(0.5, 8).high);  // all samples agree: no more than the prompts
  const Interval even = wilson_of_groups({0.5, 0.5, 0.49, 0.51}, 100);
  expect(even, wilson(0.5, 400).low, wilson(0.5, 400).high);  // they tell nothing of each other: all samples
  expect(wilson_of_groups({0, 0, 0, 0}, 100), 0, wilson(0, 4).high);
}

TEST(Interval, RatioOfSums) {
  // Equal counts: the mean of 1, 2, 3 has the standard error 1 / sqrt(3).
  expect(normal_of_ratio({10, 20, 30}, {10, 10, 10}), 2 - 1.959964 / std::sqrt(3.0), 2 + 1.959964 / std::sqrt(3.0));
  expect(normal_of_ratio({2, 20, 6}, {1, 10, 3}), 2, 2);  // a long window of the same loss
  EXPECT_TRUE(std::isnan(normal_of_ratio({1}, {1}).low));
}

}  // namespace ISENTROPE_UNIT
}  // namespace isentrope::train
