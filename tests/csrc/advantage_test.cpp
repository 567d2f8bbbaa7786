#include "csrc/rl/advantage.h"

#include <gtest/gtest.h>
#include <torch/types.h>

#include <cmath>

namespace isentrope::rl {
namespace {

torch::Tensor doubles(std::vector<double> values, int64_t prompts) {
  return torch::tensor(values, torch::kDouble).view({prompts, -1});
}
torch::Tensor longs(std::vector<int64_t> values, int64_t prompts) {
  return torch::tensor(values, torch::kLong).view({prompts, -1});
}
torch::Tensor advantages_of(const char* kind, const torch::Tensor& rewards, const torch::Tensor& lengths) {
  AdvantageConfig config;
  config.kind = kind;
  return advantages(rewards, lengths, config);
}
// wanted: values in the order of memory; digits: how many decimals of it are known.
void expect_values(const torch::Tensor& got, const std::vector<double>& wanted, int digits) {
  ASSERT_EQ(got.numel(), static_cast<int64_t>(wanted.size()));
  const torch::Tensor flat = got.contiguous().view(-1);
  for (size_t i = 0; i < wanted.size(); ++i)
    EXPECT_NEAR(flat[i].item<double>(), wanted[i], 0.51 * std::pow(10.0, -digits)) << "element " << i;
}

const std::vector<double> kRewards = {1, 0, 0, 1, 1, 0, 0, 0};

TEST(Advantage, GrpoGolden) {
  const double up = 1.207612, down = -0.724567;
  expect_values(advantages_of("grpo", doubles(kRewards, 1), torch::ones({1, 8}, torch::kLong)),
                {up, down, down, up, up, down, down, down}, 6);
}

TEST(Advantage, RlooGoldenAndIsTheMeanOfTheOthers) {
  const double up = 0.714286, down = -0.428571;
  expect_values(advantages_of("rloo", doubles(kRewards, 1), torch::ones({1, 8}, torch::kLong)),
                {up, down, down, up, up, down, down, down}, 6);
  const auto got = advantages_of("rloo", doubles({3, 5, 10}, 1), torch::ones({1, 3}, torch::kLong));
  expect_values(got, {3 - 7.5, 5 - 6.5, 10 - 4.0}, 12);
}

TEST(Advantage, DrGrpoCentresEachGroupAlone) {
  expect_values(advantages_of("dr_grpo", doubles({1, 0, 5, 7}, 2), torch::ones({2, 2}, torch::kLong)),
                {0.5, -0.5, -1, 1}, 12);
}

TEST(Advantage, OpoWeighsTheBaselineByLength) {
  const double baseline = (1 * 1 + 3 * 3) / 4.0;
  expect_values(advantages_of("opo", doubles({1, 3, 2, 6}, 2), longs({1, 3, 0, 0}, 2)),
                {1 - baseline, 3 - baseline, 2, 6}, 12);
}

TEST(Advantage, ReinforcePlusPlusWhitensOverTokens) {
  const torch::Tensor rewards = doubles({1, 0, 0, 4, 2, 9}, 2), lengths = longs({2, 5, 1, 4, 3, 7}, 2);
  const torch::Tensor centred = (rewards - rewards.mean(1, true)).view(-1);
  const torch::Tensor tokens = torch::repeat_interleave(centred, lengths.view(-1));
  const torch::Tensor wanted = (centred - tokens.mean()) / (tokens.var(/*unbiased=*/true) + 1e-8).sqrt();
  const torch::Tensor got = advantages_of("reinforce_plus_plus_baseline", rewards, lengths);
  EXPECT_LT((got.view(-1) - wanted).abs().max().item<double>(), 1e-12);
}

TEST(Advantage, GroupOfOneHasNoBaseline) {
  const torch::Tensor rewards = doubles({2, -3}, 2), lengths = longs({4, 1}, 2);
  for (const char* kind : {"dr_grpo", "rloo", "opo"})
    expect_values(advantages_of(kind, rewards, lengths), {2, -3}, 12);
  expect_values(advantages_of("grpo", rewards, lengths), {2 / 1.000001, -3 / 1.000001}, 12);
  EXPECT_TRUE(advantages_of("reinforce_plus_plus_baseline", rewards, lengths).isfinite().all().item<bool>());
}

TEST(Advantage, EqualRewardsAndEmptyBatchesGiveNoNaN) {
  for (const char* kind : {"grpo", "dr_grpo", "rloo", "opo", "reinforce_plus_plus_baseline"}) {
    const auto flat =
        advantages_of(kind, torch::ones({3, 4}, torch::kDouble), torch::ones({3, 4}, torch::kLong));
    EXPECT_EQ(flat.abs().max().item<double>(), 0) << kind;
    const auto zero =
        advantages_of(kind, torch::ones({3, 4}, torch::kDouble), torch::zeros({3, 4}, torch::kLong));
    EXPECT_TRUE(zero.isfinite().all().item<bool>()) << kind;
    const auto none =
        advantages_of(kind, torch::ones({0, 4}, torch::kDouble), torch::ones({0, 4}, torch::kLong));
    EXPECT_EQ(none.numel(), 0) << kind;
  }
}

TEST(Advantage, BadInputIsNamed) {
  const auto lengths = torch::ones({1, 2}, torch::kLong);
  EXPECT_THROW(advantages_of("gae", doubles({1, 0}, 1), lengths), c10::Error);
  EXPECT_THROW(advantages_of("grpo", doubles({1, NAN}, 1), lengths), c10::Error);
  EXPECT_THROW(advantages_of("grpo", doubles({1, 0, 1}, 1), lengths), c10::Error);
  EXPECT_THROW(advantages_of("grpo", doubles({1, 0}, 1).to(torch::kFloat), lengths), c10::Error);
  EXPECT_THROW(advantages_of("grpo", doubles({1, 0}, 1), -lengths), c10::Error);
}

TEST(KeepGroups, KeepsGroupsWhoseRewardsDiffer) {
  const auto kept = keep_groups(doubles({1, 1, 1, 1, 0, 1, 0.1, 0.1, 0.1}, 3));
  EXPECT_FALSE(kept[0].item<bool>());
  EXPECT_TRUE(kept[1].item<bool>());
  EXPECT_FALSE(kept[2].item<bool>());
  EXPECT_TRUE(keep_groups(doubles({1, 2}, 2)).all().item<bool>());
}

TEST(Overlong, GoldenValues) {
  const auto got = overlong_penalty(longs({100, 16384, 18432, 20480}, 1), OverlongConfig{}, 20480);
  expect_values(got, {0, 0, -0.5, -1}, 12);
  EXPECT_THROW(overlong_penalty(longs({1}, 1), OverlongConfig{}, 100), c10::Error);
}

}  // namespace
}  // namespace isentrope::rl
