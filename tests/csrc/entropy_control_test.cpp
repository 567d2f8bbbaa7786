// What controllers of the entropy set for an update, and what they learn from one.
#include "csrc/methods/entropy_control.h"

#include <gtest/gtest.h>

#include <cmath>
#include <stdexcept>

namespace isentrope::methods {
namespace ISENTROPE_UNIT {

// Coefficients or factors of the updates, whose entropies are told after each.
template <class One, class Of>
std::vector<double> over(const One& control, const std::vector<double>& entropies, Of of) {
  Tensor state;
  if constexpr (requires { control.initial_state(); }) state = control.initial_state();
  std::map<std::string, double> stats;
  std::vector<double> out;
  for (size_t step = 0; step < entropies.size(); ++step) {
    out.push_back(of(control.at(static_cast<int64_t>(step), state)));
    Context context{state, stats};
    if constexpr (requires { control.observe(stats, context); })
      control.observe({{"entropy/mean", entropies[step]}}, context);
  }
  return out;
}
double coef(const Control& c) { return c.entropy_coef; }

void expect_near(const std::vector<double>& got, const std::vector<double>& wanted) {
  ASSERT_EQ(got.size(), wanted.size());
  for (size_t i = 0; i < got.size(); ++i) EXPECT_NEAR(got[i], wanted[i], 1e-12) << i;
}

const std::vector<double> kFive(5, 0.1);

TEST(EntropyControl, AEntGoesByHowFarTheEntropyIsOutsideItsBand) {
  const AEnt aent{.low = 0.2, .high = 0.4, .coef = 0.01, .rate = 0.1, .least = 0.001, .most = 0.02, .warmup = 1};
  // The first update changes nothing; 0.1 is 0.1 below, 0.3 inside, 0.5 0.1 above, 9 far above.
  expect_near(over(aent, {0.0, 0.1, 0.3, 0.5, 9, 9}, coef), {0.01, 0.01, 0.02, 0.02, 0.01, 0.001});
  std::map<std::string, double> stats;
  Tensor state = aent.initial_state();
  Context context{state, stats};
  aent.observe({}, context);
  EXPECT_EQ(state[1].item<double>(), 0) << "an update without a token counts as none";
  aent.observe({{"entropy/mean", 5.0}, {"entropy/kept", 0.3}}, context);
  aent.observe({{"entropy/mean", 5.0}, {"entropy/kept", 0.3}}, context);
  EXPECT_EQ(aent.at(0, state).entropy_coef, 0.01) << "not of what the bonus is about";
}

TEST(EntropyControl, SirenTakesTheFirstUpdateForItsAnchor) {
  std::map<std::string, double> stats;
  const Siren siren{.coef = 0.3, .share = 0.4};
  Tensor state = siren.initial_state();
  Context context{state, stats};
  EXPECT_TRUE(std::isnan(state.item<double>()));
  siren.observe({{"entropy/mean", 1.0}}, context);
  EXPECT_TRUE(std::isnan(state.item<double>()));
  siren.observe({{"entropy/peak", 2.0}}, context);
  siren.observe({{"entropy/peak", 3.0}}, context);
  EXPECT_EQ(state.item<double>(), 2);
  EXPECT_EQ(Siren{.anchor = 0.7}.initial_state().item<double>(), 0.7);
  EXPECT_TRUE(siren.at(5, state).weighs);
  EXPECT_FALSE(Siren{.coef = 0}.at(5, state).weighs);
}

Update four_tokens() {
  Update u;
  u.mask = torch::ones({2, 2}, torch::kBool);
  u.logprob = torch::tensor({-0.5f, -2.0f, -1.0f, -1.0f}).view({2, 2});
  u.advantage = torch::tensor({1.0f, 1.0f, -1.0f, -1.0f}).view({2, 2});
  u.entropy = u.kept = torch::full({2, 2}, 0.5f);
  return u;
}

TEST(EntropyControl, TeaWeighsWhereLogprobAndAdvantageGoTogether) {
  const Update u = four_tokens();
  std::map<std::string, double> stats;
  Tensor state;
  Context context{state, stats};
  const Tea tea{.coef = 0.3, .alpha = 2, .most = 1.5};
  EXPECT_TRUE(tea.at(0, state).weighs);
  EXPECT_FALSE(Tea{.coef = 0}.at(0, state).weighs);
  const Bonus bonus = tea.bonus(u, 0, context);
  EXPECT_EQ(bonus.coef, 0.3);
  EXPECT_EQ(bonus.weight.scalar_type(), torch::kFloat);
  // Of the first row c = .625 and −.875, softmax .817574 and .182426; of the second alike.
  EXPECT_NEAR(bonus.weight[0][0].item<double>(), 1.5, 1e-6);
  EXPECT_NEAR(bonus.weight[0][1].item<double>(), 2 * 0.182426, 1e-5);
  EXPECT_NEAR(bonus.weight[1][0].item<double>(), 1, 1e-6);
  EXPECT_NEAR(stats.at("tea/weight"), (1.5 + 2 * 0.182426 + 2) / 4, 1e-5);
  EXPECT_EQ(stats.at("tea/cut"), 0.25);
}

TEST(EntropyControl, CeehWeighsHardPromptsAndGoesOut) {
  Update u = four_tokens();
  std::map<std::string, double> stats;
  Tensor state;
  Context context{state, stats};
  EXPECT_THROW(CeehEntropy().bonus(u, 0, context), std::invalid_argument);
  u.hard = torch::tensor({true, false});
  const CeehEntropy linear{.coef = 0.2, .factor = 5, .scale = "linear", .steps = 4};
  const Bonus half = linear.bonus(u, 2, context);
  EXPECT_DOUBLE_EQ(half.coef, 0.1);
  EXPECT_NEAR(half.weight[0][0].item<double>(), 5.0 / 3, 1e-6);
  EXPECT_NEAR(half.weight[1][1].item<double>(), 1.0 / 3, 1e-6);
  EXPECT_EQ(linear.bonus(u, 4, context).coef, 0);
  // retain: the others keep the bonus of coef, and hard ones lose what they have beyond it.
  CeehEntropy retain = linear;
  retain.retain = true;
  EXPECT_EQ(retain.bonus(u, 2, context).coef, 0.2);
  EXPECT_NEAR(retain.bonus(u, 2, context).weight[0][0].item<double>(), 1.5, 1e-6);  // w = 3, 1
  EXPECT_EQ(retain.bonus(u, 9, context).weight[0][0].item<double>(), 1);
}

TEST(EntropyControl, Schedules) {
  expect_near(over(ConstantEntropy{.coef = 0.3}, kFive, coef), {0.3, 0.3, 0.3, 0.3, 0.3});
  expect_near(over(ScheduledEntropy{.from = 0.4, .to = 0, .steps = 4}, kFive, coef), {0.4, 0.3, 0.2, 0.1, 0});
  const double quarter = 0.4 * (1 + std::sqrt(0.5)) / 2;
  expect_near(over(ScheduledEntropy{.shape = "cosine", .from = 0.4, .to = 0, .steps = 4}, kFive, coef),
              {0.4, quarter, 0.2, 0.4 - quarter, 0});
  expect_near(over(TableOfEntropy{.steps = {0, 2, 3}, .coefs = {0.1, 0.5, 0}}, kFive, coef), {0.1, 0.1, 0.5, 0, 0});
  EXPECT_EQ(TableOfEntropy().problem(), "");
  EXPECT_NE((TableOfEntropy{.steps = {1}}.problem()), "");
  EXPECT_NE((TableOfEntropy{.steps = {0, 0}, .coefs = {1, 2}}.problem()), "");
  EXPECT_NE((TableOfEntropy{.steps = {0, 1}}.problem()), "");
}

TEST(EntropyControl, AdaptiveIsInForceBelowTheTarget) {
  // Rises behind 0.1 and 0.2, falls behind 0.5 and is out of force, and rises again.
  expect_near(over(AdaptiveEntropy{.coef = 0.01}, {0.1, 0.2, 0.5, 0.1, 0.1}, coef), {0.01, 0.015, 0.02, 0, 0.02});
  EXPECT_NE((AdaptiveEntropy{.coef = 2}.problem()), "");
}

TEST(EntropyControl, EntroPicWeighsTheSigns) {
  const EntroPic control{.target = 0.3};
  const auto positive = [](const Control& c) { return c.positive; };
  const auto sum = [](const Control& c) { return c.positive + c.negative; };
  expect_near(over(control, {0.5, 0.1, 9, 0.3, 0.3}, positive), {1, 1.202, 0.8, 2, 1.087});
  expect_near(over(control, kFive, sum), {2, 2, 2, 2, 2});
}

TEST(EntropyControl, BandTakesOneSide) {
  const EntropyBand control{.from = {0.6, 0.7}, .to = {0.2, 0.3}, .steps = 4};  // at step 2: 0.4 to 0.5
  const auto sides = [](const Control& c) { return 2 * c.positive + c.negative; };
  // Unknown, within; then above, below, below of a band that has come down, within.
  expect_near(over(control, {0.9, 0.3, 0.25, 0.25, 0.25}, sides), {3, 2, 1, 1, 3});
  EXPECT_NE((EntropyBand{.from = {0.7, 0.6}}.problem()), "");
  EXPECT_NE((EntropyBand{.to = {0.7}}.problem()), "");
}

}  // namespace ISENTROPE_UNIT
}  // namespace isentrope::methods
