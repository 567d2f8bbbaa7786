// Text of tokens that come one by one, for a screen or a file: never a part of a character.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "csrc/data/tokenizer.h"

namespace isentrope::data {

class TextStream {
 public:
  explicit TextStream(const Tokenizer& tokenizer) : tokenizer_(tokenizer) {}
  // What the token completes: the text so far up to its last whole character, less what was given before. What can be no part
  // of a character any more is given as the bytes that it is. Throws as Tokenizer::decode.
  std::string push(int64_t id);
  // What is left: the beginning of a character that nothing completes.
  std::string flush();

 private:
  const Tokenizer& tokenizer_;
  bool first_ = true;
  std::string held_;
};

// What each of the tokens completes, the rest with the last one; together they are decode(ids).
std::vector<std::string> texts_of(const Tokenizer& tokenizer, const std::vector<int64_t>& ids);

}  // namespace isentrope::data
