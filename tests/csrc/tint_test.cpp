// TInt: forms of problems and traces, splits, errors.
#include "csrc/data/tint.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <set>
#include <stdexcept>
#include <string>
#include <vector>

#include "csrc/data/tint_trace.h"
#include "tests/csrc/message.h"
#include "tests/csrc/tint_replay.h"

namespace isentrope::data {
namespace ISENTROPE_UNIT {

constexpr const char* kQuickstart = "0123456789abcdefgh+-=:A.";

TEST(Tint, CleanTracesFollowTheirProgramAndArriveAtTheAnswer) {
  for (const TintConfig& config : variants()) {
    SCOPED_TRACE(label(config));
    for (const TintSample& sample : samples(config, 97)) {
      const std::string answer = solve(config, sample.prompt);
      const Reading reading = read(config, sample);
      ASSERT_EQ(reading.errors, 0) << sample.prompt << sample.completion;
      ASSERT_EQ(reading.answer, answer) << sample.prompt << sample.completion;
      ASSERT_EQ(sample.answer_true, answer);
      ASSERT_EQ(sample.answer_trace, answer);
      const std::string tail = "A" + answer + ".";
      ASSERT_EQ(sample.completion.substr(sample.completion.size() - tail.size()), tail);
      ASSERT_FALSE(sample.noised);
      ASSERT_EQ(sample.first_error_line, 0);
    }
  }
}

TEST(Tint, SignedSumHasTheLengthsAndDrawsOfItsRecipe) {
  TintConfig config = config_of("signed_sum");
  int64_t steps = 0, plus = 0, digits = 0, longest = 0;
  constexpr int64_t kSamples = 4000;
  for (const TintSample& sample : samples(config, kSamples)) {
    EXPECT_EQ(sample.prompt.size(), 16u);
    longest = std::max<int64_t>(longest, static_cast<int64_t>(sample.completion.size()));
    steps += std::count(sample.completion.begin(), sample.completion.end(), ':');
    plus += std::count(sample.prompt.begin(), sample.prompt.end(), '+');
    for (const int64_t value : terms_of(sample.prompt)) digits += std::abs(value);
  }
  EXPECT_EQ(longest, 6 * 5 + 4);
  // Redrawing favours plus signs and merged steps a little, so the bands are one-sided around 0.65 and 1 + 4
  // · 0.7.
  EXPECT_GT(plus, 0.65 * 5 * kSamples);
  EXPECT_LT(plus, 0.75 * 5 * kSamples);
  EXPECT_LT(steps, 3.8 * kSamples);
  EXPECT_GT(steps, 3.5 * kSamples);
  EXPECT_NEAR(static_cast<double>(digits) / (5 * kSamples), 5.0, 0.2);

  config.merge = 0;
  for (const TintSample& sample : samples(config, 33)) EXPECT_EQ(sample.completion.size(), 34u);
  config.merge = 1;
  for (const TintSample& sample : samples(config, 33)) EXPECT_EQ(sample.completion.size(), 3u * 5 + 3 + 4);
  config.cot = false;
  for (const TintSample& sample : samples(config, 33)) EXPECT_EQ(sample.completion, "A" + sample.answer_true + ".");
}

TEST(Tint, ShowChoosesTheFieldsOfALine) {
  TintConfig config = config_of("add");
  config.show = {.line_no = true, .code = true, .vars = true, .delta = true};
  Faults none(nullptr, 0);
  EXPECT_EQ(run_program(config, {57, 8}, none).text(),
            "L1 s=a[i]+b[i]+c a=57;b=8;c=0;i=0;s=15 s=15\n"
            "L2 d=s%10 a=57;b=8;c=0;i=0;s=15;d=5 d=5\n"
            "L3 c=s/10 a=57;b=8;c=1;i=0;s=15;d=5 c=1\n"
            "L1 s=a[i]+b[i]+c a=57;b=8;c=1;i=1;s=6;d=5 s=6\n"
            "L2 d=s%10 a=57;b=8;c=1;i=1;s=6;d=6 d=6\n"
            "L3 c=s/10 a=57;b=8;c=0;i=1;s=6;d=6 c=0\n");
  config.show = {.line_no = false, .code = false, .vars = false, .delta = true};
  EXPECT_EQ(run_program(config, {5, 1}, none).text(), "s=6\nd=6\nc=0\n");
  config.show = {.line_no = true, .code = false, .vars = false, .delta = false};
  EXPECT_EQ(run_program(config, {5, 1}, none).text(), "L1\nL2\nL3\n");
}

TEST(Tint, NumbersComeFromTheirRange) {
  TintConfig config = config_of("add");
  config.sampling = "magnitude";
  config.low = 17;
  config.high = 29;
  std::set<std::string> seen;
  for (const TintSample& sample : samples(config, 500))
    for (const auto& number : split(sample.prompt.substr(0, sample.prompt.size() - 1), '+')) seen.insert(number);
  EXPECT_EQ(*seen.begin(), "17");
  EXPECT_EQ(*seen.rbegin(), "29");
  EXPECT_EQ(seen.size(), 13u);

  config.low = 0;
  config.high = 999'999'999'999'999;  // more than 32 bits
  int64_t large = 0;
  for (const TintSample& sample : samples(config, 500)) large += sample.prompt.find('+') == 15;
  EXPECT_NEAR(large, 450, 5 * std::sqrt(500 * 0.9 * 0.1));

  config.sampling = "length";
  config.digits = {2, 4};
  std::vector<int64_t> lengths(6);
  for (const TintSample& sample : samples(config, 3000)) ++lengths[sample.prompt.find('+')];
  EXPECT_EQ(lengths[1] + lengths[5], 0);
  for (const size_t length : {2, 3, 4}) EXPECT_NEAR(lengths[length], 1000, 5 * std::sqrt(3000 * 2.0 / 9)) << length;
}

TEST(Tint, AlphabetHoldsEveryCharacterAndNoOther) {
  for (TintConfig config : variants()) {
    if (config.terms[0] != 4) continue;  // even counts reach both forms of the median
    for (int shown = 1; shown < 16; ++shown) {
      config.show = {(shown & 1) != 0, (shown & 2) != 0, (shown & 4) != 0, (shown & 8) != 0};
      config.cot = shown != 15;
      if (config.cot && config.show.code && config.task == "median") config.algorithm = "selection";
      std::set<char> used;
      for (const TintSample& sample : samples(config, 150))
        for (const char c : sample.prompt + sample.completion) used.insert(c);
      const std::string alphabet = tint_alphabet(config);
      for (const char c : used)
        EXPECT_NE(alphabet.find(c), std::string::npos) << label(config) << ": '" << c << "' is missing in " << alphabet;
      EXPECT_EQ(std::set<char>(alphabet.begin(), alphabet.end()).size(), alphabet.size());
      EXPECT_EQ(alphabet.back(), '.');
      if (config.show.code) continue;  // its text is taken whole, though a line of it may not have run
      for (const char c : alphabet) EXPECT_TRUE(used.count(c)) << label(config) << " never uses '" << c << "'";
    }
  }
  TintConfig config;
  config.terms = {3, 8};
  for (const char c : tint_alphabet(config)) EXPECT_NE(std::string(kQuickstart).find(c), std::string::npos) << c;
}

TEST(Tint, ExamplesAreFunctionsOfSeedAndIndex) {
  for (const auto& task : tasks()) {
    const TintConfig config = config_of(task);
    const Tint tint(config, 1, Split::train), same(config, 1, Split::train), other(config, 2, Split::train);
    const auto whole = tint.take(0, 33), later = same.take(31, 2), different = other.take(0, 33);
    EXPECT_EQ(whole[31].prompt + whole[31].completion, later[0].prompt + later[0].completion) << task;
    EXPECT_EQ(whole[32].completion, later[1].completion) << task;
    int64_t equal = 0;
    for (size_t i = 0; i < 33; ++i) equal += whole[i].prompt == different[i].prompt;
    EXPECT_LT(equal, 5) << task << ": two seeds give the same prompts";
    EXPECT_TRUE(tint.take(5, 0).empty());
  }
}

TEST(Tint, OneTakeHasOneLengthAndAllLengthsOccur) {
  TintConfig config = config_of("signed_sum");
  config.terms = {3, 4, 5};
  const Tint tint(config, 1, Split::train);
  std::vector<int64_t> counts(6);
  for (int64_t step = 0; step < 900; ++step) {
    const auto batch = tint.take(step * 7, 7);
    for (const Example& example : batch) ASSERT_EQ(example.prompt.size(), batch[0].prompt.size());
    ++counts[(batch[0].prompt.size() - 1) / 3];
    ASSERT_EQ(tint.take(step * 7, 3)[2].prompt, batch[2].prompt);
  }
  for (const size_t terms : {3, 4, 5}) EXPECT_NEAR(counts[terms], 300, 5 * std::sqrt(900 * 2.0 / 9)) << terms;
}

TEST(Tint, TrainingNeverSeesAHeldOutPrompt) {
  TintConfig config = config_of("signed_sum");
  config.terms = {2, 3};  // few prompts: training repeats itself soon
  config.held_out = 100000;
  const Tint train(config, 1, Split::train), validation(config, 1, Split::validation), test(config, 1, Split::test);
  std::set<std::string> held_out;
  for (const Tint* list : {&validation, &test}) {
    EXPECT_GT(list->size(), 150);  // of 3195 prompts, one in 16
    for (const Example& example : list->take(0, list->size()))
      EXPECT_TRUE(held_out.insert(example.prompt).second) << example.prompt << " stands twice";
  }
  std::set<std::string> seen;
  for (const Example& example : train.take(0, 20000)) {
    ASSERT_FALSE(held_out.count(example.prompt)) << example.prompt;
    seen.insert(example.prompt);
  }
  EXPECT_GT(seen.size(), 100u);
}

TEST(Tint, HeldOutListsDependOnNeitherSeedNorNoiseAndWrap) {
  TintConfig config = config_of("signed_sum");
  const Tint one(config, 1, Split::validation);
  config.noise = "static_char";
  config.contamination = config.intensity = 1;
  const Tint two(config, 99, Split::validation);
  ASSERT_EQ(one.size(), 64);
  EXPECT_EQ(two.size(), 64);
  const auto a = one.take(0, 64), b = two.take(64, 64);
  for (size_t i = 0; i < 64; ++i) {
    EXPECT_EQ(a[i].prompt + a[i].completion, b[i].prompt + b[i].completion);
    EXPECT_EQ(a[i].answer, solve(config, a[i].prompt));
  }
  config.held_out = 33;  // a shorter list is the beginning of the longer one
  EXPECT_EQ(Tint(config, 1, Split::validation).take(32, 1)[0].prompt, a[32].prompt);
}

TEST(Tint, ErrorsNameTheKeyAndTheRemedy) {
  const auto error_of = [](auto change) {
    TintConfig config;
    change(config);
    return message<std::invalid_argument>([&] {
      Tint(config, 1, Split::validation);
      Tint(config, 1, Split::train).take(0, 1);
    });
  };
  expect_all(error_of([](auto& c) { c.task = "div"; }), {"task", "div", "signed_sum"});
  expect_all(error_of([](auto& c) { c.terms = {}; }), {"terms", "empty"});
  expect_all(error_of([](auto& c) { c.terms = {3, 27}; }), {"terms", "27", "26"});
  expect_all(error_of([](auto& c) { c.merge = 1.5; }), {"merge", "1.5"});
  expect_all(error_of([](auto& c) { c.task = "add", c.sampling = "magnitude", c.low = 9, c.high = 3; }),
             {"low (9)", "high (3)"});
  expect_all(error_of([](auto& c) { c.task = "mul", c.digits = {1, 9}; }), {"digits.max", "9", "8"});
  expect_all(error_of([](auto& c) { c.task = "add", c.show = {false, false, false, false}; }), {"show", "cot"});
  expect_all(error_of([](auto& c) { c.task = "add", c.sampling = "magnitude", c.low = c.high = 1; }),
             {"so few", "larger"});
  EXPECT_THROW(Tint(TintConfig(), 1, Split::train).take(-1, 2), std::invalid_argument);
}

TEST(Tint, EachExampleHasASizeOfItsOwnWhereMixSaysSo) {
  TintConfig config = config_of("signed_sum");
  config.terms = {3, 5, 7};
  config.mix = "example";
  const Tint endless(config, 4, Split::train);
  std::set<size_t> sizes;
  for (const Example& example : endless.take(0, 64)) sizes.insert(example.prompt.size());
  EXPECT_EQ(sizes.size(), 3u);
  EXPECT_EQ(endless.size(), 0);
  const auto whole = endless.take(0, 20), cut = endless.take(7, 5);
  for (size_t i = 0; i < cut.size(); ++i) EXPECT_EQ(cut[i].prompt, whole[7 + i].prompt);
  config.mix = "batch";
  std::set<size_t> batch;
  for (const Example& example : Tint(config, 4, Split::train).take(0, 64)) batch.insert(example.prompt.size());
  EXPECT_EQ(batch.size(), 1u);
}

TEST(Tint, AListOfExamplesComesInANewOrderEachEpoch) {
  TintConfig config = config_of("signed_sum");
  config.terms = {3, 5};
  config.mix = "example";
  config.train = 37;
  const Tint list(config, 4, Split::train);
  EXPECT_EQ(list.size(), 37);
  const auto prompts = [&](int64_t first) {
    std::vector<std::string> out;
    for (const Example& example : list.take(first, 37)) out.push_back(example.prompt);
    return out;
  };
  std::vector<std::string> first = prompts(0), second = prompts(37);
  EXPECT_NE(first, second);
  std::sort(first.begin(), first.end());
  std::sort(second.begin(), second.end());
  EXPECT_EQ(first, second);
  config.mix = "batch";
  EXPECT_NE(config.problem().find("needs mix: example"), std::string::npos);
}

}  // namespace ISENTROPE_UNIT
}  // namespace isentrope::data
