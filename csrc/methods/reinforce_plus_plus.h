// Advantage: rewards without a baseline of their prompt, normalised over the tokens of the batch.
//
//   (s − m) / √(v + 1e-8)      m and v the mean and the unbiased variance of s over all tokens of the batch: a completion of n tokens
//                              counts n times
//
// verl's reinforce_plus_plus whitens returns-to-go of token rewards, discounted by gamma, which hold a divergence from the reference
// where that is put into the reward. Here a completion has one reward and nothing is discounted, so all of its tokens have the same
// return; with gamma 1 and no divergence in the reward both are the same number.
#pragma once
#include "csrc/methods/method.h"

namespace isentrope::methods {

struct ReinforcePlusPlus {
  static constexpr const char* kKind = "reinforce_plus_plus";
  static constexpr const char* kScope = "step";
  static constexpr const char* kHelp =
      "The reward, of mean 0 and variance 1 over all tokens of the batch; no baseline of the prompt (arXiv "
      "2501.03262).";

  template <class Visitor>
  void visit(Visitor&) {}
  // Fewer than two tokens are centred but not scaled. Throws std::invalid_argument as check() of csrc/methods/estimator.h does.
  Advantages estimate(const Rewarded& r) const;
};

}  // namespace isentrope::methods
