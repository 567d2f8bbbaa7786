#include "csrc/rl/text_rules.h"

#include <algorithm>
#include <memory>
#include <set>
#include <stdexcept>
#include <utility>

#include "csrc/message.h"

namespace isentrope::rl {
namespace {

// Whether tokens one behind the other can have this text in theirs.
bool can_be_written(const std::string& text, const data::Tokenizer& tokenizer) {
  std::vector<bool> reached(text.size() + 1, false);  // the first so many bytes, at the end of a token
  reached[0] = true;
  const auto each_token = [&](const auto& look) {
    for (int64_t id = 0; id < tokenizer.size(); ++id)
      for (const bool first : {false, true})
        if (look(std::string_view(tokenizer.text_of(id, first)))) return true;
    return false;
  };
  const auto begins = [&](std::string_view piece) {
    if (piece.find(text) != std::string_view::npos) return true;
    for (size_t size = 1; size < text.size(); ++size)
      if (piece.ends_with(std::string_view(text).substr(0, size))) reached[size] = true;
    return false;
  };
  if (each_token(begins)) return true;
  for (size_t at = 0; at < text.size(); ++at) {
    const std::string_view rest = std::string_view(text).substr(at);
    const auto goes_on = [&](std::string_view piece) {
      if (piece.starts_with(rest)) return true;
      if (!piece.empty() && rest.starts_with(piece)) reached[at + piece.size()] = true;
      return false;
    };
    if (reached[at] && each_token(goes_on)) return true;
  }
  return false;
}

std::string text_of(const std::vector<int64_t>& ids, const data::Tokenizer& tokenizer) {
  std::string text;
  for (const int64_t id : ids) text += tokenizer.text_of(id, false);
  return text;
}

// As bad_sequences() says, of one word; none where the tokenizer has no such text.
std::vector<std::vector<int64_t>> sequences_of(const std::string& word, const data::Tokenizer& tokenizer) {
  std::vector<std::vector<int64_t>> found{tokenizer.encode(word)};  // throws for what it does not take
  if (found.front().empty()) return {};
  const int64_t within = found.front().front();
  found.push_back(tokenizer.encode_behind(within, word));
  try {
    found.push_back(tokenizer.encode_behind(within, " " + word));
  } catch (const std::invalid_argument&) {  // the alphabet has no space
  }
  std::erase_if(found, [&](const auto& ids) { return text_of(ids, tokenizer).find(word) == std::string::npos; });
  return found;
}

}  // namespace

TextRules::TextRules(const std::vector<std::string>& stop, const std::vector<std::string>& bad_words,
                     const data::Tokenizer& tokenizer)
    : tokenizer_(tokenizer), stop_(stop) {
  const auto refuse = [](const char* key, size_t place, const std::string& why) {
    throw std::invalid_argument(std::string(key) + "." + std::to_string(place) + ": " + why);
  };
  for (size_t i = 0; i < stop.size(); ++i) {
    if (stop[i].empty()) refuse("stop", i, "the text is empty, and would end every completion; leave it out");
    if (!can_be_written(stop[i], tokenizer))
      refuse("stop", i,
             "no tokens of the tokenizer can write " + isentrope::quoted(stop[i]) + ", so that it would end nothing");
    longest_ = std::max(longest_, stop[i].size());
  }
  std::set<std::vector<int64_t>> sequences;
  for (size_t i = 0; i < bad_words.size(); ++i) {
    const std::string& word = bad_words[i];
    if (word.empty()) refuse("bad_words", i, "the text is empty; leave it out");
    std::vector<std::vector<int64_t>> found;
    try {
      found = sequences_of(word, tokenizer);
    } catch (const std::invalid_argument& error) {
      refuse("bad_words", i, error.what());
    }
    if (found.empty())
      refuse("bad_words", i,
             "no tokens spell " + isentrope::quoted(word) + "; the tokenizer reads it as " +
                 isentrope::quoted(text_of(tokenizer.encode(word), tokenizer)));
    for (const std::vector<int64_t>& ids : found) {
      if (ids.size() == 1 && tokenizer.ends(ids.front()))
        refuse("bad_words", i,
               isentrope::quoted(word) +
                   " ends a sequence, and without it no completion could end; min_new_tokens delays it");
      sequences.insert(ids);
    }
  }
  bad_.assign(sequences.begin(), sequences.end());
  if (bad_words.empty()) return;
  for (int64_t id = 0; id < tokenizer.size(); ++id)
    if (!tokenizer.ends(id) && id != tokenizer.pad_id() && !sequences.contains({id})) return;
  throw std::invalid_argument(
      "bad_words: together they are all tokens of the tokenizer but those that end a sequence; every completion would "
      "be "
      "empty");
}

bool TextRules::stops(std::span<const int64_t> completion) const {
  if (stop_.empty() || completion.empty()) return false;
  // The last token's text behind as much as a stop text that ends in it can have before.
  size_t from = completion.size() - 1, before = 0;
  const std::string* piece = &tokenizer_.text_of(completion[from], from == 0);
  if (piece->empty()) return false;
  const size_t added = piece->size();
  std::string text = *piece;
  while (from > 0 && before + 1 < longest_) {
    --from;
    piece = &tokenizer_.text_of(completion[from], from == 0);
    text.insert(0, *piece);
    before += piece->size();
  }
  for (const std::string& stop : stop_) {
    const size_t old = text.size() - added;  // bytes of the tokens before
    const size_t first = old + 1 > stop.size() ? old + 1 - stop.size() : 0;
    if (text.find(stop, first) != std::string::npos) return true;
  }
  return false;
}

void TextRules::forbid(std::span<const int64_t> before, std::vector<int64_t>& forbidden) const {
  for (const std::vector<int64_t>& ids : bad_) {
    const size_t prefix = ids.size() - 1;
    if (prefix <= before.size() && std::equal(ids.begin(), ids.end() - 1, before.end() - static_cast<int64_t>(prefix)))
      forbidden.push_back(ids.back());
  }
}

SamplingConfig with_rules(SamplingConfig sampling, const data::Tokenizer& tokenizer) {
  if (!sampling.stop.empty() || !sampling.bad_words.empty())
    sampling.rules = std::make_shared<TextRules>(sampling.stop, sampling.bad_words, tokenizer);
  return sampling;
}

}  // namespace isentrope::rl
