// TInt's signed sum: problems, orders of their terms, traces.
#include <algorithm>
#include <cstdlib>
#include <numeric>

#include "csrc/data/tint_trace.h"

namespace isentrope::data {
namespace {

constexpr double kPlus = 0.65;          // more plus than minus, so that few sums are drawn again for being negative
constexpr int64_t kLargestResult = 99;  // what two digits hold

std::string term(size_t index, int64_t value) {
  return {static_cast<char>('a' + index), value < 0 ? '-' : '+', static_cast<char>('0' + std::abs(value))};
}

bool representable(const std::vector<int64_t>& values, const SignedSumSteps& steps) {
  int64_t total = 0;
  for (const auto& step : steps) {
    for (const size_t index : step) total += values[index];
    if (total < 0 || total > kLargestResult) return false;
  }
  return true;
}

}  // namespace

std::string low_first(int64_t total) {
  return {static_cast<char>('0' + total % 10), static_cast<char>('0' + total / 10)};
}

TintProblem draw_signed_sum(int64_t terms, Stream& stream) {
  TintProblem problem;
  int64_t sum = 0;
  do {
    problem.values.clear();
    for (int64_t i = 0; i < terms; ++i) {
      const bool plus = stream.uniform() < kPlus;
      const int64_t digit = 1 + stream.below(9);
      problem.values.push_back(plus ? digit : -digit);
    }
    sum = std::accumulate(problem.values.begin(), problem.values.end(), int64_t{0});
  } while (sum < 0 || sum > kLargestResult);
  for (size_t i = 0; i < problem.values.size(); ++i) problem.prompt += term(i, problem.values[i]);
  problem.prompt += '=';
  return problem;
}

SignedSumSteps draw_steps(const std::vector<int64_t>& values, double merge, Stream& stream) {
  std::vector<size_t> order(values.size());
  SignedSumSteps steps;
  do {
    std::iota(order.begin(), order.end(), size_t{0});
    for (size_t i = order.size(); i > 1; --i) std::swap(order[i - 1], order[stream.below(static_cast<uint32_t>(i))]);
    steps.clear();
    for (const size_t index : order) {
      if (steps.empty() || stream.uniform() >= merge) steps.emplace_back();
      steps.back().push_back(index);
    }
  } while (!representable(values, steps));
  return steps;
}

std::string draw_thoughts(const std::vector<int64_t>& values, int64_t think, Stream& stream) {
  const auto count = static_cast<uint32_t>(values.size());
  std::string text;
  for (int64_t left = stream.below(static_cast<uint32_t>(think) + 1); left > 0; --left) {
    size_t one = 0, other = 0;
    do {  // ends: of a sum that is not below 0 some pair is not either
      one = stream.below(count);
      other = stream.below(count);
    } while (one == other || values[one] + values[other] < 0);
    text += term(one, values[one]) + term(other, values[other]) + ':' + low_first(values[one] + values[other]);
  }
  return text + ';';
}

Trace run_signed_sum(const std::vector<int64_t>& values, const SignedSumSteps& steps, Faults& faults) {
  Trace trace;
  int64_t total = 0;
  for (const auto& step : steps) {
    std::string content;
    for (const size_t index : step) {
      content += term(index, values[index]);
      total += values[index];
    }
    const int64_t modulus = kLargestResult + 1;
    total = faults.result(((total % modulus) + modulus) % modulus, kLargestResult);
    trace.lines.push_back({"", content + ':' + low_first(total)});
    if (faults.happened_last()) trace.count_error(static_cast<int64_t>(trace.lines.size()));
  }
  trace.answer = low_first(total);
  return trace;
}

}  // namespace isentrope::data
