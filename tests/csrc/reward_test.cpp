// Verifiable rewards: each kind, their sum, and what a wrong reward function gets.
#include "csrc/rl/reward.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "csrc/message.h"
#include "tests/csrc/message.h"

namespace isentrope::rl {
namespace ISENTROPE_UNIT {

using data::Example;

double score(const RewardConfig& config, const std::string& completion, const Example& example,
             const std::string& stop = ".") {
  const size_t end = completion.find(stop);  // as a model draws: nothing follows the stop
  const Answer answer{completion.substr(0, end), end != std::string::npos};
  return RewardSum({config}, stop)({example.prompt}, {answer}, {example}).total.at(0);
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
  // A stop within what is wanted is not its end.
  EXPECT_EQ(score(exact, "8.", {"p", "8.5.", ""}), 0);
  EXPECT_EQ(score(exact, "8.5.", {"p", "8.5.", ""}), 0);
  EXPECT_EQ(score(exact, "8.", {"p", "", "8.5"}), 0);
  EXPECT_EQ(score(exact, "8.", {"p", "8..", ""}), 0) << "one stop is the end, two are not";
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

TEST(Reward, SolvesChecksWhatStandsBehindTheLastA) {
  const RewardConfig solves = {.kind = "solves"};
  const Example countdown = {"3,2,5:52=", "", "5*(3+2)"}, path = {"ab,bd,ac:a>d=", "", "abd"};
  EXPECT_EQ(score(solves, "3+2:50*5:52;A(3+2)*5.", countdown), 1);
  EXPECT_EQ(score(solves, "A3+2+5;A(2+3)*5.", countdown), 1) << "the last A counts";
  EXPECT_EQ(score(solves, "A(3+2)*5", countdown), 0) << "not stopped";
  EXPECT_EQ(score(solves, "(3+2)*5.", countdown), 0) << "no A";
  EXPECT_EQ(score(solves, "A3+2+5.", countdown), 0);
  EXPECT_EQ(score(solves, "A.", countdown), 0);
  EXPECT_EQ(score(solves, "ac;Aabd.", path), 1);
  EXPECT_EQ(score(solves, "abd;Aacd.", path), 0);
  EXPECT_EQ(example_problem(solves, countdown, "."), "");
  EXPECT_EQ(example_problem(solves, path, "."), "");
  // Of prompts of other tasks one answer is right.
  EXPECT_EQ(score(solves, "b+6a+5:11A11.", {"a+5b+6=", "", "11"}), 1);
  EXPECT_EQ(score(solves, "A11A12.", {"a+5b+6=", "", "11"}), 0);
  EXPECT_EQ(example_problem(solves, {"a+5b+6=", "", "11"}, "."), "");
  expect_all(example_problem(solves, {"a+5b+6=", "x", ""}, "."), {"the answer is missing", "solves"});
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

TEST(Reward, PatternsKnowLinesCaseAndCharacters) {
  const auto format = [](const std::string& pattern, const std::string& text) {
    return score({.kind = "format", .pattern = pattern}, text + "|", {"p", "", ""}, "|") == 1;
  };
  const std::string lines = "<think>\nab\n</think>\n7";
  EXPECT_FALSE(format("<think>.*</think>.*", lines)) << "`.` is no line feed";
  EXPECT_TRUE(format("(?s)<think>.*</think>.*", lines));
  EXPECT_TRUE(format("[^|]*", lines));
  EXPECT_FALSE(format("a$\nb", "a\nb")) << "$ is the end of the text";
  EXPECT_TRUE(format("(?m)a$\n^b", "a\nb"));
  EXPECT_FALSE(format("a$", "a\n")) << "and not before its last line feed";
  EXPECT_FALSE(format("yes", "YES"));
  EXPECT_TRUE(format("(?i)yes", "YES"));
  EXPECT_TRUE(format("a|ab", "ab")) << "the whole text, by whichever way";
  EXPECT_TRUE(format("..", "ß😀")) << "characters, not bytes";
  EXPECT_FALSE(format("\\d", "٣")) << "digits are ASCII";
  EXPECT_FALSE(format("\\w", "ß"));
}

// What a young model writes: any bytes.
TEST(Reward, PatternsTakeAnyBytes) {
  const auto format = [](const std::string& pattern, const std::string& text) {
    return score({.kind = "format", .pattern = pattern}, text + "|", {"p", "", ""}, "|") == 1;
  };
  const std::string nul("a\0b", 3);
  EXPECT_TRUE(format("a.b", nul));
  EXPECT_FALSE(format("a", nul));
  EXPECT_TRUE(format("a\\x00b", nul));
  EXPECT_TRUE(format(std::string("a\0b", 3), nul));
  EXPECT_TRUE(format("a.b",
                     "a\x97"
                     "b"))
      << "a byte that is no character is U+FFFD";
  EXPECT_TRUE(format("a\\x{FFFD}b",
                     "a\xE2\x82"
                     "b"))
      << "the beginning of one is one U+FFFD";
  EXPECT_TRUE(format("...", "\xED\xA0\x80")) << "a surrogate is three";
  const RewardConfig answer{.kind = "answer", .pattern = "=([0-9]+)"};
  EXPECT_EQ(score(answer, "\xFF=1\xFF=7\x80|", {"p", "", "7"}, "|"), 1);
  EXPECT_EQ(score(answer, std::string("=1\0=7\0|", 7), {"p", "", "7"}, "|"), 1);
}

TEST(Reward, TheLastMatchIsTheAnswer) {
  const auto answer = [](const std::string& pattern, const std::string& text, const std::string& wanted) {
    return score({.kind = "answer", .pattern = pattern}, text + "|", {"p", "", wanted}, "|") == 1;
  };
  EXPECT_TRUE(answer("([0-9])", "ß1ß2", "2"));
  EXPECT_FALSE(answer("([0-9]*)", "12", "12")) << "the last match is empty";
  EXPECT_FALSE(answer("(x)|[0-9]", "1", "1")) << "group 1 takes no part";
  EXPECT_TRUE(answer("([0-9]+)(?=\\s*$)", "3 4 ", "4"));
}

// Work on a text has limits, and long texts are not beyond them.
TEST(Reward, PatternsEndOnAnyText) {
  const auto run = [](const std::string& kind, const std::string& pattern, const std::string& text) {
    return message([&] { score({.kind = kind, .pattern = pattern}, text + "|", {"p", "", "7"}, "|"); });
  };
  const std::string long_text(200000, 'a');
  for (const char* pattern : {"([a-h]|x)+", "(?s).*a[a-z]", "([a-e][a-e])+", "(a|b)*?"})
    EXPECT_EQ(score({.kind = "format", .pattern = pattern}, long_text + "|", {"p", "", ""}, "|"), 1) << pattern;
  EXPECT_EQ(run("answer", "=([0-9]+)", long_text), "no error");
  EXPECT_EQ(run("answer", "[^=]*=([0-9]+)", long_text.substr(0, 10000) + "="), "no error");
  for (const char* pattern : {"(a+)+[bc]", "(a|aa)*[bc]", "(?:a?){200}[bc]"})
    expect_all(run("format", pattern, std::string(30000, 'a') + "d"),
               {"reward/format: pattern \"", pattern, "passes ", "the completion \"aaaa", "(30001 bytes)"});
  // Each place where a match may begin is within the limit, all of them are not.
  expect_all(run("answer", "a[^z]*a[^z]*([bc])", std::string(3000, 'a')), {"reward/answer: pattern", "steps"});
  expect_all(run("format", "(a(?1)?[bc]?)+[bc]", std::string(100000, 'a')), {"reward/format: pattern", "passes "});
}

TEST(Reward, AbsurdPatternsAreRefused) {
  const auto wrong = [](const std::string& pattern) {
    return RewardConfig{.kind = "format", .pattern = pattern}.problem();
  };
  const std::string deep = std::string(4000, '(') + "a" + std::string(4000, ')');
  for (const std::string& pattern :
       {deep, std::string(1 << 20, '('), std::string("((((a{999}){999}){999}){999})"), std::string("[z-a]"),
        std::string("a\xFF"), std::string("\\C"), std::string("*")}) {
    const std::string text = wrong(pattern);
    expect_all(text, {"format: pattern \""});
    EXPECT_LT(text.size(), 700u);
  }
  expect_all(wrong(std::string(1 << 20, '(')), {"longer than 10000 bytes"});
  EXPECT_EQ(wrong(std::string(100, '(') + "a" + std::string(100, ')')), "");
}

TEST(Text, ValidUtf8IsWhatPythonReads) {
  // bytes.decode("utf-8", "replace")
  const std::string r = "\uFFFD";
  for (const auto& [bytes, wanted] :
       std::vector<std::pair<std::string, std::string>>{{"aß€😀", "aß€😀"},
                                                        {"\x80", r},
                                                        {"\xC3", r},
                                                        {"\xC0\xAF", r + r},
                                                        {"\xE2\x82"
                                                         "a",
                                                         r + "a"},
                                                        {"\xE0\x80\x80", r + r + r},
                                                        {"\xED\xA0\x80", r + r + r},
                                                        {"\xF0\x9F\x98", r},
                                                        {"\xF4\x90\x80\x80", r + r + r + r},
                                                        {"\xF5"
                                                         "a",
                                                         r + "a"}})
    EXPECT_EQ(isentrope::valid_utf8(bytes), wanted);
  EXPECT_EQ(isentrope::quoted(std::string("a\n\0\xFF", 4)), "\"a\\n\\x00\\xFF\"");
  expect_all(isentrope::quoted(std::string(300, 'x')), {"x…\" (300 bytes)"});
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

TEST(Reward, AnAnswerIsWithoutItsEndAndKnowsWhetherItHadOne) {
  const data::Tokenizer bytes({.kind = "bytes"});
  std::vector<int64_t> tokens = bytes.encode("42");
  const Answer cut = answer_of(tokens, false, bytes);
  tokens.push_back(bytes.eos_id());
  const Answer whole = answer_of(tokens, true, bytes);
  EXPECT_EQ(cut.text, "42");
  EXPECT_FALSE(cut.finished);
  EXPECT_EQ(whole.text, "42");
  EXPECT_TRUE(whole.finished);
  EXPECT_EQ(answer_of({bytes.eos_id()}, true, bytes).text, "");
  // The name of the end, spelt out in bytes, ends nothing.
  const Answer spelt = answer_of(bytes.encode("42<|endoftext|>"), false, bytes);
  EXPECT_EQ(spelt.text, "42<|endoftext|>");
  const RewardSum exact({{.kind = "exact"}}, bytes.eos());
  EXPECT_EQ(exact({"p", "p", "p"}, {cut, whole, spelt}, std::vector<Example>(3, {"p", "42", ""})).total,
            (std::vector<double>{0, 1, 0}));
}

TEST(RewardSum, WeighsAndReportsMeans) {
  int64_t calls = 0;
  const RewardFunction mine = [&](const auto& prompts, const auto& completions, const auto& examples, double) {
    ++calls;
    EXPECT_EQ(prompts, (std::vector<std::string>{"p", "q"}));
    EXPECT_EQ(examples[1].answer, "2");
    return std::vector<double>{static_cast<double>(completions[0].text.size()), -1};
  };
  const RewardSum sum({{.kind = "answer", .weight = 1},
                       {.kind = "mine", .weight = 0.5},
                       {.kind = "format", .weight = -1, .name = "digits", .pattern = "A[0-9]"}},
                      ".", {{"mine", mine}});
  const Rewards rewards = sum({"p", "q"}, {{"A1", true}, {"A1", true}}, {{"p", "", "1"}, {"q", "", "2"}});
  EXPECT_EQ(rewards.total, (std::vector<double>{1 + 0.5 * 2 - 1, 0 - 0.5 - 1}));
  EXPECT_EQ(rewards.stats,
            (std::map<std::string, double>{{"reward/answer", 0.5}, {"reward/mine", 0.5}, {"reward/digits", 1}}));
  EXPECT_EQ(calls, 1);
  EXPECT_TRUE(RewardSum({{}}, ".")({}, {}, {}).total.empty());
}

// The mean is over what a reward applies to, the sum over the rewards that apply.
TEST(RewardSum, ARewardNeedNotApply) {
  using Of = std::vector<std::optional<double>>;
  const auto sum = [](const Of& a, const Of& b, bool timed_out = false) {
    const RewardFunction first = [a](const auto&, const auto&, const auto&, double) { return Scores(a); };
    const RewardFunction second = [b, timed_out](const auto&, const auto&, const auto&, double seconds) {
      EXPECT_EQ(seconds, 3.5);
      return Scores(b, timed_out);
    };
    return RewardSum({{.kind = "a", .weight = 2},
                      {.kind = "python", .weight = 3, .function = "rewards.py:Judge.b", .timeout_s = 3.5}},
                     ".", {{"a", first}, {"python rewards.py:Judge.b", second}})(
        {"p", "q", "r"}, std::vector<Answer>(3, {"x", true}), std::vector<Example>(3));
  };
  const Rewards some = sum({1, std::nullopt, std::nullopt}, {10, 20, std::nullopt});
  EXPECT_EQ(some.total, (std::vector<double>{2 + 30, 60, 0}));
  EXPECT_EQ(some.stats, (std::map<std::string, double>{{"reward/a", 1}, {"reward/b", 15}}));
  EXPECT_EQ(some.first, (Of{1, std::nullopt, std::nullopt}));
  EXPECT_EQ(some.scores.at(1).second, (Of{10, 20, std::nullopt}));
  EXPECT_EQ(some.unscored, 2u);
  EXPECT_EQ(some.timeouts, (std::map<std::string, double>{{"timeouts/b", 0}}));
  EXPECT_TRUE(is_right(some.first[0]) && !is_right(some.first[1]));

  const Rewards ended = sum({0, 1, 0}, Of(3), /*timed_out=*/true);
  EXPECT_EQ(ended.total, (std::vector<double>{0, 2, 0}));
  EXPECT_EQ(ended.stats.count("reward/b"), 0u) << "it applies to none";
  EXPECT_EQ(ended.timeouts.at("timeouts/b"), 3);
  EXPECT_FALSE(ended.unscored);
}

TEST(RewardSum, NamesTheRewardThatIsWrong) {
  const auto run = [](std::vector<double> scores) {
    const RewardFunction mine = [scores](const auto&, const auto&, const auto&, double) { return scores; };
    return message([&] {
      RewardSum({{.kind = "mine"}}, ".", {{"mine", mine}})({"p0", "p1"}, {{"a", true}, {"b", true}}, {{}, {}});
    });
  };
  expect_all(run({1}), {"reward/mine", "1 scores", "2 completions"});
  expect_all(run({1, 2, 3}), {"reward/mine", "3 scores"});
  expect_all(run({0, std::nan("")}), {"reward/mine", "score 1", "nan", "p1"});
  expect_all(run({-std::numeric_limits<double>::infinity(), 0}), {"score 0", "-inf", "p0"});
  EXPECT_EQ(run({0.5, -3}), "no error");
  expect_all(message([] {
               RewardSum({{}}, ".")({"p"}, {{"a", true}, {"b", true}}, {{}, {}});
             }),
             {"1 prompts", "2 completions"});
}

TEST(RewardSum, RefusesABadConfig) {
  const RewardFunction f = [](const auto&, const auto& c, const auto&, double) {
    return std::vector<double>(c.size());
  };
  const auto wrong = [](std::vector<RewardConfig> configs, std::map<std::string, RewardFunction> custom = {}) {
    return message([&] { RewardSum(configs, ".", custom); });
  };
  expect_all(wrong({}), {"none"});
  expect_all(wrong({{.kind = "mien"}}, {{"mine", f}}),
             {"mien", "answer, environment, exact, format, length, python, solves, mine",
              "--reward mien=FILE.py:FUNCTION", "rewards="});
  expect_all(wrong({{}}, {{"exact", f}}), {"exact", "built-in"});
  expect_all(wrong({{}, {}}), {"reward/answer", "name"});
  expect_all(wrong({{}}, {{"python", f}}), {"python", "built-in"});
  expect_all(wrong({{.kind = "python"}}), {"function: is missing", "FILE.py:NAME"});
  for (const char* function : {"maths", "file.py:", ":name"})
    expect_all(wrong({{.kind = "python", .function = function}}), {"function: ", function, "reasoning_gym or math"});
  expect_all(wrong({{.kind = "python", .function = "m:f"}}, {{"f", f}}), {"m:f", "of Python"});
  expect_all(wrong({{.kind = "exact", .function = "m:f"}}), {"function: belongs to rewards of kind python", "exact"});
  expect_all(wrong({{.kind = "exact", .timeout_s = 1}}), {"timeout_s", "functions in Python", "exact"});
  expect_all(wrong({{.kind = "python", .function = "a:f"}, {.kind = "python", .function = "b:f"}},
                   {{"python a:f", f}, {"python b:f", f}}),
             {"two are called reward/f"});
  expect_all(wrong({{.weight = std::nan("")}}), {"weight", "finite"});
  expect_all(wrong({{.kind = "format"}}), {"format", "pattern"});
  expect_all(wrong({{.kind = "format", .pattern = "("}}), {"format", "\"(\"", "not a regular expression"});
  expect_all(wrong({{.pattern = "[0-9]+"}}), {"answer", "no group"});
  expect_all(wrong({{.kind = "length", .target = 5, .limit = 5}}), {"length", "limit (5)", "target (5)"});
}

}  // namespace ISENTROPE_UNIT
}  // namespace isentrope::rl
