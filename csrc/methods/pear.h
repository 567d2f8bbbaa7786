// Reward: right answers whose thinking is more hesitant than their answer pay for it (arXiv 2510.08026, "PEAR": phase entropy aware
// reward).
//
//   P = max(0, H_think − alpha H_answer)      means of the entropies of the tokens before the closing tag, and behind it
//
// The paper's reward is min(1, 1 − P) of a right answer and the format's score of a wrong one: what is added to a right answer's reward
// is −coef P, times what a right answer is worth. The mean of no token is 0; without a tag the whole completion is thinking; of several
// tags the first counts. Tokens that hold part of the tag are of neither phase.
#pragma once
#include <optional>
#include <string>

#include "csrc/field.h"
#include "csrc/methods/method.h"
#include "csrc/methods/token_text.h"

namespace isentrope::methods {

// [B] double, at most 0: −coef P of rows that right marks, no less than least − 1; 0 of others. entropy [B, T], nats, of the policy that
// drew, float32 or float64; tag [B, 2] integer: the tag's first token, and one behind its last; −1: there is none. coef ≥ 0; 0: 0.
Tensor pear(const Tensor& entropy, const Tensor& mask, const Tensor& tag, const Tensor& right, double alpha,
            double coef, std::optional<double> least);

struct Pear {
  static constexpr const char* kKind = "pear";
  static constexpr const char* kHelp =
      "Takes max(0, mean entropy before the closing tag − alpha · mean entropy behind it) off the reward of right "
      "answers: thinking grows short where it hesitates for nothing (PEAR, arXiv 2510.08026).";
  std::string tag = "</think>";
  double alpha = 1.0;
  double coef = 1.0;
  std::optional<double> min_reward = {};

  std::string problem() const { return tag.empty() ? "tag: is empty; wanted the text that ends the thinking" : ""; }
  template <class Visitor>
  void visit(Visitor& v) {
    v("tag", tag, "Text that ends the thinking, over however many tokens.");
    v("alpha", alpha, "Weight of the answer's entropy; the paper tries −1 to 2.", between(-100, 100));
    v("coef", coef, "Weight of the whole, 1 in the paper; 0: no effect.", at_least(0));
    v("min_reward", min_reward,
      "Least reward of a right answer, in the unit of the first reward; absent: none, as in the paper, where a right "
      "answer can fall below 0.",
      between(-1000, 1));
  }

  TextOf text = {};  // of tokens, by bind(); not a key
  // Throws std::invalid_argument where the tag cannot be written in tokens.
  void bind(const TokenText& tokens);
  void apply(Completions& c, Context& context) const;
};

}  // namespace isentrope::methods
