// The list `reward` of a phase: rewards that score completions (csrc/rl/reward.h), and methods that change what the scores add up to
// (csrc/methods), in order.
#pragma once
#include <cctype>
#include <stdexcept>
#include <string>
#include <vector>

#include "csrc/methods/registry.h"
#include "csrc/rl/grams.h"
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

// The tokenizer as methods that look into texts see it.
inline methods::TokenText token_text(const data::Tokenizer& tokenizer) {
  return {
      .of = [&tokenizer](int64_t token, bool first) -> const std::string& { return tokenizer.text_of(token, first); },
      .writes =
          [&tokenizer](const std::string& text) {
            try {
              return !tokenizer.encode(text).empty();
            } catch (const std::invalid_argument&) {  // a character outside the alphabet
              return false;
            }
          },
      .read_grams = read_grams};
}

// Whether bind() looks anything up.
template <class Entry>
bool looks_into_texts(const Entry& entry) {
  return std::visit(
      []<class M>(const M&) {
        return requires(M method, methods::TokensCalled called) { method.bind(called); }
        || requires(M method, methods::TokenText text) { method.bind(text); };
      },
      entry.value);
}

// What an entry's keys name in tokens or texts is looked up; the tokenizer must outlive it. Throws std::invalid_argument, "key: …",
// where the tokenizer has no such token, or cannot write such a text, and where a file that a key names is wrong.
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
        if constexpr (requires(methods::TokenText text) { method.bind(text); }) method.bind(token_text(tokenizer));
      },
      entry.value);
}

}  // namespace isentrope::rl
