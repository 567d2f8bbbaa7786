// TInt's tasks that search, countdown and path, its thoughts, and the expressions that countdown reads: against a reader who knows the
// rules and tries every road.
#include "csrc/data/tint_search.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <set>
#include <stdexcept>
#include <string>
#include <vector>

#include "csrc/data/expression.h"
#include "tests/csrc/message.h"
#include "tests/csrc/tint_replay.h"

namespace isentrope::data {
namespace ISENTROPE_UNIT {

TintConfig search(const std::string& task, int64_t terms, int64_t tries = 4) {
  TintConfig config;
  config.task = task;
  config.terms = {terms};
  config.tries = tries;
  config.held_out = 64;
  return config;
}

// ";"-ended tries of a completion, and what stands behind "A" without the end.
std::vector<std::string> tries_of(const TintSample& sample) {
  return split(sample.completion.substr(0, sample.completion.find('A')), ';');
}
std::string answer_of(const TintSample& sample) {
  EXPECT_EQ(sample.completion.back(), '.');
  const size_t mark = sample.completion.find('A') + 1;
  return sample.completion.substr(mark, sample.completion.size() - 1 - mark);
}

// Every number that the digits make as a chain of + - *, within 0 … 99 all the way.
void all_roads(std::vector<int64_t> left, int64_t total, std::set<int64_t>& reached) {
  if (left.empty()) reached.insert(total);
  for (size_t i = 0; i < left.size(); ++i) {
    std::vector<int64_t> rest = left;
    rest.erase(rest.begin() + static_cast<int64_t>(i));
    for (const int64_t next : {total + left[i], total - left[i], total * left[i]})
      if (next >= 0 && next <= 99) all_roads(rest, next, reached);
  }
}

TEST(TintSearch, CountdownPromptsCanBeSolvedAndTriesAreTrueSums) {
  for (const int64_t terms : {2, 3, 4, 5}) {
    if (terms == 2) continue;  // so few prompts that none may be left in a split
    int64_t right = 0;
    for (const TintSample& sample : samples(search("countdown", terms), 97)) {
      SCOPED_TRACE(sample.prompt + sample.completion);
      const auto prompt = CountdownPrompt::read(sample.prompt);
      ASSERT_TRUE(prompt);
      ASSERT_EQ(prompt->numbers.size(), static_cast<size_t>(terms));
      std::set<int64_t> reached;
      for (size_t i = 0; i < prompt->numbers.size(); ++i) {
        std::vector<int64_t> rest = prompt->numbers;
        rest.erase(rest.begin() + static_cast<int64_t>(i));
        all_roads(rest, prompt->numbers[i], reached);
      }
      ASSERT_TRUE(reached.contains(prompt->target));
      ASSERT_TRUE(prompt->solved_by(sample.answer_true));

      const auto tries = tries_of(sample);
      ASSERT_LE(tries.size(), 4u);
      bool hit = false;
      for (const std::string& one : tries) {
        ASSERT_FALSE(hit) << "it goes on behind a right try";
        std::vector<int64_t> used = {one[0] - '0'};
        int64_t total = used[0];
        for (size_t i = 1; i < one.size(); i += 5) {
          const int64_t d = one[i + 1] - '0';
          total = one[i] == '+' ? total + d : one[i] == '-' ? total - d : total * d;
          ASSERT_EQ(one.substr(i + 2, 3), ":" + low_first(total));
          used.push_back(d);
        }
        std::sort(used.begin(), used.end());
        std::vector<int64_t> given = prompt->numbers;
        std::sort(given.begin(), given.end());
        ASSERT_EQ(used, given);
        hit = total == prompt->target;
      }
      ASSERT_EQ(prompt->solved_by(answer_of(sample)), hit) << "the answer is not the last try";
      ASSERT_EQ(answer_of(sample), sample.answer_trace);
      right += hit;
    }
    EXPECT_GT(right, 0) << terms;
    EXPECT_LT(right, 60) << terms;
  }
}

TEST(TintSearch, PathsAreTreesWithAsManyBranchesAsAsked) {
  for (const int64_t branches : {0, 1, 2})
    for (const int64_t steps : {1, 3, 4}) {
      TintConfig config = search("path", steps);
      config.branches = branches;
      int64_t right = 0;
      for (const TintSample& sample : samples(config, 65)) {
        SCOPED_TRACE(sample.prompt + sample.completion);
        const auto prompt = PathPrompt::read(sample.prompt);
        ASSERT_TRUE(prompt);
        std::map<char, std::string> next;
        std::set<char> entered;
        for (const auto& [from, to] : prompt->edges) {
          next[from] += to;
          ASSERT_TRUE(entered.insert(to).second) << "two edges lead to one node";
        }
        ASSERT_FALSE(entered.contains(prompt->start));
        ASSERT_EQ(sample.answer_true.size(), static_cast<size_t>(steps) + 1);
        ASSERT_TRUE(prompt->solved_by(sample.answer_true));
        for (size_t i = 0; i + 1 < sample.answer_true.size(); ++i)
          ASSERT_EQ(next[sample.answer_true[i]].size(), static_cast<size_t>(branches) + 1);
        for (const std::string& one : tries_of(sample)) {
          ASSERT_EQ(one.front(), prompt->start);
          ASSERT_EQ(one.size(), static_cast<size_t>(steps) + 1) << "a wrong way is as long as the right one";
          for (size_t i = 0; i + 1 < one.size(); ++i) ASSERT_NE(next[one[i]].find(one[i + 1]), std::string::npos);
        }
        ASSERT_EQ(tries_of(sample).back(), answer_of(sample));
        right += prompt->solved_by(answer_of(sample));
      }
      if (branches == 0)
        EXPECT_EQ(right, 65);
      else
        EXPECT_LT(right, 65);
    }
}

TEST(TintSearch, ATryIsRightAsOftenAsChanceHasIt) {
  TintConfig config = search("path", 3, 1);  // three forks in two, one try: one in eight
  int64_t right = 0;
  constexpr int64_t kSamples = 2000;
  for (const TintSample& sample : samples(config, kSamples))
    right += PathPrompt::read(sample.prompt)->solved_by(answer_of(sample));
  EXPECT_NEAR(right, kSamples / 8.0, 5 * std::sqrt(kSamples * (1.0 / 8) * (7.0 / 8)));
  config.insight = 0.5;
  right = 0;
  for (const TintSample& sample : samples(config, kSamples))
    right += PathPrompt::read(sample.prompt)->solved_by(answer_of(sample));
  EXPECT_NEAR(right, kSamples * 9.0 / 16, 5 * std::sqrt(kSamples * (9.0 / 16) * (7.0 / 16)));
  config.insight = 1;
  for (const TintSample& sample : samples(config, 33))
    EXPECT_EQ(sample.completion, sample.answer_true + ";A" + sample.answer_true + ".");
  config.cot = false;
  for (const TintSample& sample : samples(config, 33)) EXPECT_EQ(sample.completion, "A" + sample.answer_true + ".");
}

TEST(TintSearch, AlphabetsAreComplete) {
  TintConfig other = search("countdown", 4);
  other.operations = "+/";
  TintConfig thinking = config_of("signed_sum");
  thinking.think = 3;
  for (const TintConfig& config : {search("countdown", 5), other, search("path", 4), thinking}) {
    std::set<char> used;
    for (const TintSample& sample : samples(config, 400))
      for (const char c : sample.prompt + sample.completion) used.insert(c);
    const std::string alphabet = tint_alphabet(config);
    EXPECT_EQ(std::set<char>(alphabet.begin(), alphabet.end()), used) << config.task;
    EXPECT_EQ(alphabet.size(), used.size());
    EXPECT_EQ(alphabet.back(), '.');
  }
}

TEST(TintSearch, ThoughtsAreTrueSumsOfTwoTermsAndChangeNothingElse) {
  TintConfig config = config_of("signed_sum");
  const auto plain = samples(config, 97);
  config.think = 4;
  const auto thinking = samples(config, 97);
  std::set<size_t> counts;
  for (size_t n = 0; n < plain.size(); ++n) {
    const std::string& text = thinking[n].completion;
    const size_t end = text.find(';');
    ASSERT_EQ(thinking[n].prompt, plain[n].prompt);
    ASSERT_EQ(text.substr(end + 1), plain[n].completion) << "thoughts change the trace";
    const auto values = terms_of(plain[n].prompt);
    counts.insert(end / 9);
    for (size_t i = 0; i < end; i += 9) {
      ASSERT_NE(text[i], text[i + 3]);
      ASSERT_EQ(text.substr(i, 3), plain[n].prompt.substr(3 * static_cast<size_t>(text[i] - 'a'), 3));
      ASSERT_EQ(text.substr(i + 6, 3), ":" + low_first(values.at(text[i] - 'a') + values.at(text[i + 3] - 'a')));
    }
  }
  EXPECT_EQ(counts, (std::set<size_t>{0, 1, 2, 3, 4}));
}

TEST(TintSearch, ExamplesAreFunctionsOfSeedAndIndexAndSplitsAreApart) {
  for (const char* task : {"countdown", "path"}) {
    const TintConfig config = search(task, 3);
    const Tint tint(config, 1, Split::train), other(config, 2, Split::train);
    EXPECT_EQ(tint.take(0, 33)[31].completion, tint.take(31, 1)[0].completion);
    EXPECT_NE(tint.take(0, 9)[7].prompt, other.take(0, 9)[7].prompt);
    std::set<std::string> held;
    for (const Split split : {Split::validation, Split::test})
      for (const Example& example : Tint(config, 1, split).take(0, 64)) EXPECT_TRUE(held.insert(example.prompt).second);
    for (const Example& example : tint.take(0, 500)) EXPECT_FALSE(held.contains(example.prompt)) << example.prompt;
  }
}

TEST(TintSearch, ConfigsAreRefusedByName) {
  const auto problem = [](auto change) {
    TintConfig config = search("countdown", 3);
    change(config);
    return config.problem();
  };
  using C = TintConfig&;
  EXPECT_EQ(problem([](C) {}), "");
  expect_all(problem([](C c) { c.terms = {3, 6}; }), {"terms holds 6", "2 to 5"});
  expect_all(problem([](C c) { c.terms = {1, 3}; }), {"terms holds 1", "2 to 5"});
  expect_all(problem([](C c) { c.operations = "+%"; }), {"operations is", "+%", "+ - * /"});
  expect_all(problem([](C c) { c.operations = "++"; }), {"operations is", "each once"});
  expect_all(problem([](C c) { c.operations = "*"; }), {"operations is", "without +"});
  expect_all(problem([](C c) { c.tries = 0; }), {"tries is 0", "1 … 64"});
  expect_all(problem([](C c) { c.insight = 1.5; }), {"insight is 1.5", "0 … 1"});
  expect_all(problem([](C c) { c.noise = "dynamic"; }), {"noise", "countdown"});
  expect_all(problem([](C c) { c.think = 2; }), {"think is for signed_sum", "countdown"});
  expect_all(problem([](C c) { c.task = "path", c.terms = {6}; }), {"terms", "6 steps with 1 branches", "26 nodes"});
  expect_all(problem([](C c) { c.task = "path", c.branches = 25; }), {"branches is 25", "0 … 24"});
  expect_all(problem([](C c) { c.task = "signed_sum", c.think = 65; }), {"think is 65", "0 … 64"});
  expect_all(problem([](C c) { c.task = "signed_sum", c.think = 1, c.terms = {1}; }), {"think", "two terms"});
}

// ---- what is right ---------------------------------------------------------------------------------------------------

TEST(TintSearch, AnswersOfCountdownAreCheckedExactly) {
  const auto prompt = CountdownPrompt::read("3,2,5:52=");
  ASSERT_TRUE(prompt);
  EXPECT_EQ(prompt->target, 25);
  for (const char* right : {"5*(3+2)", "(3+2)*5", "((3)+2)*5", "(2+3)*5"})
    EXPECT_TRUE(prompt->solved_by(right)) << right;
  for (const char* wrong : {"", "25", "3+2*5", "5*5", "5*(3+2)+0", "5*(3+2", "5*(3+2))", "5*3+2+", "+5*(3+2)", "5(3+2)",
                            "5*(3+2)=25", "(3+2)*5 ", "5*-(3+2)", "32*5", "3+2", "A5*(3+2)"})
    EXPECT_FALSE(prompt->solved_by(wrong)) << wrong;
  // Fractions on the way are no matter, and rounding is none.
  EXPECT_TRUE(CountdownPrompt::read("8,3,8,3:42=")->solved_by("8/(3-8/3)"));
  EXPECT_FALSE(CountdownPrompt::read("7,2:30=")->solved_by("7/2"));
  for (const char* none :
       {"", "3,2,5", "3,2,5:52", "3,2,:52=", "3,2,5:5=", "3,2,5:52==", "33,2:52=", "a+5b-3=", "3;2:52="})
    EXPECT_FALSE(CountdownPrompt::read(none)) << none;
}

TEST(TintSearch, AnswersOfPathAreCheckedEdgeByEdge) {
  const auto prompt = PathPrompt::read("ab,bd,ac:a>d=");
  ASSERT_TRUE(prompt);
  EXPECT_TRUE(prompt->solved_by("abd"));
  for (const char* wrong : {"", "a", "d", "ad", "acd", "abdd", "bd", "ab", "abdb", "dba"})
    EXPECT_FALSE(prompt->solved_by(wrong)) << wrong;
  for (const char* none : {"", "ab", "ab:a>b", "ab,:a>b=", "aB:a>b=", "abc:a>b=", "ab:a-b=", "ab:a>b=="})
    EXPECT_FALSE(PathPrompt::read(none)) << none;
}

TEST(Expression, IsReadWithoutTrust) {
  const auto value = [](const std::string& text) -> std::string {
    const auto found = Expression::read(text);
    return found ? std::to_string(found->numerator) + "/" + std::to_string(found->denominator) : "none";
  };
  EXPECT_EQ(value("1+2*3"), "7/1");
  EXPECT_EQ(value("(1+2)*3"), "9/1");
  EXPECT_EQ(value("8-3-2"), "3/1") << "from the left";
  EXPECT_EQ(value("8/4/2"), "1/1");
  EXPECT_EQ(value("1/3+1/6"), "1/2");
  EXPECT_EQ(value("1/(2-3)"), "-1/1");
  EXPECT_EQ(value("007"), "7/1");
  EXPECT_EQ(value("1/0"), "none");
  EXPECT_EQ(value("1/(2-2)"), "none");
  EXPECT_EQ(value("9223372036854775807"), "9223372036854775807/1");
  EXPECT_EQ(value("9223372036854775808"), "none");
  EXPECT_EQ(value("9223372036854775807+1"), "none");
  EXPECT_EQ(value("0-9223372036854775807-1"), "none") << "it has no opposite";
  EXPECT_EQ(value("4611686018427387904*2"), "none");
  EXPECT_EQ(value(std::string(64, '(') + "1" + std::string(64, ')')), "1/1");
  EXPECT_EQ(value(std::string(65, '(') + "1" + std::string(65, ')')), "none");
  EXPECT_EQ(value(std::string(1 << 20, '(')), "none") << "deep nesting is no deep recursion";
  EXPECT_EQ(value("1+"), "none");
  EXPECT_EQ(value("()"), "none");
  EXPECT_EQ(Expression::read("5*(3+20)")->numbers, (std::vector<int64_t>{5, 3, 20}));
}

}  // namespace ISENTROPE_UNIT
}  // namespace isentrope::data
