// Advantage: the reward of a position is shared out among the completions of its group by their entropy there (arXiv 2508.04349, "GTPO").
//
//   right      r_{i,t} =  1 · outcome + share · n_t · H_{i,t} / Σ_k H_{k,t}             n_t right completions that count at position t
//   wrong      r_{i,t} = −1 · outcome − share · n_t · (1 / H_{i,t}) / Σ_k 1 / H_{k,t}   n_t wrong ones; k over those that count there
//   A_{i,t} = (r_{i,t} − mean r) / (std r + eps)
//
// so that of right completions the hesitant tokens gain, and of wrong ones the confident tokens lose. Σ_t of the shares is what equal
// shares would sum to. Entropies below 1e-8 count as 1e-8 (Σ H of 0 is shared evenly).
//
// over group: mean and std (population) over all tokens of the group, right and wrong, as GRPO's over its rewards; 0 where all r are
// equal up to rounding (csrc/methods/estimator.h). over outcome: over the right tokens and the wrong tokens of a group each by
// themselves, as a public port reads the paper's equation; a right answer then has a mean advantage of 0.
#pragma once
#include <string>

#include "csrc/field.h"
#include "csrc/methods/method.h"

namespace isentrope::methods {

// [B, T] of entropy's dtype, 0 where mask does not mark. entropy [B, T], nats, of the policy that drew; right [B], bool or number; group
// [B] rising. outcome, share ≥ 0, one of them above 0; 0 ≤ eps ≤ 1. float32 or float64.
Tensor gtpo(const Tensor& entropy, const Tensor& right, const Tensor& mask, const Tensor& group, double outcome,
            double share, c10::string_view over, double eps);

struct Gtpo {
  static constexpr const char* kKind = "gtpo";
  static constexpr const char* kHelp =
      "Tokens of right completions have a reward of outcome and a part of share by their entropy among the right "
      "completions of the group at that position, those of wrong ones the negative of both, by the inverse of their "
      "entropy; then normalised (GTPO, arXiv 2508.04349). Rewards beyond right and wrong, as the first reward has it, "
      "are not looked at.";
  double outcome = 1.0;
  double share = 0.1;
  std::string over = "group";
  double eps = 1e-6;

  std::string problem() const {
    return outcome == 0 && share == 0 ? "outcome: is 0, and so is share; nothing would be learnt" : "";
  }
  template <class Visitor>
  void visit(Visitor& v) {
    v("outcome", outcome, "The paper's α1: what every token has.", at_least(0));
    v("share", share, "The paper's α2: mean of what is shared out by entropy; 0: every token of a completion alike.",
      at_least(0));
    v("over", over,
      "Tokens whose mean and deviation normalise: group, all of a group; outcome, its right ones and its wrong ones "
      "each by themselves (as a public port reads the paper).",
      one_of({"group", "outcome"}));
    v("eps", eps, "Added to the standard deviation.", between(0, 1));
  }
  Tensor estimate_tokens(const Completions& c) const {
    return gtpo(c.entropy, c.right, c.mask, c.group, outcome, share, over, eps);
  }
};

}  // namespace isentrope::methods
