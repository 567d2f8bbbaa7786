// Weight: while the entropy is below a target, the most surprising tokens of right answers learn more (arXiv 2606.19236, "STARE").
#pragma once
#include <string>

#include "csrc/field.h"
#include "csrc/methods/method.h"

namespace isentrope::methods {

// [B, T] of logprob's dtype, 0 where mask does not mark. While the mean entropy of the tokens that count is below target: up on the
// most surprising (lowest logprob) ⌈fraction n⌉ of the n tokens with advantage > 0, down on those of the tokens with advantage < 0;
// 1 on all others, and on all while it is not below (or is NaN). Of equal log-probs the earlier token comes first (row by row), NaN is
// the most surprising. ⌈ ⌉ forgives 1e-6, as released. logprob and entropy of one policy, nats. fraction in (0, 1], up and down at
// least 0. Statistics are over all that is handed over. float32 or float64.
Tensor stare(const Tensor& logprob, const Tensor& entropy, const Tensor& advantage, const Tensor& mask, double target,
             double fraction, double up, double down);

struct Stare {
  static constexpr const char* kKind = "stare";
  static constexpr const char* kScope = "update";
  static constexpr const char* kHelp =
      "While the mean entropy of the update is below the target, the most surprising tokens of positive advantage "
      "learn more, and those of negative advantage less if so wished (arXiv 2606.19236, STARE; hp-luo/STARE, which has "
      "scope micro).";
  double target = 0.3;
  double fraction = 0.1;
  double up = 1.1;
  double down = 1;
  std::string scope = "update";

  template <class Visitor>
  void visit(Visitor& v) {
    v("target", target, "Mean entropy, in nats, at or above which nothing is done.", at_least(0));
    v("fraction", fraction,
      "Share of the tokens of a sign that are the most surprising; exact, ties to the earlier token.", above_to(0, 1));
    v("up", up, "Factor of those with positive advantage; 1.05 for 14B and 32B models.", at_least(0));
    v("down", down,
      "Factor of those with negative advantage: 1 is the published one-sided form (O1), 0.9 the two-sided one (C2; "
      "0.95 for 14B and 32B).",
      at_least(0));
    visit_scope(v, scope);
  }
  Weighted apply(const Update& u, Context&) const {
    return {stare(u.logprob, u.entropy, u.advantage, u.mask, target, fraction, up, down)};
  }
};

}  // namespace isentrope::methods
