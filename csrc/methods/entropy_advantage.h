// Advantage: tokens of high entropy gain (arXiv 2506.14758, "Reasoning with Exploration: An Entropy Perspective").
#pragma once
#include "csrc/field.h"
#include "csrc/methods/method.h"

namespace isentrope::methods {

// [B, T] of advantage's dtype: A + min(alpha H, |A| / kappa) where mask marks, else 0. No sign changes, for kappa > 1, and an advantage
// of 0 stays; alpha 0 changes nothing. entropy H of the policy that drew, nats, at least 0 (what rounding leaves below counts as 0).
// alpha ≥ 0, kappa > 1. float32 or float64.
Tensor entropy_advantage(const Tensor& advantage, const Tensor& entropy, const Tensor& mask, double alpha,
                         double kappa);

struct EntropyAdvantage {
  static constexpr const char* kKind = "entropy_advantage";
  static constexpr const char* kHelp =
      "A + min(alpha H, |A| / kappa), with H a token's entropy when it was drawn, as a constant: tokens at which the "
      "policy hesitated gain, and no advantage changes its sign (arXiv 2506.14758).";
  double alpha = 0.4;
  double kappa = 2.0;

  template <class Visitor>
  void visit(Visitor& v) {
    v("alpha", alpha, "Gain of a nat of entropy; 0: no effect.", at_least(0));
    v("kappa", kappa, "The gain is at most |A| / kappa.", above(1));
  }
  void apply(Completions& c, Context&) const {
    c.advantage = entropy_advantage(c.advantage, c.entropy, c.mask, alpha, kappa);
  }
};

}  // namespace isentrope::methods
