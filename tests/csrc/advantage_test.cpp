#include <gtest/gtest.h>

#include <cmath>

#include "csrc/methods/group_advantage.h"
#include "csrc/methods/overlong.h"
#include "csrc/one_of.h"

namespace isentrope::methods {
namespace ISENTROPE_UNIT {

using Values = std::vector<double>;
using Kinds = OneOf<Grpo, DrGrpo, Rloo, Opo, ReinforcePlusPlusBaseline>;

struct Config {
  std::string kind;
  double eps = 1e-6;
};
Advantages advantages(Values rewards, std::vector<int64_t> lengths, Groups groups, const Config& config) {
  Kinds one;
  EXPECT_TRUE(one.choose(config.kind));
  if (auto* grpo = std::get_if<Grpo>(&one.value)) grpo->eps = config.eps;
  const Rewarded r{std::move(rewards), std::move(lengths), std::move(groups)};
  return std::visit([&](const auto& method) { return method.estimate(r); }, one.value);
}

// Groups of the same size.
Groups groups_of(size_t values, int64_t groups) {
  Groups out;
  for (int64_t g = 0; g <= groups; ++g) out.push_back(static_cast<int64_t>(values) * g / groups);
  return out;
}
Advantages both_of(const char* kind, const Values& rewards, int64_t groups, std::vector<int64_t> lengths = {}) {
  Config config;
  config.kind = kind;
  lengths.resize(rewards.size(), lengths.empty() ? 1 : 0);
  return advantages(rewards, lengths, groups_of(rewards.size(), groups), config);
}
Values advantages_of(const char* kind, const Values& rewards, int64_t groups,
                     const std::vector<int64_t>& lengths = {}) {
  return both_of(kind, rewards, groups, lengths).value;
}
// digits: how many decimals of wanted are known.
void expect_values(const Values& got, const Values& wanted, int digits) {
  ASSERT_EQ(got.size(), wanted.size());
  for (size_t i = 0; i < wanted.size(); ++i)
    EXPECT_NEAR(got[i], wanted[i], 0.51 * std::pow(10.0, -digits)) << "element " << i;
}

const Values kRewards = {1, 0, 0, 1, 1, 0, 0, 0};
const std::vector<const char*> kKinds{"grpo", "dr_grpo", "rloo", "opo", "reinforce_plus_plus_baseline"};

TEST(Advantage, EqualRewardsGiveNothing) {
  // Equal by right; what the sums of float64 and float32 make of them.
  const std::vector<Values> groups{{0.1 + 0.2, 0.3, 0.3},        Values(7, 0.95),
                                   {0.1f + 0.2f, 0.3f, 0.3},     {0.1 + 0.2 - 0.3, 0, 0},
                                   {-1e6 * 0.7, -1e5 * 7, -7e5}, {1e17, 1e17, 1e17}};
  for (const char* kind : kKinds)
    for (const double eps : {0.0, 1e-6})
      for (const Values& rewards : groups) {
        Config config{.kind = kind, .eps = eps};
        const std::vector<int64_t> lengths(rewards.size(), 3), group{0, static_cast<int64_t>(rewards.size())};
        const Advantages a = advantages(rewards, lengths, group, config);
        EXPECT_EQ(a.value, Values(rewards.size(), 0)) << kind << " " << eps << " " << rewards[0];
        if (config.kind != "reinforce_plus_plus_baseline")  // whose scale is of the batch
          for (const double slope : a.slope) EXPECT_NEAR(slope, 1, 1e-5) << kind << " " << eps;
        EXPECT_EQ(keep_groups(rewards, group), (std::vector<bool>{false}));
      }
}

TEST(Advantage, SmallDifferencesAreDifferences) {
  for (const Values& rewards : std::vector<Values>{{1, 1 + 1e-6}, {1e-9, 0}, {1e6 + 2, 1e6}}) {
    EXPECT_EQ(keep_groups(rewards, {0, 2}), (std::vector<bool>{true})) << rewards[0];
    const Values value = advantages(rewards, std::vector<int64_t>{1, 1}, {0, 2}, {.kind = "grpo", .eps = 0}).value;
    // ±1/√2; the difference of the two has lost up to ten digits to rounding.
    EXPECT_NEAR(std::abs(value[0]), std::sqrt(0.5), 1e-6);
  }
}

TEST(Advantage, RewardsThatWouldOverflowAreRefused) {
  for (const double reward : {1e300, -1e19})
    for (const char* kind : kKinds) try {
        advantages_of(kind, {0, reward}, 1);
        ADD_FAILURE() << "no error";
      } catch (const std::invalid_argument& error) {
        EXPECT_NE(std::string(error.what()).find("at most 1e18 in size: give the reward a smaller weight"),
                  std::string::npos);
      }
  for (const char* kind : kKinds)
    for (const double value : advantages_of(kind, {0, 1e18, -1e18, 1}, 1, {5, 5, 5, 5}))
      EXPECT_TRUE(std::isfinite(static_cast<float>(value))) << kind;
}

TEST(Advantage, StdOfTheBatch) {
  // Mean of each group, one std: of 0, 1, 2, 5 it is √(14/3).
  const Rewarded r{{0, 1, 2, 5}, {1, 1, 1, 1}, {0, 2, 4}};
  const double scale = 1 / (std::sqrt(14.0 / 3) + 1e-4);
  const Advantages a = Grpo{.eps = 1e-4, .std = "batch"}.estimate(r);
  expect_values(a.value, {-0.5 * scale, 0.5 * scale, -1.5 * scale, 1.5 * scale}, 12);
  expect_values(a.slope, Values(4, scale), 12);
  // Equal rewards have std 1, and one group is its own batch.
  EXPECT_EQ((Grpo{.eps = 0, .std = "batch"}.estimate({{3, 3}, {1, 1}, {0, 2}}).value), (Values{0, 0}));
  EXPECT_EQ((Grpo{.std = "batch"}.estimate({{0, 1, 5}, {1, 1, 1}, {0, 3}}).value),
            (Grpo().estimate({{0, 1, 5}, {1, 1, 1}, {0, 3}}).value));
}

TEST(Advantage, GrpoGolden) {
  const double up = 1.207612, down = -0.724567;
  expect_values(advantages_of("grpo", kRewards, 1), {up, down, down, up, up, down, down, down}, 6);
}

TEST(Advantage, RlooGoldenAndIsTheMeanOfTheOthers) {
  const double up = 0.714286, down = -0.428571;
  expect_values(advantages_of("rloo", kRewards, 1), {up, down, down, up, up, down, down, down}, 6);
  expect_values(advantages_of("rloo", {3, 5, 10}, 1), {3 - 7.5, 5 - 6.5, 10 - 4.0}, 12);
}

TEST(Advantage, DrGrpoCentresEachGroupAlone) {
  expect_values(advantages_of("dr_grpo", {1, 0, 5, 7}, 2), {0.5, -0.5, -1, 1}, 12);
}

TEST(Advantage, OpoWeighsTheBaselineByLength) {
  const double baseline = (1 * 1 + 3 * 3) / 4.0;
  expect_values(advantages_of("opo", {1, 3, 2, 6}, 2, {1, 3, 0, 0}), {1 - baseline, 3 - baseline, 2, 6}, 12);
}

TEST(Advantage, ReinforcePlusPlusWhitensOverTokens) {
  const Values rewards{1, 0, 0, 4, 2, 9};
  const std::vector<int64_t> lengths{2, 5, 1, 4, 3, 7};
  Values tokens;  // of each token, centred by group
  for (size_t i = 0; i < rewards.size(); ++i)
    tokens.insert(tokens.end(), lengths[i], rewards[i] - (i < 3 ? 1.0 / 3 : 5));
  double mean = 0, variance = 0;
  for (const double x : tokens) mean += x / 22;
  for (const double x : tokens) variance += (x - mean) * (x - mean) / 21;
  Values wanted;
  for (size_t i = 0; i < rewards.size(); ++i)
    wanted.push_back((rewards[i] - (i < 3 ? 1.0 / 3 : 5) - mean) / std::sqrt(variance + 1e-8));
  expect_values(advantages_of("reinforce_plus_plus_baseline", rewards, 2, lengths), wanted, 12);
}

TEST(Advantage, GroupsMayDifferInSize) {
  const Values rewards{1, 0, 3, 5, 10, 7};
  const std::vector<int64_t> lengths{4, 1, 2, 6, 3, 5};
  for (const char* kind : {"grpo", "dr_grpo", "rloo", "opo"}) {
    Config config;
    config.kind = kind;
    const Values all = advantages(rewards, lengths, {0, 2, 5, 6}, config).value;
    Values parts;
    for (const auto& [first, last] : {std::pair(0, 2), std::pair(2, 5), std::pair(5, 6)}) {
      const Values part = advantages_of(kind, {rewards.begin() + first, rewards.begin() + last}, 1,
                                        {lengths.begin() + first, lengths.begin() + last});
      parts.insert(parts.end(), part.begin(), part.end());
    }
    EXPECT_EQ(all, parts) << kind;
  }
}

// With baseline and scale held, which moving all but one reward of a large group by nothing does: value + slope · change.
TEST(Advantage, SlopeIsTheGrowthWithAReturn) {
  const double up = 1.207612, down = -0.724567;
  expect_values(both_of("grpo", kRewards, 1).slope, Values(8, up - down), 5);
  expect_values(both_of("dr_grpo", kRewards, 1).slope, Values(8, 1), 12);
  expect_values(both_of("opo", kRewards, 1).slope, Values(8, 1), 12);
  // The mean of the others does not know the own reward.
  const Values before = advantages_of("rloo", {3, 5, 10}, 1), after = advantages_of("rloo", {3, 5, 11}, 1);
  expect_values(both_of("rloo", {3, 5, 10}, 1).slope, Values(3, after[2] - before[2]), 12);
  const auto whitened = both_of("reinforce_plus_plus_baseline", kRewards, 2);
  expect_values(whitened.slope, Values(8, (whitened.value[0] - whitened.value[1])), 12);
}

TEST(Advantage, GroupOfOneHasNoBaseline) {
  for (const char* kind : {"dr_grpo", "rloo", "opo"})
    expect_values(advantages_of(kind, {2, -3}, 2, {4, 1}), {2, -3}, 12);
  expect_values(advantages_of("grpo", {2, -3}, 2, {4, 1}), {2 / 1.000001, -3 / 1.000001}, 12);
  for (const double x : advantages_of("reinforce_plus_plus_baseline", {2, -3}, 2, {4, 1}))
    EXPECT_TRUE(std::isfinite(x));
}

TEST(Advantage, EqualRewardsAndEmptyBatchesGiveNoNaN) {
  for (const char* kind : kKinds) {
    EXPECT_EQ(advantages_of(kind, Values(12, 1), 3), Values(12, 0)) << kind;
    for (const double x : advantages_of(kind, Values(12, 1), 3, {0})) EXPECT_TRUE(std::isfinite(x)) << kind;
    Config config;
    config.kind = kind;
    EXPECT_TRUE(advantages({}, {}, {0}, config).value.empty()) << kind;
  }
}

TEST(Advantage, BadInputIsNamed) {
  const auto expect = [](const char* kind, const Values& rewards, const std::vector<int64_t>& lengths,
                         const Groups& groups, const std::string& text) {
    Config config;
    config.kind = kind;
    try {
      advantages(rewards, lengths, groups, config);
      ADD_FAILURE() << "nothing was thrown, wanted: " << text;
    } catch (const std::invalid_argument& e) {
      EXPECT_NE(std::string(e.what()).find(text), std::string::npos) << e.what();
    }
  };
  expect("grpo", {1, NAN}, {1, 1}, {0, 2}, "reward 1 is not finite");
  expect("grpo", {1, 0, 1}, {1, 1}, {0, 3}, "2 lengths for 3 rewards");
  expect("grpo", {1, 0}, {1, -1}, {0, 2}, "length 1 is -1");
  expect("grpo", {1, 0}, {1, 1}, {0, 1}, "groups do not cut 2 rewards");
}

TEST(KeepGroups, KeepsGroupsWhoseRewardsDiffer) {
  EXPECT_EQ(keep_groups(Values{1, 1, 1, 1, 0, 1, 0.1, 0.1}, {0, 3, 6, 8}), (std::vector<bool>{false, true, false}));
  EXPECT_EQ(keep_groups(Values{1, 2}, {0, 1, 2}), (std::vector<bool>{true, true}));
}

TEST(Overlong, GoldenValues) {
  EXPECT_EQ(overlong_penalty(100, 20480, 4096, 1.0), 0);
  EXPECT_EQ(overlong_penalty(16384, 20480, 4096, 1.0), 0);
  EXPECT_EQ(overlong_penalty(18432, 20480, 4096, 1.0), -0.5);
  EXPECT_EQ(overlong_penalty(20480, 20480, 4096, 1.0), -1);
  EXPECT_THROW(overlong_penalty(1, 100, 4096, 1.0), std::invalid_argument);
}

}  // namespace ISENTROPE_UNIT
}  // namespace isentrope::methods
