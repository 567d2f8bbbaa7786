// What the estimators of csrc/methods say to the trainer beyond their ops, which tests/python/test_advantage_methods.py tests: slopes,
// rewards that other methods have changed, errors, what they ask for.
#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <limits>

#include "csrc/methods/gdpo.h"
#include "csrc/methods/maxrl.h"
#include "csrc/methods/optimal_token_baseline.h"
#include "csrc/methods/pass_at_k.h"
#include "csrc/methods/quantile.h"
#include "csrc/methods/reinforce_plus_plus.h"
#include "csrc/methods/remax.h"
#include "csrc/one_of.h"

namespace isentrope::methods {
namespace ISENTROPE_UNIT {

using Values = std::vector<double>;
using Kinds = OneOf<Gdpo, MaxRl, PassAtK, Quantile, ReinforcePlusPlus, Remax>;

void expect_near(const Values& got, const Values& wanted, double tolerance = 1e-12) {
  ASSERT_EQ(got.size(), wanted.size());
  for (size_t i = 0; i < wanted.size(); ++i) EXPECT_NEAR(got[i], wanted[i], tolerance) << "element " << i;
}

// With all that an estimator may look at.
Rewarded rewarded(Values reward, Groups groups) {
  Rewarded r{reward, std::vector<int64_t>(reward.size(), 2), groups};
  r.scores = {std::move(reward)};
  r.greedy.assign(groups.size() - 1, 0.5);
  return r;
}

// The default of each kind, pass_at_k with groups of more than its k.
void each(const std::function<void(const std::string&, const std::function<Advantages(const Rewarded&)>&)>& test) {
  Kinds::each([&](auto method) {
    using Method = decltype(method);
    if constexpr (std::is_same_v<Method, PassAtK>) method.k = 1;
    test(Method::kKind, [method](const Rewarded& r) { return method.estimate(r); });
  });
}

TEST(Estimators, EmptyBatchesAndGroupsAreNoError) {
  each([](const std::string& kind, const auto& estimate) {
    EXPECT_TRUE(estimate(rewarded({}, {0})).value.empty()) << kind;
    EXPECT_EQ(estimate(rewarded({1, 0}, {0, 0, 2, 2})).value.size(), 2u) << kind;
  });
}

TEST(Estimators, LargestRewardsStayFinite) {
  each([](const std::string& kind, const auto& estimate) {
    for (const Values& rewards : {Values{0, 1e18, -1e18, 1}, Values{1e18, -1e18 * (1 - 1e-6), 0, 0}}) {
      const Advantages a = estimate(rewarded(rewards, {0, 4}));
      for (const double x : a.value) EXPECT_TRUE(std::isfinite(static_cast<float>(x))) << kind;
      for (const double x : a.slope) EXPECT_TRUE(std::isfinite(static_cast<float>(x))) << kind;
    }
  });
}

TEST(Estimators, BadInputIsNamed) {
  each([](const std::string& kind, const auto& estimate) {
    const auto expect = [&](Rewarded r, const std::string& text) {
      try {
        estimate(r);
        ADD_FAILURE() << kind << ": nothing was thrown, wanted: " << text;
      } catch (const std::invalid_argument& e) {
        EXPECT_NE(std::string(e.what()).find(text), std::string::npos) << kind << ": " << e.what();
      }
    };
    expect(rewarded({1, NAN}, {0, 2}), "reward 1 is not finite (nan)");
    expect(rewarded({1, 1e19}, {0, 2}), "at most 1e18 in size: give the reward a smaller weight");
    expect(rewarded({1, 0}, {0, 1}), "groups do not cut 2 rewards");
    Rewarded r = rewarded({1, 0}, {0, 2});
    r.length = {1, -1};
    expect(r, "length 1 is -1");
    r.length = {1};
    expect(r, "1 lengths for 2 rewards");
  });
}

// By how much the value grows with the own reward where baseline and scale are held.
TEST(Estimators, Slopes) {
  const Rewarded r = rewarded({0, 1, 1, 2, 5, 5, 3}, {0, 4, 6, 7});
  EXPECT_EQ(Remax().estimate(r).slope, Values(7, 1));
  EXPECT_EQ(MaxRl().estimate(r).slope, (Values{1, 1, 1, 1, 0.2, 0.2, 1}));
  EXPECT_EQ(MaxRl().estimate(rewarded({0, 0, -1, 1}, {0, 2, 4})).slope, Values(4, 0));
  const double scale = 1 / (std::sqrt(2.0 / 3) + 1e-6), one = 1 / (1 + 1e-6);
  expect_near(Quantile().estimate(r).slope, {scale, scale, scale, scale, one, one, one});
  const Advantages whitened = ReinforcePlusPlus().estimate(r);
  expect_near(whitened.slope, Values(7, whitened.value[1] - whitened.value[0]));
  EXPECT_EQ(Gdpo().estimate(r).slope, Values(7, 0));
  // Of two of 0, 1, 1, 2, the given one is the largest in 0, 2, 2 and 3 of 3 pairs (the 1s may be either of two ranks).
  const Advantages pairs = PassAtK{.k = 2, .eps = 0}.estimate(rewarded({0, 1, 1, 2}, {0, 4}));
  expect_near(pairs.slope, {0, 2.0 / 3 / std::sqrt(0.25), 2.0 / 3 / std::sqrt(0.25), 1 / std::sqrt(0.25)});
  const Advantages best = PassAtK{.form = "best"}.estimate(rewarded({0, 1, 1, 2}, {0, 4}));
  expect_near(best.slope, {0, 0, 0, scale});
}

TEST(Gdpo, WhatOtherMethodsAddedIsOneMoreReward) {
  Rewarded r = rewarded({1, 0, 1, 0.5}, {0, 4});
  r.scores = {{1, 0, 1, 0}, {0, 0, 0, 0.5}};
  const Values alone = Gdpo().estimate(r).value;
  Rewarded penalised = r;
  penalised.reward[2] -= 0.25;  // an overlong penalty
  const Values with = Gdpo().estimate(penalised).value;
  EXPECT_LT(with[2], alone[2]);
  r.scores.push_back({0, 0, -0.25, 0});
  r.reward[2] -= 0.25;
  expect_near(with, Gdpo().estimate(r).value);
  // Weights are of the scores; the rest has 1.
  Gdpo weighted;
  weighted.weights = {1, 1};
  EXPECT_EQ(weighted.estimate(penalised).value, with);
  // What rounding leaves of a sum is no reward.
  Rewarded rounded = rewarded({0.1 + 0.2, 0.7 + 0.1 + 0.2, 0.3}, {0, 3});
  rounded.scores = {{0.1, 0.7, 0.1}, {0.2, 0.3, 0.2}};
  Rewarded exact = rounded;
  for (size_t i = 0; i < 3; ++i) exact.reward[i] = exact.scores[0][i] + exact.scores[1][i];
  EXPECT_EQ(Gdpo().estimate(rounded).value, Gdpo().estimate(exact).value);
}

// a = Σ w (s − mean) / (std + eps): the rewards' own weights, which weights of its own replace.
TEST(Gdpo, TheRewardsOwnWeightsCount) {
  Rewarded r = rewarded({2, 0.5, 2, 0}, {0, 4});  // 2 · the first + 0.5 · the second
  r.scores = {{1, 0, 1, 0}, {0, 1, 0, 0}};
  Rewarded plain = rewarded({1, 1, 1, 0}, {0, 4});
  plain.scores = r.scores;
  r.weights = {2, 0.5};
  Gdpo given, ones;
  given.weights = {2, 0.5}, ones.weights = {1, 1};
  const Values own = Gdpo().estimate(r).value;
  expect_near(own, given.estimate(plain).value);
  expect_near(ones.estimate(r).value, Gdpo().estimate(plain).value);
  EXPECT_GT(std::abs(own[1] - Gdpo().estimate(plain).value[1]), 0.1);
  // TRL 1.16.0 normalises the score and then multiplies: a weight below 0 turns it round, and 0 takes it away.
  r.weights = {2, -0.5}, r.reward = {2, -0.5, 2, 0};
  EXPECT_LT(Gdpo().estimate(r).value[1], Gdpo().estimate(r).value[3]);
  r.weights = {2, 0}, r.reward = {2, 0, 2, 0};
  Rewarded first = rewarded({1, 0, 1, 0}, {0, 4});
  first.scores = {r.scores[0]};
  first.weights = {2}, first.reward = r.reward;
  expect_near(Gdpo().estimate(r).value, Gdpo().estimate(first).value);
}

TEST(Gdpo, ScoresAreChecked) {
  const auto expect = [](const Gdpo& method, const Rewarded& r, const std::string& text) {
    try {
      method.estimate(r);
      ADD_FAILURE() << "nothing was thrown, wanted: " << text;
    } catch (const std::invalid_argument& e) {
      EXPECT_NE(std::string(e.what()).find(text), std::string::npos) << e.what();
    }
  };
  Rewarded r = rewarded({1, 0}, {0, 2});
  r.scores = {{1, 0}, {1}};
  expect({}, r, "reward 1 has 1 scores for 2 completions; wanted one each");
  r.scores = {{1, std::numeric_limits<double>::infinity()}};
  expect({}, r, "score of reward 0 of completion 1 is not finite (inf)");
  r.scores = {{1, 0}};
  Gdpo two;
  two.weights = {1, 2};
  expect(two, r, "2 weights for 1 rewards; wanted one each, or none");
}

TEST(Remax, WantsAGreedyRewardAGroup) {
  Rewarded r = rewarded({1, 0, 1}, {0, 2, 3});
  r.greedy = {1};
  EXPECT_THROW(Remax().estimate(r), std::invalid_argument);
  r.greedy = {1, NAN};
  EXPECT_THROW(Remax().estimate(r), std::invalid_argument);
}

TEST(PassAtK, WantsMoreThanK) {
  EXPECT_NO_THROW(
      PassAtK{.k = 4}.estimate(rewarded({1, 0, 0, 1, 0, 3}, {0, 5, 6})));  // one alone has no baseline anyway
  EXPECT_THROW(PassAtK{.k = 4}.estimate(rewarded({1, 0, 0, 1, 0, 3}, {0, 4, 6})), std::invalid_argument);
}

TEST(OptimalTokenBaseline, FromCompletions) {
  Completions c;
  c.mask = torch::ones({2, 3}, torch::kBool);
  c.logprob = torch::full({2, 3}, std::log(0.5f));
  c.sum_p2 = torch::full({2, 3}, 0.5f);
  c.group = torch::zeros({2}, torch::kInt64);
  c.reward = torch::tensor({1.0, 0.0}, torch::kFloat64);
  const Tensor wanted = torch::tensor({0.5f, -0.5f}).unsqueeze(1).expand({2, 3});
  EXPECT_LT((OptimalTokenBaseline().estimate_tokens(c) - wanted).abs().max().item<float>(), 1e-6);
  EXPECT_TRUE(OptimalTokenBaseline::kNeedsSumP2 && Remax::kNeedsGreedy);
}

}  // namespace ISENTROPE_UNIT
}  // namespace isentrope::methods
