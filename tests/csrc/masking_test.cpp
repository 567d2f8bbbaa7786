// Masks of masked language modelling, and labels of words by a compression: shares, draws, and cases whose truth is known.
#include "csrc/data/masking.h"

#include <gtest/gtest.h>

#include <cmath>
#include <numeric>
#include <string>
#include <vector>

#include "csrc/data/batch.h"
#include "csrc/data/keep_labels.h"
#include "csrc/data/lemmas.h"
#include "tests/csrc/message.h"

namespace isentrope::data {
namespace ISENTROPE_UNIT {

struct Masked {
  std::vector<int64_t> tokens, target;
};

// Of tokens 1 … 97, over and over; 0 is the mask.
Masked masked(const MaskingConfig& config, int64_t count, uint64_t window = 0) {
  const Masking masking{.config = config, .mask_id = 0, .vocabulary = 98};
  Masked made{std::vector<int64_t>(count), std::vector<int64_t>(count)};
  for (int64_t t = 0; t < count; ++t) made.tokens[t] = 1 + t % 97;
  Stream stream(3, Purpose::mask, window);
  mask_tokens(masking, stream, count, made.tokens.data(), made.target.data());
  return made;
}

TEST(Masking, SharesAreThoseOfTheConfiguration) {
  constexpr int64_t kCount = 200000;
  const Masked made = masked({}, kCount);
  double targets = 0, mask = 0, same = 0, other = 0;
  for (int64_t t = 0; t < kCount; ++t) {
    const int64_t was = 1 + t % 97;
    if (made.target[t] == kIgnore) {
      EXPECT_EQ(made.tokens[t], was);
      continue;
    }
    EXPECT_EQ(made.target[t], was);
    ++targets;
    (made.tokens[t] == 0 ? mask : made.tokens[t] == was ? same : other) += 1;
  }
  const auto near = [](double count, double n, double p) {  // five standard deviations
    EXPECT_NEAR(count / n, p, 5 * std::sqrt(p * (1 - p) / n));
  };
  near(targets, kCount, 0.15);
  near(mask, targets, 0.8);
  near(other, targets, 0.1 * 96 / 97);  // of the tokens drawn one in 97 is the one that stood there
  near(same, targets, 0.1 + 0.1 / 97);
}

TEST(Masking, EveryTokenOrTheTokensAsTheyStand) {
  const Masked all =
      masked({.mlm_probability = 1, .mask_replace_prob = 1, .random_replace_prob = 0, .mask_token = ""}, 97);
  EXPECT_EQ(all.tokens, std::vector<int64_t>(97, 0));
  const Masked none =
      masked({.mlm_probability = 1, .mask_replace_prob = 0, .random_replace_prob = 0, .mask_token = ""}, 97);
  EXPECT_EQ(none.tokens, none.target);
}

TEST(Masking, DrawsAreOfTheStreamAlone) {
  const Masked one = masked({}, 1000), again = masked({}, 1000), other = masked({}, 1000, 1);
  EXPECT_EQ(one.tokens, again.tokens);
  EXPECT_EQ(one.target, again.target);
  EXPECT_NE(one.target, other.target);
}

TEST(Masking, TheMaskIsPaddingWhereATokenizerHasNoOther) {
  const Tokenizer bytes(TokenizerConfig{.kind = "bytes"});
  EXPECT_EQ(masking_of({}, bytes).mask_id, 0);
  EXPECT_EQ(masking_of({}, bytes).vocabulary, 258);
  expect_all(message([&] { masking_of({.mask_token = "<mask>"}, bytes); }),
             {"'<mask>' is no special token of the tokenizer"});
  EXPECT_NE((MaskingConfig{.random_replace_prob = 0.3, .mask_token = ""}.problem()), "");
}

std::string kept(const std::string& text, const std::string& compressed, int64_t window, int64_t unaligned,
                 const std::string& match = "words") {
  const Alignment found = align_words(text, compressed, {.window = window, .match = match});
  EXPECT_EQ(found.unaligned, unaligned) << compressed;
  std::string marks;
  for (const bool one : found.kept) marks += one ? '1' : '0';
  return marks;
}

TEST(Align, WordsOfTheCompressionAreFoundInTheirText) {
  EXPECT_EQ(kept("The cat, which sat, ran.", "cat ran", 150, 0), "01001");
  EXPECT_EQ(kept("a b a b a b", "b a", 150, 0), "011000");   // from the last one found on
  EXPECT_EQ(kept("a b c d", "c a", 150, 0), "1010");         // and behind it
  EXPECT_EQ(kept("a b c", "A! B? x", 150, 1), "110");        // letters small, marks left out
  EXPECT_EQ(kept("a a", "a a a", 150, 1), "11");             // each word once
  EXPECT_EQ(kept("x y y y y y z", "x z", 3, 1), "1000000");  // outside the window
  EXPECT_EQ(kept("", "x", 150, 1), "");
  EXPECT_EQ(compared_word("--"), "--");
  EXPECT_EQ(compared_word("(Über!)"), "Über");
}

TEST(Align, FormsOfAWordAreThatWordWhereLemmasAreCompared) {
  const std::string text = "Two cats were chasing mice and stopped.";
  EXPECT_EQ(kept(text, "cat is chased mouse stop", 150, 5), "0000000");
  EXPECT_EQ(kept(text, "cat is chased mouse stop", 150, 0, "lemmas"), "0111101");
  EXPECT_EQ(kept(text, "Two cats mice stopped", 150, 0, "lemmas"), kept(text, "Two cats mice stopped", 150, 0));
  EXPECT_EQ(kept("go go went", "gone went", 150, 0, "lemmas"), "110");  // the first that has the lemma, as with words
  EXPECT_EQ(kept("Über Übers", "über", 150, 1, "lemmas"), "00");  // letters small in ASCII alone, and no rule beyond it
}

TEST(Align, LemmasAreThoseOfTheRules) {
  const auto one = [](const std::string& a, const std::string& b) { return share_lemma(lemmas(a), lemmas(b)); };
  for (const auto& [a, b] : std::vector<std::pair<std::string, std::string>>{
           {"cats", "cat"},          {"cat's", "cats"},       {"boxes", "box"},      {"houses", "house"},
           {"cities", "city"},       {"movies", "movie"},     {"knives", "knife"},   {"children", "child"},
           {"analyses", "analysis"}, {"was", "being"},        {"went", "goes"},      {"stopping", "stop"},
           {"stopped", "stops"},     {"hoping", "hopes"},     {"falling", "fall"},   {"visited", "visits"},
           {"made", "making"},       {"carried", "carrying"}, {"died", "dying"},     {"agreed", "agree"},
           {"seeing", "saw"},        {"used", "using"},       {"passes", "passing"}, {"played", "plays"},
           {"lay", "lies"}})
    EXPECT_TRUE(one(a, b)) << a << " " << b;
  for (const auto& [a, b] : std::vector<std::pair<std::string, std::string>>{
           {"hoping", "hop"}, {"planed", "plan"}, {"news", "new"},    {"its", "it"},    {"his", "hi"},
           {"used", "us"},    {"need", "ne"},     {"king", "kings'"}, {"bus", "bu"},    {"pass", "pas"},
           {"bed", "be"},     {"thing", "the"},   {"cat", "dog"},     {"basis", "bas"}, {"seed", "see"},
           {"red", "reds!"},  {"bring", "br"},    {"this", "thi"},    {"42s", "42"},    {"read", "red"}})
    EXPECT_FALSE(one(a, b)) << a << " " << b;
  EXPECT_EQ(lemmas(""), std::vector<std::string>{""});
  EXPECT_EQ(lemmas("s"), std::vector<std::string>{"s"});
  EXPECT_EQ(lemmas("ing"), std::vector<std::string>{"ing"});
}

TEST(Align, TokensAreOfOneWordEach) {
  const std::string text = " ab  c\n";
  const auto words = words_of(text);
  ASSERT_EQ(words.size(), 2u);
  const TokenWords tokens = token_words(text, words, Tokenizer(TokenizerConfig{.kind = "bytes"}));
  EXPECT_EQ(tokens.word, (std::vector<int64_t>{0, 0, 0, 1, 1, 1}));
  EXPECT_EQ(tokens.ids, (std::vector<int64_t>{33, 98, 99, 33, 33, 100}));
}

}  // namespace ISENTROPE_UNIT
}  // namespace isentrope::data
