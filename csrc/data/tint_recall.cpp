// TInt's recall: keys with values, and which of them are asked for.
#include <algorithm>
#include <vector>

#include "csrc/data/tint_trace.h"

namespace isentrope::data {
namespace {

constexpr int64_t kMostValues = 10;

// The first `count` of the letters in a random order.
std::vector<int64_t> drawn_without_repeats(std::vector<int64_t> from, int64_t count, Stream& stream) {
  for (int64_t i = 0; i < count; ++i)
    std::swap(from[i], from[i + stream.below(static_cast<uint32_t>(static_cast<int64_t>(from.size()) - i))]);
  from.resize(count);
  return from;
}

}  // namespace

TintProblem draw_recall(const TintConfig& config, int64_t pairs, Stream& stream) {
  std::vector<int64_t> letters(config.vocabulary), value_of(config.vocabulary);
  for (int64_t i = 0; i < config.vocabulary; ++i) letters[i] = i;
  const std::vector<int64_t> keys = drawn_without_repeats(letters, pairs, stream);
  TintProblem problem;
  for (const int64_t key : keys) {
    value_of[key] = stream.below(static_cast<uint32_t>(std::min(config.vocabulary, kMostValues)));
    problem.prompt += letter(key) + std::to_string(value_of[key]);
  }
  problem.prompt += std::string(config.gap, '-') + ':';
  for (const int64_t key : drawn_without_repeats(keys, config.queries, stream)) {
    problem.prompt += letter(key);
    problem.right.text += letter(key) + std::to_string(value_of[key]);
    problem.right.answer += std::to_string(value_of[key]);
  }
  problem.prompt += '=';
  return problem;
}

}  // namespace isentrope::data
