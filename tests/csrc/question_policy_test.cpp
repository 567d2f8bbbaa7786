#include "csrc/rl/question_policy.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "csrc/data/diagnosis.h"
#include "csrc/rl/environment_config.h"
#include "tests/csrc/message.h"

namespace isentrope::rl {
namespace ISENTROPE_UNIT {

constexpr double kAll = std::numeric_limits<double>::infinity();
const double kBit = std::log(2.0);

// ---- golden -----------------------------------------------------------------------------------------------------------

TEST(QuestionPolicy, Thresholds) {
  const std::vector<double> scores{-.20, -.91, -.33, -.66, -.02, -.60, -.41, -.85, -.11, -.72};
  EXPECT_EQ(conformal_threshold(scores, 0.05), kAll) << "ten conversations promise no 95 %";
  EXPECT_EQ(conformal_threshold(scores, 0.1), -.02);
  EXPECT_EQ(conformal_threshold(scores, 0.2), -.11);
  EXPECT_EQ(conformal_threshold(scores, 0.3), -.20);
  EXPECT_EQ(conformal_threshold(scores, 0.05, /*released=*/true), -.02);
  EXPECT_EQ(conformal_threshold({-.5}, 0.5), -.5) << "(1 + 1) · ½ is 1";
  EXPECT_EQ(conformal_threshold({-.5}, 0.4), kAll);
}

TEST(QuestionPolicy, Bounds) {
  const auto mean_log = [](const std::vector<double>& sizes) {
    double sum = 0;
    for (const double size : sizes) sum += std::log(size);
    return sum / static_cast<double>(sizes.size());
  };
  const double covered = mean_log({1, 2, 2, 4, 4, 8, 1}), uncovered = mean_log({8 - 2});
  EXPECT_NEAR(conformal_bound(.1, .1 - 1.0 / 9, covered, uncovered) / kBit, 2.027492, 5e-7);
  EXPECT_NEAR(conformal_bound(.1, .1, mean_log({1}), 0) / kBit, 0.468996, 5e-7);
  EXPECT_NEAR(conformal_bound(.1, .1, mean_log({20}), 0) / kBit, 0.468996 + 0.9 * std::log2(20.0), 5e-7);
}

TEST(QuestionPolicy, SetsAndTempers) {
  EXPECT_EQ(conformal_set({.5, .3, .15, .05}, -.15), (std::vector<size_t>{0, 1, 2}));
  EXPECT_EQ(conformal_set({.5, .3, .15, .05}, kAll).size(), 4u);
  EXPECT_TRUE(conformal_set({.5, .5}, -.6).empty());
  const auto p = tempered({.8, .2, 0}, 2);
  EXPECT_NEAR(p[0], 16.0 / 17, 1e-15);
  EXPECT_NEAR(p[1], 1.0 / 17, 1e-15);
  EXPECT_EQ(p[2], 0);
}

// ---- conversations ----------------------------------------------------------------------------------------------------

// 16 objects, 20 binary attributes, 10 % of the answers wrong; a table a conversation.
data::DiagnosisTask noisy_table() {
  data::DiagnosisTask task;
  task.diseases = 16;
  task.findings = 20;
  task.generator = "signs";
  task.table = "drawn";
  return task;
}

std::vector<QuestionTask> conversations(const data::DiagnosisTask& task, size_t count, uint64_t seed) {
  const auto environment = Diagnosis().make();
  std::vector<QuestionTask> all;
  for (size_t i = 0; i < count; ++i) {
    data::Stream stream(seed, data::Purpose::example, i);
    const data::Example example = task.draw(stream, nullptr);
    QuestionTask one{.table = data::diagnosis_table(example.columns)};
    one.hidden = one.table.find(example.answer);
    one.episode = environment->reset(example, seed * 1000003 + i, nullptr);
    all.push_back(std::move(one));
  }
  return all;
}

struct Told {
  double right = 0, covered = 0, size = 0, questions = 0, stopped_right = 0;
};

// Means over conversations behind all questions, and of where the rule stops.
Told told(const QuestionPolicy& policy, const data::DiagnosisTask& task, size_t count, int64_t questions,
          uint64_t seed) {
  const QuestionPlayer player(policy, conversations(task, static_cast<size_t>(policy.calibration), seed + 100),
                              questions, seed);
  Told sum;
  const auto n = static_cast<double>(count);
  uint64_t number = 0;
  for (QuestionTask& one : conversations(task, count, seed)) {
    const QuestionRecord record = player.play(one, number++);
    const auto last = static_cast<size_t>(questions);
    sum.right += record.right[last] / n;
    sum.covered += record.covered[last] / n;
    sum.size += record.size[last] / n;
    sum.questions += static_cast<double>(record.stopped) / n;
    sum.stopped_right += record.right[record.stopped] / n;
  }
  return sum;
}

// Questions that tell most, of equals the first: three tell eight objects apart.
TEST(QuestionPolicy, InformationAsksTheFewest) {
  const data::Example example{
      ":", "", "g",
      R"({"table":{"a":"100010","b":"011000","c":"000101","d":"010000","e":"000111","f":"010010","g":"010100","h":"011100"}})"};
  const auto open = [&] {
    QuestionTask task{.table = questions_table(example.columns, 0)};
    task.hidden = 6;
    task.episode = TwentyQuestions().make()->reset(example, 1, nullptr);
    return task;
  };
  {
    QuestionPolicy policy;
    policy.kind = "information";
    policy.labels = "belief";  // alike likely objects, of which some are ruled out, would ask otherwise
    policy.simulations = 0;
    policy.calibration = 40;
    std::vector<QuestionTask> calibration;
    for (int i = 0; i < 40; ++i) calibration.push_back(open());
    const QuestionPlayer player(policy, std::move(calibration), 5, 1);
    QuestionTask task = open();
    const QuestionRecord record = player.play(task, 0);
    EXPECT_EQ(std::vector<size_t>(record.asked.begin(), record.asked.begin() + 3), (std::vector<size_t>{3, 1, 2}));
    EXPECT_EQ(record.named[3], 6u);
    EXPECT_NEAR(record.entropy[3], 0, 1e-12);
    for (size_t t = 0; t < 3; ++t) EXPECT_NEAR(record.entropy[t], static_cast<double>(3 - t) * kBit, 1e-12);
    EXPECT_EQ(record.right.size(), 6u);
  }
}

// Of questions at random the sets have the object as often as promised, whatever the temper, and not much more often.
TEST(QuestionPolicy, CoverageIsAsPromised) {
  for (const double temper : {0.25, 1.0, 4.0}) {
    QuestionPolicy policy;
    policy.kind = "random";
    policy.temper = temper;
    double covered = 0;
    for (uint64_t seed = 1; seed <= 4; ++seed) covered += told(policy, noisy_table(), 500, 7, seed).covered / 4;
    // 2000 conversations, and four thresholds of 200 calibration conversations each.
    const double error = std::sqrt(0.09 / 2000 + 0.09 / 800);
    EXPECT_GT(covered, 0.9 - 3.5 * error) << temper;
    EXPECT_LT(covered, 0.9 + 1.0 / 201 + 3.5 * error) << temper;
  }
}

// Where probabilities are calibrated information asks better, where they are too unsure the sets do, if questions are judged by draws of
// labels; judged exactly, information is better there too. Standard error of a difference about 0.015.
TEST(QuestionPolicy, SetsHelpWhereProbabilitiesAreTooUnsure) {
  const auto right = [](const std::string& kind, double temper, int64_t simulations) {
    QuestionPolicy policy;
    policy.kind = kind;
    policy.temper = temper;
    policy.simulations = simulations;
    double sum = 0;
    for (uint64_t seed = 1; seed <= 4; ++seed) sum += told(policy, noisy_table(), 250, 7, seed).right / 4;
    return sum;
  };
  EXPECT_LT(right("conformal", 1, 32), right("information", 1, 32) - 0.04);
  EXPECT_GT(right("conformal", 0.25, 32), right("information", 0.25, 32) + 0.04);
  EXPECT_LT(right("conformal", 0.25, 0), right("information", 0.25, 0));
}

// The power that is fitted undoes the temper, and the policy asks as one that is calibrated.
TEST(QuestionPolicy, ScalingUndoesTheTemper) {
  for (const double temper : {0.25, 4.0}) {
    QuestionPolicy policy;
    policy.temper = temper;
    policy.scale = true;
    policy.calibration = 400;
    const QuestionPlayer player(policy, conversations(noisy_table(), 400, 9), 7, 1);
    EXPECT_NEAR(player.power(), 1, 0.1) << temper;
  }
}

TEST(QuestionPolicy, StopsWhereOneIsLeftOrNothingChanges) {
  QuestionPolicy policy;
  policy.kind = "information";
  const auto all = told(policy, noisy_table(), 200, 15, 1);
  EXPECT_LT(all.questions, 14);
  EXPECT_GT(all.stopped_right, 0.6);
  const QuestionPlayer player(policy, conversations(noisy_table(), 200, 5), 15, 1);
  uint64_t number = 0;
  for (QuestionTask& one : conversations(noisy_table(), 100, 6)) {
    const QuestionRecord record = player.play(one, number++);
    for (size_t t = 0; t < record.stopped; ++t) EXPECT_NE(record.size[t], 1);
    const size_t t = record.stopped;
    EXPECT_TRUE(t == 15 || record.size[t] == 1 ||
                (t >= 3 && record.size[t] == record.size[t - 1] && record.size[t] == record.size[t - 3]));
  }
}

TEST(QuestionPolicy, DrawsAreOfTheirSeed) {
  QuestionPolicy policy;
  policy.simulations = 4;
  const auto asked = [&](uint64_t seed) {
    const QuestionPlayer player(policy, conversations(noisy_table(), 200, 5), 7, seed);
    auto tasks = conversations(noisy_table(), 1, 6);
    return player.play(tasks[0], 0).asked;
  };
  EXPECT_EQ(asked(1), asked(1));
  EXPECT_NE(asked(1), asked(2));
  expect_all(message([] { QuestionPlayer(QuestionPolicy(), {}, 3, 1); }), {"calibration", "one at least"});
}

}  // namespace ISENTROPE_UNIT
}  // namespace isentrope::rl
