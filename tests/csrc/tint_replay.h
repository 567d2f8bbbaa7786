// A reader who knows TInt's rules: solves prompts, and runs each program beside its trace, for the tests.
#pragma once
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <set>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "csrc/data/tint.h"
#include "csrc/data/tint_trace.h"

namespace isentrope::data {

inline const std::vector<std::string> kPrograms = {"add", "sub", "mul", "median", "sort"};

inline TintConfig config_of(const std::string& task) {
  TintConfig config;
  config.task = task;
  config.digits = {1, 4};
  config.held_out = 64;
  return config;
}

inline TintConfig noisy(const std::string& task, const std::string& noise, double contamination, double intensity) {
  TintConfig config = config_of(task);
  config.noise = noise;
  config.contamination = contamination;
  config.intensity = intensity;
  return config;
}

inline std::vector<TintSample> samples(const TintConfig& config, int64_t count, uint64_t seed = 3) {
  const Tint tint(config, seed, Split::train);
  std::vector<TintSample> result;
  for (int64_t i = 0; i < count; ++i) result.push_back(tint.sample(i, config.terms[0]));
  return result;
}

inline std::vector<std::string> tasks() {
  std::vector<std::string> all = kPrograms;
  all.push_back("signed_sum");
  return all;
}

inline std::vector<std::string> split(const std::string& text, char at) {
  std::vector<std::string> parts;
  std::stringstream stream(text);
  for (std::string part; std::getline(stream, part, at);) parts.push_back(part);
  return parts;
}

// What a reader who knows the rules finds in a trace: errors, the line of the first, and what it arrives at.
struct Reading {
  std::string answer;
  int64_t errors = 0, first = 0;
  void see(bool wrong, int64_t line) {
    if (wrong && errors++ == 0) first = line;
  }
};

// "a+5b-6=" → {5, -6}
inline std::vector<int64_t> terms_of(const std::string& prompt) {
  std::vector<int64_t> values;
  for (size_t i = 0; i + 3 <= prompt.size(); i += 3) {
    EXPECT_EQ(prompt[i], static_cast<char>('a' + i / 3)) << prompt;
    EXPECT_TRUE(prompt[i + 1] == '+' || prompt[i + 1] == '-') << prompt;
    EXPECT_TRUE(prompt[i + 2] >= '1' && prompt[i + 2] <= '9') << prompt;
    values.push_back((prompt[i + 1] == '-' ? -1 : 1) * (prompt[i + 2] - '0'));
  }
  EXPECT_EQ(prompt.back(), '=') << prompt;
  return values;
}

inline Reading read_signed_sum(const TintSample& sample) {
  const std::vector<int64_t> values = terms_of(sample.prompt);
  std::set<char> used;
  Reading reading;
  int64_t total = 0, line = 0;
  const std::string trace = sample.completion.substr(0, sample.completion.find('A'));
  for (size_t i = 0; i < trace.size(); i += 3) {
    for (; trace[i] != ':'; i += 3) {
      EXPECT_TRUE(used.insert(trace[i]).second) << "a term stands twice: " << sample.completion;
      EXPECT_EQ(trace.substr(i, 3), sample.prompt.substr(3 * static_cast<size_t>(trace[i] - 'a'), 3));
      total += values.at(static_cast<size_t>(trace[i] - 'a'));
    }
    const int64_t written = (trace[i + 1] - '0') + 10 * (trace[i + 2] - '0');
    reading.see(written != ((total % 100) + 100) % 100, ++line);
    total = written;
  }
  EXPECT_EQ(used.size(), values.size()) << sample.completion;
  reading.answer = low_first(total);
  return reading;
}

// Runs the program of a task beside its trace (line numbers and changes shown), going on from what stands
// there.
class Replay {
 public:
  Replay(const TintConfig& config, const TintSample& sample) : config_(config) {
    for (const auto& line : split(sample.completion.substr(0, sample.completion.rfind('A')), '\n'))
      lines_.push_back(line);
    std::string numbers = sample.prompt;
    for (char& c : numbers) c = c >= '0' && c <= '9' ? c : ' ';
    std::stringstream stream(numbers);
    for (int64_t value; stream >> value;) x_.push_back(value);
  }

  Reading run() {
    if (config_.task == "add" || config_.task == "sub") {
      digits();
    } else if (config_.task == "mul") {
      product();
    } else {
      config_.algorithm == "selection" ? selection() : insertion();
      reading_.answer = join(x_);
      if (config_.task == "median") median();
    }
    EXPECT_EQ(next_, lines_.size()) << "lines left over";
    return reading_;
  }

 private:
  int64_t expect(int line, char name, int64_t right) {
    const int64_t value = std::stoll(expect_text(line, name));
    reading_.see(value != right, static_cast<int64_t>(next_));
    return value;
  }
  std::string expect_text(int line, char name) {
    if (next_ >= lines_.size()) throw std::runtime_error("the trace ends before its program");
    const std::string& text = lines_[next_++];
    const std::string head = "L" + std::to_string(line) + " " + name + "=";
    if (text.compare(0, head.size(), head) != 0) throw std::runtime_error("line \"" + text + "\" should begin " + head);
    return text.substr(head.size());
  }

