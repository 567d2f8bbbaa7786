#include "csrc/methods/token_text.h"

namespace isentrope::methods {

TokenizedText::TokenizedText(std::span<const int64_t> tokens, const TextOf& text_of) {
  for (size_t t = 0; t < tokens.size(); ++t) {
    const std::string& own = text_of(tokens[t], t == 0);
    text_ += own;
    owner_.insert(owner_.end(), own.size(), static_cast<int64_t>(t));
  }
}

std::pair<int64_t, int64_t> TokenizedText::find(const std::string& wanted, size_t from, size_t* behind) const {
  const size_t at = text_.find(wanted, from);
  if (at == std::string::npos || wanted.empty()) return {-1, -1};
  if (behind) *behind = at + wanted.size();
  return {owner_[at], owner_[at + wanted.size() - 1] + 1};
}

std::vector<int64_t> steps_of(std::span<const int64_t> tokens, const TextOf& text_of, const std::string& marker) {
  const TokenizedText text(tokens, text_of);
  std::vector<int64_t> step(tokens.size(), 0);
  size_t from = 0;
  int64_t number = 0, begun = 0;  // the first token whose step has no number yet
  for (;;) {
    const auto [first, behind] = text.find(marker, from, &from);
    if (first < 0) break;
    if (behind <= begun) continue;  // within the token that ended the last step
    for (; begun < behind; ++begun) step[begun] = number;
    ++number;
  }
  for (; begun < std::ssize(step); ++begun) step[begun] = number;
  return step;
}

}  // namespace isentrope::methods
