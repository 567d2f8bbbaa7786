// Verifiable rewards: each kind, their sum, and what a wrong reward function gets.
#include "csrc/rl/reward.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <stdexcept>
#include <string>
#include <vector>

#include "tests/csrc/message.h"

namespace isentrope::rl {
namespace {

using data::Example;

double score(const RewardConfig& config, const std::string& completion, const Example& example) {
  return RewardSum({config}, ".")({example.prompt}, {completion}, {example}).total.at(0);
}

TEST(Reward, ExactComparesUpToTheStop) {
  const RewardConfig exact = {.kind = "exact"};
  EXPECT_EQ(score(exact, "42.", {"p", "42.", ""}), 1);
  EXPECT_EQ(score(exact, "42.", {"p", "42", ""}), 1);
  EXPECT_EQ(score(exact, "42.", {"p", "", "42"}), 1);
  EXPECT_EQ(score(exact, "42.9", {"p", "42.", ""}), 1);
  EXPECT_EQ(score(exact, "42", {"p", "42.", ""}), 0) << "not stopped";
  EXPECT_EQ(score(exact, "042.", {"p", "42.", ""}), 0);
  EXPECT_EQ(score(exact, ".", {"p", "42.", ""}), 0);
}

TEST(Reward, AnswerOfATraceIsItsEnd) {
  const RewardConfig answer;
  const Example example = {"a+5b+6c+6d-9e+4=", "", "21"};
  EXPECT_EQ(score(answer, "e+4b+6a+5:51c+6:12d-9:21A21.", example), 1);
  EXPECT_EQ(score(answer, "A21.", example), 1);
  EXPECT_EQ(score(answer, "anything A21.A99.", example), 1);
  EXPECT_EQ(score(answer, "A21", example), 0) << "not stopped";
  EXPECT_EQ(score(answer, "A12.", example), 0);
  EXPECT_EQ(score(answer, "A21A.", example), 0);
  EXPECT_EQ(score(answer, "A99.A21.", example), 0);
  EXPECT_EQ(score(answer, "21.", example), 0);
  EXPECT_EQ(score(answer, ".", example), 0);
  EXPECT_EQ(score(answer, "", example), 0);
}

TEST(Reward, AnswerByPatternComparesIntegers) {
  const RewardConfig answer = {.kind = "answer", .pattern = "= *([-+]?[0-9 ]+)"};
  EXPECT_EQ(score(answer, "x = 7.", {"p", "", "7"}), 1);
  EXPECT_EQ(score(answer, "x = 007.", {"p", "", " +7 "}), 1);
  EXPECT_EQ(score(answer, "x = 1 then = 7 .", {"p", "", "7"}), 1) << "the last match counts";
  EXPECT_EQ(score(answer, "x = 7 then = 1.", {"p", "", "7"}), 0);
  EXPECT_EQ(score(answer, "x = -0.", {"p", "", "0"}), 1);
  EXPECT_EQ(score(answer, "x = -7.", {"p", "", "7"}), 0);
  EXPECT_EQ(score(answer, "x = 123456789012345678901.", {"p", "", "123456789012345678901"}), 1);
  EXPECT_EQ(score(answer, "x = 123456789012345678902.", {"p", "", "123456789012345678901"}), 0);
  EXPECT_EQ(score(answer, "x = 1 2.", {"p", "", "12"}), 0) << "two integers are none";
  EXPECT_EQ(score(answer, "7.", {"p", "", "7"}), 0) << "no match";
  EXPECT_EQ(score(answer, "x = 7", {"p", "", "7"}), 0) << "not stopped";
  expect_all(message([&] {
               score(answer, "= 7.", {"the prompt", "", "seven"});
             }),
             {"seven", "the prompt", "not an integer"});
}

TEST(Reward, FormatMatchesTheWholeText) {
  const RewardConfig format = {.kind = "format", .pattern = "([a-e][+-][1-9])+:[0-9]{2}A[0-9]{2}"};
  const Example example = {"p", "", ""};
  EXPECT_EQ(score(format, "a+1b-1:00A00.", example), 1);
  EXPECT_EQ(score(format, "a+1b-1:00A00", example), 1) << "the form is right, though it has no end";
  EXPECT_EQ(score(format, "xa+1b-1:00A00.", example), 0);
  EXPECT_EQ(score(format, "a+1b-1:00A00x.", example), 0);
}

TEST(Reward, LengthFallsInAStraightLine) {
  const RewardConfig length = {.kind = "length", .weight = 2, .target = 3, .limit = 7};
  const Example example = {"p", "", ""};
  EXPECT_DOUBLE_EQ(score(length, ".", example), 2);
  EXPECT_DOUBLE_EQ(score(length, "123.", example), 2);
  EXPECT_DOUBLE_EQ(score(length, "1234.", example), 1.5);
  EXPECT_DOUBLE_EQ(score(length, "123456.", example), 0.5);
  EXPECT_DOUBLE_EQ(score(length, "1234567", example), 0);
  EXPECT_DOUBLE_EQ(score(length, "123456789", example), 0);
  EXPECT_DOUBLE_EQ(score(length, "ß∑😀.", example), 2) << "characters, not bytes";
}

TEST(RewardSum, WeighsAndReportsMeans) {
  int64_t calls = 0;
  const RewardFunction mine = [&](const auto& prompts, const auto& completions, const auto& examples) {
    ++calls;
    EXPECT_EQ(prompts, (std::vector<std::string>{"p", "q"}));
    EXPECT_EQ(examples[1].answer, "2");
    return std::vector<double>{static_cast<double>(completions[0].size()), -1};
  };
  const RewardSum sum({{.kind = "answer", .weight = 1},
                       {.kind = "mine", .weight = 0.5},
                       {.kind = "format", .weight = -1, .name = "digits", .pattern = "A[0-9]"}},
                      ".", {{"mine", mine}});
  const Rewards rewards = sum({"p", "q"}, {"A1.", "A1."}, {{"p", "", "1"}, {"q", "", "2"}});
  EXPECT_EQ(rewards.total, (std::vector<double>{1 + 0.5 * 3 - 1, 0 - 0.5 - 1}));
  EXPECT_EQ(rewards.stats,
            (std::map<std::string, double>{{"reward/answer", 0.5}, {"reward/mine", 1}, {"reward/digits", 1}}));
  EXPECT_EQ(calls, 1);
  EXPECT_TRUE(RewardSum({{}}, ".")({}, {}, {}).total.empty());
}

TEST(RewardSum, NamesTheRewardThatIsWrong) {
  const auto run = [](std::vector<double> scores) {
    const RewardFunction mine = [scores](const auto&, const auto&, const auto&) { return scores; };
    return message([&] { RewardSum({{.kind = "mine"}}, ".", {{"mine", mine}})({"p0", "p1"}, {"a", "b"}, {{}, {}}); });
  };
  expect_all(run({1}), {"reward/mine", "1 scores", "2 completions"});
  expect_all(run({1, 2, 3}), {"reward/mine", "3 scores"});
  expect_all(run({0, std::nan("")}), {"reward/mine", "score 1", "nan", "p1"});
  expect_all(run({-std::numeric_limits<double>::infinity(), 0}), {"score 0", "-inf", "p0"});
  EXPECT_EQ(run({0.5, -3}), "no error");
  expect_all(message([] { RewardSum({{}}, ".")({"p"}, {"a", "b"}, {{}, {}}); }), {"1 prompts", "2 completions"});
}

TEST(RewardSum, RefusesABadConfig) {
  const RewardFunction f = [](const auto&, const auto& c, const auto&) { return std::vector<double>(c.size()); };
  const auto wrong = [](std::vector<RewardConfig> configs, std::map<std::string, RewardFunction> custom = {}) {
    return message([&] { RewardSum(configs, ".", custom); });
  };
  expect_all(wrong({}), {"none"});
  expect_all(wrong({{.kind = "mien"}}, {{"mine", f}}), {"mien", "answer, exact, format, length, mine", "rewards="});
  expect_all(wrong({{}}, {{"exact", f}}), {"exact", "built-in"});
  expect_all(wrong({{}, {}}), {"reward/answer", "name"});
  expect_all(wrong({{.weight = std::nan("")}}), {"weight", "finite"});
  expect_all(wrong({{.kind = "format"}}), {"format", "pattern"});
  expect_all(wrong({{.kind = "format", .pattern = "("}}), {"format", "\"(\"", "not a regular expression"});
  expect_all(wrong({{.pattern = "[0-9]+"}}), {"answer", "no group"});
  expect_all(wrong({{.kind = "length", .target = 5, .limit = 5}}), {"length", "limit (5)", "target (5)"});
}

}  // namespace
}  // namespace isentrope::rl