  void digits() {
    const bool add = config_.task == "add";
    int64_t a = x_[0], b = x_[1], c = 0, value = 0, place = 1;
    for (size_t n = std::to_string(std::max(a, b)).size(); n > 0; --n, a /= 10, b /= 10, place *= 10) {
      const int64_t s = expect(1, 's', add ? a % 10 + b % 10 + c : 10 + a % 10 - b % 10 - c);
      value += place * expect(2, 'd', s % 10);
      c = add ? expect(3, 'c', s / 10) : expect(3, 'c', s < 10);
    }
    reading_.answer = std::to_string(add ? value + place * c : value);
  }
  void product() {
    int64_t r = 0, place = 1, b = x_[1];
    for (size_t n = std::to_string(b).size(); n > 0; --n, b /= 10, place *= 10)
      r = expect(2, 'r', r + place * expect(1, 'p', x_[0] * (b % 10)));
    reading_.answer = std::to_string(r);
  }
  void selection() {
    for (size_t i = 0; i + 1 < x_.size(); ++i) {
      size_t m = i;
      EXPECT_EQ(expect_text(1, 'm'), std::to_string(i));
      for (size_t j = i + 1; j < x_.size(); ++j)
        if (expect(2, 't', x_[j] < x_[m])) {
          m = j;
          EXPECT_EQ(expect_text(3, 'm'), std::to_string(m));
        }
      if (m == i) continue;
      std::swap(x_[i], x_[m]);
      EXPECT_EQ(expect_text(4, 'x'), join(x_));
    }
  }
  void insertion() {
    for (size_t i = 1; i < x_.size(); ++i)
      for (size_t j = i; j > 0 && expect(1, 't', x_[j] < x_[j - 1]); --j) {
        std::swap(x_[j], x_[j - 1]);
        EXPECT_EQ(expect_text(2, 'x'), join(x_));
      }
  }
  void median() {
    const size_t k = (x_.size() - 1) / 2;
    const int64_t both = x_[k] + (k + 1 < x_.size() ? x_[k + 1] : 0);
    const bool mean = config_.even == "mean" && x_.size() % 2 == 0 && both % 2 == 0;
    reading_.answer = std::to_string(mean ? expect(6, 'r', both / 2) : expect(5, 'r', x_[k]));
  }

  TintConfig config_;
  std::vector<std::string> lines_;
  size_t next_ = 0;
  std::vector<int64_t> x_;
  Reading reading_;
};

inline Reading read(const TintConfig& config, const TintSample& sample) {
  return config.task == "signed_sum" ? read_signed_sum(sample) : Replay(config, sample).run();
}

// The right answer, from the prompt alone.
inline std::string solve(const TintConfig& config, const std::string& prompt) {
  if (config.task == "signed_sum") {
    int64_t sum = 0;
    for (const int64_t value : terms_of(prompt)) sum += value;
    EXPECT_TRUE(sum >= 0 && sum <= 99) << prompt;
    return low_first(sum);
  }
  std::string numbers = prompt;
  for (char& c : numbers) c = c >= '0' && c <= '9' ? c : ' ';
  std::stringstream stream(numbers);
  std::vector<int64_t> x;
  for (int64_t value; stream >> value;) x.push_back(value);
  if (config.task == "add") return std::to_string(x[0] + x[1]);
  if (config.task == "sub") return std::to_string(x[0] - x[1]);
  if (config.task == "mul") return std::to_string(x[0] * x[1]);
  std::sort(x.begin(), x.end());
  if (config.task == "sort") return join(x);
  const size_t k = (x.size() - 1) / 2;
  if (config.even == "mean" && x.size() % 2 == 0 && (x[k] + x[k + 1]) % 2 == 0)
    return std::to_string((x[k] + x[k + 1]) / 2);
  return std::to_string(x[k]);
}

// Every task with every program variant that changes its trace.
inline std::vector<TintConfig> variants() {
  std::vector<TintConfig> all;
  for (const auto& task : tasks())
    for (const int64_t terms : {1, 4, 5})
      for (const char* algorithm : {"selection", "insertion"})
        for (const char* even : {"lower", "mean"}) {
          TintConfig config = config_of(task);
          config.terms = {terms};
          config.algorithm = algorithm;
          config.even = even;
          if (task == "signed_sum" && terms == 1) continue;  // nine prompts, too few to split
          all.push_back(config);
        }
  return all;
}

inline std::string label(const TintConfig& c) {
  return c.task + " " + std::to_string(c.terms[0]) + " " + c.algorithm + " " + c.even + " " + c.noise;
}

}  // namespace isentrope::data
