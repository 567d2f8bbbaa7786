// What the texts of a SamplingConfig are in tokens: where a completion ends, and what it may not hold. Functions of the tokens that
// stand there and of nothing else: a sequence that gave its pages up, or a branch, goes on as it would have.
#pragma once
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "csrc/data/tokenizer.h"
#include "csrc/rl/rollout.h"

namespace isentrope::rl {

class TextRules {
 public:
  // Throws std::invalid_argument that begins with the key ("stop.0: …") for an empty text, a stop text that no tokens can write, a
  // bad word that is no text of the tokenizer's or ends a sequence by itself, and bad words that leave nothing to write.
  TextRules(const std::vector<std::string>& stop, const std::vector<std::string>& bad_words,
            const data::Tokenizer& tokenizer);

  // Whether the last of these tokens ends a stop text, within or at the end of its own text: as stop_strings of transformers do, but
  // that the prompt's text counts for nothing.
  bool stops(std::span<const int64_t> completion) const;

  // Appends the tokens that would end a bad word behind these, prompt and completion.
  void forbid(std::span<const int64_t> before, std::vector<int64_t>& forbidden) const;
  // Each bad word as it is encoded at the beginning of a text, within one, and behind a space, without repetitions: bad_words_ids of
  // transformers. Other tokens that spell the same text are left alone.
  const std::vector<std::vector<int64_t>>& bad_sequences() const { return bad_; }

 private:
  data::Tokenizer tokenizer_;
  std::vector<std::string> stop_;
  size_t longest_ = 0;  // bytes of a stop text
  std::vector<std::vector<int64_t>> bad_;
};

// The same with its rules, where it has texts. rollout() takes no texts without.
SamplingConfig with_rules(SamplingConfig sampling, const data::Tokenizer& tokenizer);

}  // namespace isentrope::rl
