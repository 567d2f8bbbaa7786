#include "csrc/data/keep_labels.h"

#include <algorithm>

#include "csrc/data/lemmas.h"

namespace isentrope::data {
namespace {

bool is_space(char c) { return c == ' ' || (c >= '\t' && c <= '\r'); }

bool is_punctuation(char c) {
  return (c >= '!' && c <= '/') || (c >= ':' && c <= '@') || (c >= '[' && c <= '`') || (c >= '{' && c <= '~');
}

}  // namespace

std::vector<Word> words_of(std::string_view text) {
  std::vector<Word> words;
  for (size_t at = 0; at < text.size();) {
    Word word{.begin = at};
    while (at < text.size() && is_space(text[at])) ++at;
    word.text = at;
    while (at < text.size() && !is_space(text[at])) ++at;
    word.end = at;
    if (word.text < word.end) words.push_back(word);
  }
  return words;
}

std::string compared_word(std::string_view word) {
  size_t begin = 0, end = word.size();
  while (begin < end && is_punctuation(word[begin])) ++begin;
  while (end > begin && is_punctuation(word[end - 1])) --end;
  std::string found(begin < end ? word.substr(begin, end - begin) : word);
  for (char& c : found)
    if (c >= 'A' && c <= 'Z') c = static_cast<char>(c - 'A' + 'a');
  return found;
}

Alignment align_words(std::string_view text, std::string_view compressed, const TagConfig& config) {
  // Of each word the forms of which one has to be equal.
  const auto forms = [&](std::string_view of) {
    std::vector<std::vector<std::string>> found;
    for (const Word& word : words_of(of)) {
      const std::string one = compared_word(of.substr(word.text, word.end - word.text));
      found.push_back(config.match == "lemmas" ? lemmas(one) : std::vector<std::string>{one});
    }
    return found;
  };
  const std::vector<std::vector<std::string>> own = forms(text);
  Alignment found{.kept = std::vector<bool>(own.size())};
  const auto n = static_cast<int64_t>(own.size());
  int64_t last = 0;
  for (const std::vector<std::string>& wanted : forms(compressed)) {
    const auto takes = [&](int64_t i) {
      if (i < 0 || i >= n || found.kept[i] || !share_lemma(own[i], wanted)) return false;
      found.kept[i] = true;
      return true;
    };
    ++found.compressed;
    bool there = false;
    for (int64_t i = 0; i < config.window && !there; ++i) {
      if ((there = takes(last + i)))
        last += std::min(i, std::max<int64_t>(config.window / 2, 1));
      else if ((there = takes(last - i)))
        last -= i;
    }
    found.unaligned += !there;
  }
  return found;
}

TokenWords token_words(std::string_view text, const std::vector<Word>& words, const Tokenizer& tokenizer) {
  TokenWords found;
  for (size_t i = 0; i < words.size(); ++i) {
    const std::string_view piece = text.substr(words[i].begin, words[i].end - words[i].begin);
    const std::vector<int64_t> ids =
        found.ids.empty() ? tokenizer.encode_prompt(piece) : tokenizer.encode_behind(found.ids.back(), piece);
    const size_t before = i == 0 ? ids.size() - tokenizer.encode(piece).size() : 0;
    for (size_t t = 0; t < ids.size(); ++t) {
      found.ids.push_back(ids[t]);
      found.word.push_back(t < before ? -1 : static_cast<int64_t>(i));
    }
  }
  return found;
}

}  // namespace isentrope::data
