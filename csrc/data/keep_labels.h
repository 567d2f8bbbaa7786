// Labels of extractive compression (LLMLingua-2, arXiv 2403.12968): which words of a text its compression kept. No tensors.
#pragma once
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "csrc/data/tokenizer.h"
#include "csrc/field.h"

namespace isentrope::data {

struct TagConfig {
  int64_t window = 150;
  std::string match = "words";

  template <class Visitor>
  void visit(Visitor& v) {
    v("window", window,
      "Words on either side of the last one found within which a word of the compression is looked for in its text.",
      between(1, 1 << 20));
    v("match", match,
      "What a word of the compression and one of its text have in common: the word, or its lemma (lemmas, English "
      "alone: "
      "inflections of one word count as that word, as in LLMLingua-2).",
      one_of({"words", "lemmas"}));
  }
};

// The bytes of a word, which white space parts from the next: from behind the word before it, white space and all.
struct Word {
  size_t begin = 0, text = 0, end = 0;  // begin … text is white space
};
std::vector<Word> words_of(std::string_view text);
// What words are compared by: ASCII letters small, without the ASCII punctuation at either end; a word of punctuation alone as it is.
std::string compared_word(std::string_view word);

struct Alignment {
  std::vector<bool> kept;  // of each word of the text
  int64_t compressed = 0;  // words of the compression,
  int64_t unaligned = 0;   // of them those that the text has not within the window
};
// Each word of the compression keeps the first equal word of the text that none before it kept, looked for from the last one found
// outwards, forwards before backwards; one step goes at most half a window forwards. Words are equal by compared_word(), or with
// match = lemmas where they may be forms of one word (lemmas.h): the authors' code compares lemmas, of a model of the language.
Alignment align_words(std::string_view text, std::string_view compressed, const TagConfig& config);

// The text's tokens, word by word, and the word that each is of; -1 of those that begin a sequence. No token is of two words.
struct TokenWords {
  std::vector<int64_t> ids, word;
};
TokenWords token_words(std::string_view text, const std::vector<Word>& words, const Tokenizer& tokenizer);

}  // namespace isentrope::data
