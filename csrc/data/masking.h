// Masked language modelling (BERT, arXiv 1810.04805): of a text some tokens are the target, and what stands in their place is drawn. Shares by
// the names that transformers' DataCollatorForLanguageModeling has for them.
#pragma once
#include <cstdint>
#include <string>

#include "csrc/data/random.h"
#include "csrc/data/tokenizer.h"
#include "csrc/field.h"

namespace isentrope::data {

struct MaskingConfig {
  double mlm_probability = 0.15;
  double mask_replace_prob = 0.8;
  double random_replace_prob = 0.1;
  std::string mask_token;

  std::string problem() const;

  template <class Visitor>
  void visit(Visitor& v) {
    v("mlm_probability", mlm_probability, "Chance of a token to be a target.", above_to(0, 1));
    v("mask_replace_prob", mask_replace_prob, "Chance of a target to be replaced by the mask token,", between(0, 1));
    v("random_replace_prob", random_replace_prob,
      "and by a token drawn from the vocabulary; the rest of the targets stand as they are.", between(0, 1));
    v("mask_token", mask_token,
      "The mask token, a special token of the tokenizer; empty: the first of <mask>, [MASK] and <|mask|> that it has, "
      "else its padding where that is no end of sequence: a model is told padding by lengths alone.");
  }
};

// What mask_tokens() works with.
struct Masking {
  MaskingConfig config;
  int64_t mask_id = 0;
  int64_t vocabulary = 0;  // tokens drawn are 0 … vocabulary − 1 without the mask
};

// Throws std::invalid_argument where config.mask_token is no special token of the tokenizer, or none is named and it has none to take.
Masking masking_of(const MaskingConfig& config, const Tokenizer& tokenizer);

// tokens [count] → target [count]: the token where it is a target, kIgnore elsewhere, and in tokens what stands in its place. All draws are the
// next of stream: a pure function of it, config and tokens.
void mask_tokens(const Masking& masking, Stream& stream, int64_t count, int64_t* tokens /*[count]*/,
                 int64_t* target /*[count]*/);

}  // namespace isentrope::data
