// TInt's countdown: numbers, a target, and the roads that may lead there.
#include <algorithm>
#include <numeric>
#include <optional>

#include "csrc/data/expression.h"
#include "csrc/data/tint_search.h"
#include "csrc/data/tint_trace.h"

namespace isentrope::data {
namespace {

constexpr int64_t kLargest = 99;  // what two digits hold

// From the first number on one operation after the other: 3+2 makes 5, *5 makes 25.
struct Road {
  std::string text, expression;
  int64_t total = 0;
};

// total and d joined by an operation; nothing where that is no number of two digits.
std::optional<int64_t> join_by(char operation, int64_t total, int64_t d) {
  if (operation == '/' && total % d != 0) return std::nullopt;
  const int64_t made = operation == '+'   ? total + d
                       : operation == '-' ? total - d
                       : operation == '*' ? total * d
                                          : total / d;
  return made >= 0 && made <= kLargest ? std::optional(made) : std::nullopt;
}

// The numbers (1 … 9 each) in a random order under random operations; a road that leaves 0 … 99 is drawn again. It ends, since sums
// do not leave it.
Road draw_road(std::vector<int64_t> numbers, const std::string& operations, Stream& stream) {
  for (;;) {
    for (size_t i = numbers.size(); i > 1; --i)
      std::swap(numbers[i - 1], numbers[stream.below(static_cast<uint32_t>(i))]);
    Road road{std::to_string(numbers[0]), std::to_string(numbers[0]), numbers[0]};
    bool sum = false;  // of what the expression is: a product with it needs parentheses
    size_t used = 1;
    for (; used < numbers.size(); ++used) {
      const char operation = operations[stream.below(static_cast<uint32_t>(operations.size()))];
      const std::string step = operation + std::to_string(numbers[used]);
      const auto total = join_by(operation, road.total, numbers[used]);
      if (!total) break;
      road.total = *total;
      road.text += step + ':' + low_first(*total);
      const bool additive = operation == '+' || operation == '-';
      road.expression = (sum && !additive ? '(' + road.expression + ')' : road.expression) + step;
      sum = additive;
    }
    if (used == numbers.size()) return road;
  }
}

}  // namespace

TintProblem draw_countdown(const TintConfig& config, int64_t numbers, Stream& stream) {
  TintProblem problem;
  for (int64_t i = 0; i < numbers; ++i) problem.values.push_back(1 + stream.below(9));
  const Road road = draw_road(problem.values, config.operations, stream);
  problem.prompt = join(problem.values) + ':' + low_first(road.total) + '=';
  problem.values.push_back(road.total);
  problem.right = {road.text, road.expression, true};
  return problem;
}

Try try_countdown(const TintConfig& config, const TintProblem& problem, Stream& stream) {
  const Road road = draw_road({problem.values.begin(), problem.values.end() - 1}, config.operations, stream);
  return {road.text, road.expression, road.total == problem.values.back()};
}

std::optional<CountdownPrompt> CountdownPrompt::read(std::string_view prompt) {
  const auto digit = [&](size_t i) { return i < prompt.size() && prompt[i] >= '0' && prompt[i] <= '9'; };
  CountdownPrompt found;
  size_t at = 0;
  do {
    if (!digit(at) || digit(at + 1)) return std::nullopt;
    found.numbers.push_back(prompt[at] - '0');
    at += 2;
  } while (at <= prompt.size() && prompt[at - 1] == ',');
  if (prompt.size() != at + 3 || prompt[at - 1] != ':' || !digit(at) || !digit(at + 1) || prompt[at + 2] != '=')
    return std::nullopt;
  found.target = (prompt[at] - '0') + 10 * (prompt[at + 1] - '0');
  return found;
}

bool CountdownPrompt::solved_by(std::string_view answer) const {
  std::optional<Expression> made = Expression::read(answer);
  if (!made) return false;
  std::vector<int64_t> given = numbers;
  std::sort(given.begin(), given.end());
  std::sort(made->numbers.begin(), made->numbers.end());
  return made->numbers == given && made->denominator == 1 && made->numerator == target;
}

}  // namespace isentrope::data
