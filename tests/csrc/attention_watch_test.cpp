// What is watched of attention, its alarm, and the regulariser, on tables written by hand.
#include "csrc/train/attention_watch.h"

#include <gtest/gtest.h>

#include <cmath>

#include "csrc/model/entropy_bound.h"
#include "csrc/train/attention_entropy.h"

namespace isentrope::train {
namespace ISENTROPE_UNIT {

using torch::Tensor;

// One layer, one sequence beside one that is padded after two tokens; entropies [B, H, T] of 4 positions, 2 heads.
model::AttentionRecord record_of(const Tensor& entropy, int64_t window = 0) {
  return {.entropy = {entropy}, .max_logit = {entropy * 10}, .window = {window}, .bound = {}};
}

const Tensor kRows = torch::tensor({true, true, true, true, true, true, false, false}).view({2, 4});

Tensor entropies() {
  return torch::tensor({0.0, 0.5, 1.0, 1.2, 0.0, 0.1, 0.2, 0.3, 0.0, 0.6, 9.0, 9.0, 0.0, 0.3, 9.0, 9.0},
                       torch::kFloat32)
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

// Logits straight from keys: queries are unit vectors, so that row t has the logits k[:, t] / √8.
TEST(EntropyBound, IsBelowTheEntropyAndEqualToItWhereOneLogitStandsOut) {
  const int64_t B = 2, H = 4, T = 131;  // more than one block of queries
  for (const double spread : {0.0, 0.5, 3.0, 30.0, 1e20})
    for (const int option : {0, 1, 2, 3}) {
      const Tensor q = torch::randn({B, H, T, 8}) * spread, k = torch::randn({B, 2, T, 8});
      ops::EntropyAttentionOptions options;
      if (option == 1) options.window = 7;
      if (option == 2) options.softcap = 2.0;
      if (option == 3) options.temperature = torch::rand({H, T}) + 0.5;
      const Tensor entropy = ops::entropy_attention(q, k, k, options).entropy,
                   bound = model::entropy_bound(q, k, options);
      ASSERT_EQ(bound.sizes(), entropy.sizes());
      // Rounding of the entropy itself, a sum of at most 131 terms below log 131.
      EXPECT_LE((bound - entropy).max().item<double>(), 1e-5) << spread << " " << option;
      EXPECT_GE(bound.min().item<double>(), 0) << "also where the spread of the logits overflows";
      EXPECT_TRUE(spread > 0 || torch::allclose(bound, entropy, 1e-5, 1e-6)) << "equal logits have the entropy log n";
    }

  // One logit of a, all others 0: the row that the bound is made from.
  for (const double a : {0.5, 4.0, 12.0}) {
    const Tensor q = torch::zeros({1, 1, T, 8}), k = torch::zeros({1, 1, T, 8});
    q.select(-1, 0).fill_(std::sqrt(8.0));
    k[0][0][0][0] = a;
    const Tensor entropy = ops::entropy_attention(q, k, k).entropy, bound = model::entropy_bound(q, k, {});
    EXPECT_TRUE(torch::allclose(bound, entropy, 1e-4, 1e-5)) << a;  // exp amplifies the rounding of r ≤ 12 by 12
  }
}

TEST(AttentionWatch, TellsTheBoundWhereItIsAskedFor) {
  AttentionWatch watch(/*with_bound=*/true);
  model::AttentionRecord record = watch.record();
  ASSERT_TRUE(record.with_bound);
  record.entropy = {entropies()};
  record.max_logit = {entropies()};
  record.window = {0};
  record.bound = {entropies() / 6};
  watch.add(record, kRows);
  const AttentionStatistics s = watch.statistics();
  EXPECT_NEAR(s.bound[0][0], s.normalized[0][0] / 6, 1e-6);
  // Of the first head's rows bound / log n is 0.12, 0.15, 0.14 and 0.14, of the second's 0.02, 0.03, 0.04 and 0.07.
  EXPECT_EQ(s.certified, (HeadTable{{1.0, 0.0}}));
  EXPECT_TRUE(AttentionWatch().record().bound.empty());
}

// Of a layer whose entropies are defined and one whose are not, over two micro-batches; padding and its sequence are left out.
TEST(AttentionWatch, TellsStatesWhereTheyAreAskedFor) {
  EXPECT_FALSE(AttentionWatch(true).record().with_states);
  AttentionWatch watch(/*with_bound=*/false, /*with_states=*/true), cut(false, true);
  model::AttentionRecord record = watch.record();
  ASSERT_TRUE(record.with_states);
  const Tensor ranks = torch::tensor({1.0, 2.0, 3.0, 4.0}, torch::kFloat32).view({2, 2});
  const Tensor there = torch::tensor({true, true});
  record.states = {{0, entropies(), ranks, there}, {2, {}, ranks * 2, there}};
  watch.add(record, kRows);
  EXPECT_TRUE(watch.empty()) << "no layer has rows of a softmax";
  for (int64_t b = 0; b < 2; ++b) {
    record.states = {{0, entropies().slice(0, b, b + 1), ranks.slice(0, b, b + 1), there.slice(0, 0, 1)},
                     {2, {}, 2 * ranks.slice(0, b, b + 1), there.slice(0, 0, 1)}};
    cut.add(record, kRows.slice(0, b, b + 1));
  }
  for (const AttentionWatch* one : {&watch, &cut}) {
    const StateStatistics s = one->states();
    EXPECT_EQ(s.layers, (std::vector<int64_t>{0, 2}));
    EXPECT_NEAR(s.entropy[0][0], (0.5 + 1.0 + 1.2 + 0.6) / 4, 1e-6);
    EXPECT_NEAR(s.normalized[0][1],
                (0.1 / std::log(2.0) + 0.2 / std::log(3.0) + 0.3 / std::log(4.0) + 0.3 / std::log(2.0)) / 4, 1e-6);
    EXPECT_TRUE(s.entropy[1].empty());
    EXPECT_EQ(s.rank, (HeadTable{{2, 3}, {4, 6}}));
  }
  AttentionWatch padded(false, true);
  record.states = {{0, {}, ranks, torch::tensor({true, false})}};
  padded.add(record, kRows);
  EXPECT_EQ(padded.states().rank, (HeadTable{{1, 2}}));
}

AttentionStatistics normalized(std::vector<double> heads) {
  AttentionStatistics s;
  s.normalized = {std::move(heads)};
  return s;
}

TEST(AttentionAlarm, TellsCollapseAndFalls) {
  AttentionAlarm alarm;
  EXPECT_TRUE(alarm.look(10, normalized({0.8, 0.8, 0.8, 0.8, 0.8})).empty());
  EXPECT_TRUE(alarm.look(20, normalized({0.08, 0.8, 0.8, 0.8, 0.8})).empty()) << "one of five is below a quarter";
  EXPECT_TRUE(alarm.look(25, normalized({0.08, 0.15, 0.3, 0.3, 0.3})).empty())
      << "a fall to 0.15 is what learning looks like";
  EXPECT_EQ(
      alarm.look(30, normalized({0.08, 0.09, 0.8, 0.8, 0.8})),
      std::vector<std::string>{
          "layer 0: 2 of 5 heads lost more than half of their entropy within 100 steps (entropy / log n below 0.1)"});
  EXPECT_TRUE(alarm.look(150, normalized({0.08, 0.09, 0.8, 0.8, 0.8})).empty()) << "what was long ago is forgotten";
  EXPECT_EQ(alarm.look(160, normalized({0.04, 0.09, 0.8, 0.8, 0.8})),
            std::vector<std::string>{"layer 0: 1 of 5 heads have collapsed (entropy / log n below 0.05)"});
}

TEST(AttentionAlarm, GoesOnFromItsState) {
  AttentionAlarm alarm, resumed;
  EXPECT_TRUE(alarm.state().empty());
  alarm.look(10, normalized({0.8, 0.9}));
  alarm.look(20, normalized({0.7, 0.9}));
  resumed.restore(alarm.state());
  const AttentionStatistics fallen = normalized({0.08, 0.9});
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
        AttentionEntropyConfig config{
            .coef = 0.7, .threshold = 0.4, .tolerance = tolerance, .reduction = reduction, .maximum = maximum};
        AttentionEntropy attention(config, 1, 2, torch::kCPU);
        const Tensor H = entropies().requires_grad_();
        const Tensor penalty = attention.penalty(record_of(H), kRows);
        EXPECT_NEAR(penalty.item<double>(), expected_penalty(config, H.detach(), {0.4, 0.4}), 1e-5)
            << reduction << " " << maximum;
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

}  // namespace ISENTROPE_UNIT
}  // namespace isentrope::train
