// What methods find in the text of completions, as stretches of tokens.
#pragma once
#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "csrc/methods/method.h"

namespace isentrope::methods {

// A text over its tokens.
class TokenizedText {
 public:
  TokenizedText(std::span<const int64_t> tokens, const TextOf& text_of);

  const std::string& text() const { return text_; }
  // The token that byte `at` of the text belongs to.
  int64_t token_at(size_t at) const { return owner_[at]; }
  // Tokens [first, one behind the last) that hold part of the first place of wanted at or behind byte `from`; {−1, −1} where there is
  // none. behind: set to the byte behind that place.
  std::pair<int64_t, int64_t> find(const std::string& wanted, size_t from = 0, size_t* behind = nullptr) const;

 private:
  std::string text_;
  std::vector<int64_t> owner_;  // of each byte
};

// For each token the number of its step, from 0: steps end with the token that ends a marker. marker must not be empty.
std::vector<int64_t> steps_of(std::span<const int64_t> tokens, const TextOf& text_of, const std::string& marker);

}  // namespace isentrope::methods
