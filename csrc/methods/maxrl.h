// Advantage: the gradient of the log of the chance to be right, in place of the chance.
//
//   (s − mean s) / mean s      over the group
//
// For rewards of 0 and 1 the mean gradient over the right completions alone is that of Σ_k pass@k / k up to the size of the group, the
// first terms of the series of log pass@1; centred by the mean it is this. A hard prompt weighs as one over its share of right answers.
//
// Rewards should be 0 and 1, or at least not negative. A group whose mean is not above 0 (by more than rounding, 2^-21 of its largest
// reward) has nothing that is right: its advantages are 0. Those of a group of equal rewards are 0, and a group of one, which is
// REINFORCE, has s.
#pragma once
#include "csrc/methods/method.h"

namespace isentrope::methods {

struct MaxRl {
  static constexpr const char* kKind = "maxrl";
  static constexpr const char* kScope = "group";
  static constexpr const char* kHelp =
      "(reward − mean of the group) / mean of the group, for rewards of 0 and 1: hard prompts weigh as 1 / share of "
      "right answers "
      "(arXiv 2602.02710).";

  template <class Visitor>
  void visit(Visitor&) {}
  // Throws std::invalid_argument as check() of csrc/methods/estimator.h does.
  Advantages estimate(const Rewarded& r) const;
};

}  // namespace isentrope::methods
