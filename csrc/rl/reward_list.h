// The list `reward` of a phase: rewards that score completions (csrc/rl/reward.h), and methods that change what the scores add up to
// (csrc/methods), in order.
#pragma once
#include <cctype>
#include <string>
#include <vector>

#include "csrc/methods/registry.h"
#include "csrc/rl/reward.h"

namespace isentrope::rl {

using RewardEntry = methods::RewardOf<RewardConfig>;
using Shaping = methods::RewardOf<>;

inline std::vector<RewardConfig> scores_of(const std::vector<RewardEntry>& list) {
  std::vector<RewardConfig> scores;
  for (const RewardEntry& entry : list)
    if (const RewardConfig* one = entry.get<RewardConfig>()) scores.push_back(*one);
  return scores;
}

inline std::vector<Shaping> shaping_of(const std::vector<RewardEntry>& list) {
  std::vector<Shaping> shaping;
  for (const RewardEntry& entry : list)
    std::visit(
        [&]<class T>(const T& one) {
          if constexpr (!std::is_same_v<T, RewardConfig>) shaping.push_back(one);
        },
        entry.value);
  return shaping;
}

// What an entry's keys name in tokens is looked up. Throws std::invalid_argument, "key: …", where the tokenizer has no such token.
template <class Entry>
void bind(Entry& entry, const data::Tokenizer& tokenizer) {
  const auto lower = [](std::string text) {
    for (char& c : text) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
    return text;
  };
  const auto tokens_called = [&](const std::string& text) {
    std::vector<bool> found(tokenizer.size());
    for (int64_t id = 0; id < tokenizer.size(); ++id) found[id] = lower(tokenizer.decode({id})) == lower(text);
    return found;
  };
  std::visit(
      [&](auto& method) {
        if constexpr (requires { method.bind(tokens_called); }) method.bind(tokens_called);
      },
      entry.value);
}

}  // namespace isentrope::rl
