#include "csrc/rl/allocation.h"

#include <gtest/gtest.h>

#include <numeric>

#include "csrc/data/random.h"

namespace isentrope::rl {
namespace ISENTROPE_UNIT {

TEST(Allocation, SamplesGoWhereAnswersVary) {
  // √(p(1 − p)): 0.5, 0.3, 0, 0.5, 0 of 32.
  EXPECT_EQ(allocate({0.5, 0.1, 0.0, 0.5, 1.0}, 32, 2, 32), (std::vector<int64_t>{11, 6, 2, 11, 2}));
  EXPECT_EQ(allocate({0.5, 0.1, 0.0, 0.5, 1.0}, 32, 2, 10), (std::vector<int64_t>{10, 8, 2, 10, 2}));
  EXPECT_EQ(allocate({0.3, 0.3, 0.3}, 8, 1, 8), (std::vector<int64_t>{3, 3, 2}));
  EXPECT_EQ(allocate({0.0, 1.0}, 16, 2, 16), (std::vector<int64_t>{8, 8}));
  EXPECT_EQ(allocate({0.5}, 7, 1, 7), (std::vector<int64_t>{7}));
  EXPECT_THROW(allocate({0.5, 0.5}, 3, 2, 8), std::invalid_argument);
  EXPECT_THROW(allocate({0.5, 0.5}, 17, 2, 8), std::invalid_argument);
}

TEST(Allocation, AlwaysAddsUpWithinItsBounds) {
  data::Stream random(3, data::Purpose::example);
  for (int round = 0; round < 500; ++round) {
    std::vector<double> shares(1 + random.below(40));
    for (double& p : shares) p = random.below(3) == 0 ? random.below(2) : random.uniform();
    const auto P = static_cast<int64_t>(shares.size());
    const int64_t least = 1 + random.below(4), most = least + random.below(20);
    const int64_t total = P * least + random.below(static_cast<uint32_t>(P * (most - least) + 1));
    const auto samples = allocate(shares, total, least, most);
    EXPECT_EQ(std::accumulate(samples.begin(), samples.end(), int64_t{0}), total);
    for (int64_t i = 0; i < P; ++i) {
      EXPECT_GE(samples[i], least);
      EXPECT_LE(samples[i], most);
      for (int64_t j = 0; j < P; ++j)  // no prompt that varies less gets more, rounding aside
        if (shares[i] * (1 - shares[i]) < shares[j] * (1 - shares[j])) {
          EXPECT_LE(samples[i], samples[j] + 1);
        }
    }
  }
}

TEST(PassRecord, CountsWithDecayAndAPrior) {
  PassRecord record;
  EXPECT_EQ(record.share("a"), 0.5);
  record.add("a", 3, 4, 0.5);
  EXPECT_DOUBLE_EQ(record.mean(), 4.0 / 6);
  EXPECT_DOUBLE_EQ(record.share("a"), (3 + 2 * record.mean()) / 6);
  EXPECT_DOUBLE_EQ(record.share("b"), record.mean());
  record.add("a", 0, 4, 0.5);
  EXPECT_DOUBLE_EQ(record.share("a"), (1.5 + 2 * record.mean()) / 8);
}

TEST(PassRecord, ComesBackFromItsState) {
  PassRecord record, again;
  for (int i = 0; i < 50; ++i) record.add("prompt " + std::to_string(i % 20), i % 5, 5, 0.7);
  again.restore(record.state());
  record.add("prompt 3", 1, 8, 0.7);
  again.add("prompt 3", 1, 8, 0.7);
  for (int i = 0; i < 25; ++i)
    EXPECT_EQ(record.share("prompt " + std::to_string(i)), again.share("prompt " + std::to_string(i)));
}

}  // namespace ISENTROPE_UNIT
}  // namespace isentrope::rl
