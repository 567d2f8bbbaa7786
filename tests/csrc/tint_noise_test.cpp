// What each kind of noise may and may not do to TInt's traces.
#include <gtest/gtest.h>

#include <algorithm>
#include <cctype>
#include <cmath>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "tests/csrc/tint_replay.h"

namespace isentrope::data {
namespace ISENTROPE_UNIT {

TEST(TintNoise, NothingChangesAtZero) {
  for (const auto& task : tasks())
    for (const char* noise : {"static_char", "static_int", "static_line", "dynamic"})
      for (const auto& [contamination, intensity] : {std::pair{0.0, 1.0}, std::pair{1.0, 0.0}}) {
        TintConfig config = noisy(task, noise, contamination, intensity);
        config.noise_answer = true;
        config.label = "propagated";
        const auto clean = samples(config_of(task), 33), dirty = samples(config, 33);
        for (size_t i = 0; i < 33; ++i) {
          ASSERT_EQ(clean[i].prompt + clean[i].completion, dirty[i].prompt + dirty[i].completion) << label(config);
          ASSERT_EQ(dirty[i].n_errors, 0);
          ASSERT_EQ(dirty[i].noised, contamination == 1);
        }
      }
}

TEST(TintNoise, SameSeedSameBytesAndCleanPromptsStay) {
  for (const auto& task : tasks())
    for (const char* noise : {"static_char", "static_int", "static_line", "dynamic"}) {
      const TintConfig config = noisy(task, noise, 0.5, 0.5);
      const auto clean = samples(config_of(task), 33), one = samples(config, 33), two = samples(config, 33);
      int64_t changed = 0;
      for (size_t i = 0; i < 33; ++i) {
        EXPECT_EQ(one[i].completion, two[i].completion) << label(config);
        EXPECT_EQ(one[i].prompt, clean[i].prompt) << label(config);
        EXPECT_EQ(one[i].answer_true, clean[i].answer_true) << label(config);
        EXPECT_TRUE(one[i].noised || one[i].completion == clean[i].completion) << label(config);
        changed += one[i].completion != clean[i].completion;
      }
      EXPECT_GT(changed, 0) << label(config);
    }
}

TEST(TintNoise, ContaminationIsBinomial) {
  constexpr int64_t kSamples = 4000;
  for (const double share : {0.1, 0.3, 0.8}) {
    int64_t noised = 0;
    for (const TintSample& sample : samples(noisy("signed_sum", "static_char", share, 0.1), kSamples))
      noised += sample.noised;
    EXPECT_NEAR(noised, share * kSamples, 5 * std::sqrt(kSamples * share * (1 - share)));
  }
}

TEST(TintNoise, StaticNoiseKeepsTheForm) {
  for (const auto& task : tasks())
    for (const char* noise : {"static_char", "static_int"}) {
      const TintConfig config = noisy(task, noise, 1, 0.4);
      const bool sum = task == "signed_sum";
      const auto clean = samples(config_of(task), 200), dirty = samples(config, 200);
      int64_t places = 0, errors = 0;
      for (size_t i = 0; i < clean.size(); ++i) {
        const std::string &a = clean[i].completion, &b = dirty[i].completion;
        ASSERT_EQ(a.size(), b.size()) << label(config);
        int64_t here = 0, line = 1, first = 0;
        bool in_number = false, number_changed = false;
        for (size_t j = 0; j < a.find('A'); ++j) {
          const bool digit = std::isdigit(static_cast<unsigned char>(a[j])) && !(j > 0 && a[j - 1] == 'L');
          ASSERT_TRUE(digit || a[j] == b[j]) << label(config) << '\n' << a << '\n' << b;
          const bool begins = digit && (std::string(noise) == "static_char" || !in_number);
          places += begins;
          if (begins) number_changed = false;
          if (digit && a[j] != b[j] && !number_changed) {
            number_changed = true;
            ++here;
            if (first == 0) first = line;
          }
          in_number = digit;
          // A line of the signed sum ends after the two digits that follow its colon.
          line += sum ? j >= 2 && a[j - 2] == ':' : a[j] == '\n';
        }
        ASSERT_EQ(a.substr(a.find('A')), b.substr(b.find('A'))) << "the answer was changed";
        ASSERT_EQ(here, dirty[i].n_errors) << label(config) << '\n' << a << '\n' << b;
        ASSERT_EQ(first, dirty[i].first_error_line) << label(config) << '\n' << a << '\n' << b;
        errors += here;
      }
      EXPECT_NEAR(errors, 0.4 * places, 5 * std::sqrt(places * 0.24)) << label(config);
    }
}

TEST(TintNoise, StaticNoiseReachesTheAnswerOnlyWhenAsked) {
  TintConfig config = noisy("add", "static_char", 1, 1);
  config.noise_answer = true;
  for (const TintSample& sample : samples(config, 97)) {
    EXPECT_NE(sample.answer_trace, sample.answer_true);
    EXPECT_EQ(sample.answer_trace.size(), sample.answer_true.size());
    EXPECT_NE(sample.completion.find("A" + sample.answer_trace + "."), std::string::npos);
  }
  // Training examples carry the true answer all the same.
  const Tint tint(config, 3, Split::train);
  for (const Example& example : tint.take(0, 33)) EXPECT_EQ(example.answer, solve(config, example.prompt));
}

TEST(TintNoise, StaticLineDropsRepeatsOrSwaps) {
  const TintConfig config = noisy("mul", "static_line", 1, 0.3);
  const auto clean = samples(config_of("mul"), 400), dirty = samples(config, 400);
  int64_t shorter = 0, longer = 0, swapped = 0;
  for (size_t i = 0; i < clean.size(); ++i) {
    const auto a = split(clean[i].completion, '\n'), b = split(dirty[i].completion, '\n');
    const std::set<std::string> known(a.begin(), a.end());
    for (const auto& line : b) ASSERT_TRUE(known.count(line)) << line;
    ASSERT_EQ(a.back(), b.back());
    ASSERT_TRUE(dirty[i].n_errors > 0 || a == b);
    if (dirty[i].n_errors != 1) continue;
    shorter += b.size() + 1 == a.size();
    longer += b.size() == a.size() + 1;
    swapped += b.size() == a.size();
    const auto where = static_cast<size_t>(dirty[i].first_error_line);
    ASSERT_TRUE(where >= 1 && where < a.size());
    ASSERT_TRUE(std::equal(a.begin(), a.begin() + static_cast<int64_t>(where) - 1, b.begin()));
  }
  EXPECT_GT(shorter, 10);
  EXPECT_GT(longer, 10);
  EXPECT_GT(swapped, 10);
}

TEST(TintNoise, DynamicTracesGoOnFromTheWrongValue) {
  for (TintConfig config : variants()) {
    config.noise = "dynamic";
    config.contamination = 1;
    config.intensity = 0.15;
    SCOPED_TRACE(label(config));
    int64_t errors = 0, wrong = 0;
    for (const char* answer : {"true", "propagated"}) {
      config.label = answer;
      for (const TintSample& sample : samples(config, 150)) {
        const Reading reading = read(config, sample);
        ASSERT_EQ(reading.errors, sample.n_errors) << sample.prompt << sample.completion;
        ASSERT_EQ(reading.first, sample.first_error_line) << sample.prompt << sample.completion;
        ASSERT_EQ(reading.answer, sample.answer_trace) << sample.prompt << sample.completion;
        ASSERT_EQ(sample.answer_true, solve(config, sample.prompt));
        const std::string& written = config.label == "true" ? sample.answer_true : sample.answer_trace;
        const std::string tail = "A" + written + ".";
        ASSERT_EQ(sample.completion.substr(sample.completion.size() - tail.size()), tail);
        ASSERT_TRUE(sample.n_errors > 0 || sample.answer_trace == sample.answer_true);
        errors += sample.n_errors;
        wrong += sample.answer_trace != sample.answer_true;
      }
    }
    const bool list = config.task == "sort" || config.task == "median";
    if (list && config.terms[0] == 1) {
      EXPECT_EQ(errors, 0);  // nothing is compared
    } else {
      EXPECT_GT(errors, 0);
      EXPECT_GT(wrong, 0);
    }
  }
}

TEST(TintNoise, EveryOperationErrsAtTheGivenRate) {
  constexpr int64_t kSamples = 2000;
  const TintConfig config = noisy("mul", "dynamic", 1, 0.25);
  int64_t operations = 0, errors = 0;
  for (const TintSample& sample : samples(config, kSamples)) {
    operations += std::count(sample.completion.begin(), sample.completion.end(), '\n');
    errors += sample.n_errors;
  }
  EXPECT_NEAR(errors, 0.25 * operations, 5 * std::sqrt(operations * 0.25 * 0.75));
}

TEST(TintNoise, ARunawayProgramIsStopped) {
  TintConfig config = config_of("sort");
  config.algorithm = "insertion";
  std::vector<int64_t> sorted;
  for (int64_t i = 0; i < 26; ++i)
    sorted.push_back(i);  // clean: 25 comparisons; all of them wrong: 325, and as many swaps
  Stream stream(1, Purpose::noise);
  Faults faults(&stream, 1);
  const Trace trace = run_program(config, sorted, faults);
  EXPECT_GE(trace.lines.size(), 250u);
  EXPECT_LE(trace.lines.size(), 251u);
}

}  // namespace ISENTROPE_UNIT
}  // namespace isentrope::data
