// What is watched of attention, its alarm, and the regulariser, on tables written by hand.
#include "csrc/train/attention_watch.h"

#include <gtest/gtest.h>

#include <cmath>

#include "csrc/train/attention_entropy.h"

namespace isentrope::train {
namespace {

using torch::Tensor;

// One layer, one sequence beside one that is padded after two tokens; entropies [B, H, T] of 4 positions, 2 heads.
model::AttentionRecord record_of(const Tensor& entropy, int64_t window = 0) {
  return {{entropy}, {entropy * 10}, window};
}

const Tensor kRows = torch::tensor({true, true, true, true, true, true, false, false}).view({2, 4});

Tensor entropies() {
  return torch::tensor({0.0, 0.5, 1.0, 1.2, 0.0, 0.1, 0.2, 0.3, 0.0, 0.6, 9.0, 9.0, 0.0, 0.3, 9.0, 9.0}, torch::kFloat32)
      .view({2, 2, 4});
}

TEST(AttentionWatch, MeansLeaveOutPaddingAndRowsOfOneKey) {
  AttentionWatch watch;
  EXPECT_TRUE(watch.empty());
  watch.add(record_of(entropies()), kRows);
  const AttentionStatistics s = watch.statistics();
  const double two = std::log(2.0), three = std::log(3.0), four = std::log(4.0);
  EXPECT_NEAR(s.entropy[0][0], (0.5 + 1.0 + 1.2 + 0.6) / 4, 1e-6);
  EXPECT_NEAR(s.entropy[0][1], (0.1 + 0.2 + 0.3 + 0.3) / 4, 1e-6);
  EXPECT_NEAR(s.normalized[0][0], (0.5 / two + 1.0 / three + 1.2 / four + 0.6 / two) / 4, 1e-6);
  EXPECT_NEAR(s.normalized[0][1], (0.1 / two + 0.2 / three + 0.3 / four + 0.3 / two) / 4, 1e-6);
  EXPECT_NEAR(s.max_logit[0][0], 12, 1e-5);
  EXPECT_NEAR(s.max_logit[0][1], 3, 1e-5);
  EXPECT_EQ(s.collapsed, 0);
  EXPECT_EQ(s.overloaded, 0.5);  // the first head has the largest entropy, the second less than three quarters of it
}

TEST(AttentionWatch, MicroBatchesAddUpAndWindowsBoundTheKeys) {
  AttentionWatch whole, cut;
  const Tensor H = entropies();
  whole.add(record_of(H, 2), kRows);
  for (int64_t b = 0; b < 2; ++b) cut.add(record_of(H.slice(0, b, b + 1), 2), kRows.slice(0, b, b + 1));
  for (int64_t h = 0; h < 2; ++h) {
    EXPECT_NEAR(whole.statistics().normalized[0][h], whole.statistics().entropy[0][h] / std::log(2.0), 1e-12);
    EXPECT_NEAR(cut.statistics().normalized[0][h], whole.statistics().normalized[0][h], 1e-12);
    EXPECT_EQ(cut.statistics().max_logit[0][h], whole.statistics().max_logit[0][h]);
  }
}

AttentionStatistics normalized(std::vector<double> heads) {
  AttentionStatistics s;
  s.normalized = {std::move(heads)};
  return s;
}

TEST(AttentionAlarm, TellsCollapseAndFalls) {
  AttentionAlarm alarm;
  EXPECT_TRUE(alarm.look(10, normalized({0.8, 0.8, 0.8, 0.8, 0.8})).empty());
  EXPECT_TRUE(alarm.look(20, normalized({0.1, 0.8, 0.8, 0.8, 0.8})).empty()) << "one of five is below a quarter";
  EXPECT_TRUE(alarm.look(25, normalized({0.1, 0.3, 0.3, 0.3, 0.3})).empty()) << "a fall to 0.3 is what learning looks like";
  EXPECT_EQ(alarm.look(30, normalized({0.1, 0.19, 0.8, 0.8, 0.8})),
            std::vector<std::string>{
                "layer 0: 2 of 5 heads lost more than half of their entropy within 100 steps (entropy / log n below 0.2)"});
  EXPECT_TRUE(alarm.look(150, normalized({0.1, 0.19, 0.8, 0.8, 0.8})).empty()) << "what was long ago is forgotten";
  EXPECT_EQ(alarm.look(160, normalized({0.04, 0.19, 0.8, 0.8, 0.8})),
            std::vector<std::string>{"layer 0: 1 of 5 heads have collapsed (entropy / log n below 0.05)"});
}

TEST(AttentionAlarm, GoesOnFromItsState) {
  AttentionAlarm alarm, resumed;
  EXPECT_TRUE(alarm.state().empty());
  alarm.look(10, normalized({0.8, 0.9}));
  alarm.look(20, normalized({0.7, 0.9}));
  resumed.restore(alarm.state());
  const AttentionStatistics fallen = normalized({0.1, 0.9});
  EXPECT_EQ(resumed.look(30, fallen), alarm.look(30, fallen));
  EXPECT_TRUE(torch::equal(resumed.state().at("attention_alarm"), alarm.state().at("attention_alarm")));
}

// The penalty by its formula, one head after the other.
double expected_penalty(const AttentionEntropyConfig& c, const Tensor& H, const std::vector<double>& theta) {
  const auto h = H.accessor<float, 3>();
  double total = 0;
  for (int64_t head = 0; head < 2; ++head) {
    double entropy = 0, most = 0, rows = 0, sum = 0;
    for (int64_t b = 0; b < 2; ++b)
      for (int64_t t = 0; t < 4; ++t) {
        const bool log_n = c.maximum == "log_n";
        if (!kRows[b][t].item<bool>() || (log_n && t == 0)) continue;
        const double M = std::log(log_n ? t + 1.0 : 4.0), delta = h[b][head][t] - theta[head] * M;
        entropy += h[b][head][t], most += M, rows += 1;
        if (std::abs(delta) > c.tolerance * M) sum += delta * delta;
      }
    const double delta = (entropy - theta[head] * most) / rows;
    total += c.reduction == "sum" ? sum : std::abs(delta) > c.tolerance * most / rows ? delta * delta : 0;
  }
  return c.coef * total / 2;
}

TEST(AttentionEntropy, PenaltyIsThatOfItsFormula) {
  for (const char* reduction : {"mean", "sum"})
    for (const char* maximum : {"log_n", "log_t"})
      for (const double tolerance : {0.0, 0.2, 5.0}) {
        AttentionEntropyConfig config{.coef = 0.7, .threshold = 0.4, .tolerance = tolerance, .reduction = reduction, .maximum = maximum};
        AttentionEntropy attention(config, 1, 2, torch::kCPU);
        const Tensor H = entropies().requires_grad_();
        const Tensor penalty = attention.penalty(record_of(H), kRows);
        EXPECT_NEAR(penalty.item<double>(), expected_penalty(config, H.detach(), {0.4, 0.4}), 1e-5) << reduction << " " << maximum;
        penalty.backward();
        ASSERT_TRUE(attention.threshold().grad().defined());
        EXPECT_EQ(attention.threshold().grad().abs().sum().item<double>() > 0, tolerance < 1);
        EXPECT_EQ(H.grad()[1].slice(1, 2).abs().sum().item<double>(), 0) << "padding is punished";
      }
}

TEST(AttentionEntropy, NothingIsMadeWhereNothingIsPunished) {
  const AttentionEntropy attention({}, 3, 2, torch::kCPU);
  EXPECT_FALSE(attention.regularises());
  EXPECT_FALSE(attention.threshold().defined());
  EXPECT_FALSE(AttentionEntropy({.coef = 1, .learn_threshold = false}, 3, 2, torch::kCPU).threshold().requires_grad());
}

}  // namespace
}  // namespace isentrope::train
