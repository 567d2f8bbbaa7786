// Advantage: a completion's reward beside a quantile of the rewards of its group (QAE).
//
//   (s − Q) / (std s + eps)      Q the least reward of the group that at least a share K of its rewards do not exceed
//
// With rewards of 0 and 1 and a share p of right answers, Q is 0 where p ≤ 1 − K, so that the right answers of a hard prompt alone
// learn, and 1 above, so that the wrong answers of an easy prompt alone do.
//
// interpolate: as torch.quantile, and with it the authors' code, places the quantile linearly between two neighbouring rewards; where
// these are 0 and 1 no answer is left out. std is that of grpo (csrc/methods/group_advantage.h), and groups of one and of equal rewards
// are as there.
#pragma once
#include <string>

#include "csrc/field.h"
#include "csrc/methods/method.h"

namespace isentrope::methods {

struct Quantile {
  static constexpr const char* kKind = "quantile";
  static constexpr const char* kScope = "group";
  static constexpr const char* kHelp =
      "(reward − a quantile of the group's) / (its std + eps): of a hard prompt the right answers learn, of an easy "
      "one the wrong ones "
      "(QAE, arXiv 2509.22611).";
  double quantile = 0.4;
  bool interpolate = false;
  double eps = 1e-6;
  std::string std = "group";

  template <class Visitor>
  void visit(Visitor& v) {
    v("quantile", quantile,
      "K: prompts are hard whose share of right answers is at most 1 − K, so that a higher K makes fewer of them hard.",
      above_to(0, 1));
    v("interpolate", interpolate,
      "Between neighbouring rewards, as the authors' code does (torch.quantile), in place of a reward of the group.");
    v("eps", eps, "Added to the standard deviation of the rewards.", between(0, 1));
    v("std", std, "Rewards whose standard deviation is taken, or none: not divided.",
      one_of({"group", "batch", "none"}));
  }
  // Throws std::invalid_argument as check() of csrc/methods/estimator.h does.
  Advantages estimate(const Rewarded& r) const;
};

}  // namespace isentrope::methods
