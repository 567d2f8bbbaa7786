// Weight: tokens whose distribution has moved far, and would move on, do not learn (after arXiv 2607.10848, "predictive divergence
// masks").
//
//   drop where D > delta and A (u − Σ_v π_v (π_v − μ_v)) > 0,     u = π − μ at the token
//
// with π the policy that learns and μ the one that drew. A step of the policy gradient of advantage A at this token moves the logits by
// A (e − π), e the token's unit vector, and KL(μ ‖ π) of the whole distribution by A (u − Σ_v π_v (π_v − μ_v)): its sign says whether
// the step leads further away. The ratio of the token alone, by which PPO and DPPO go, knows u and not the sum.
//
// Ours, where the paper takes sums over the likeliest tokens that a rollout engine returns: the sum is (Σ π² − Σ μ²) / 2, which is
// right but for ½ Σ (π − μ)², and needs Σ p² of either policy alone; D is that of the token against all others together, of which the
// whole divergence is at least as large:
//
//   of tv   |π − μ|
//   of kl   μ log(μ / π) + (1 − μ) log((1 − μ) / (1 − π))
#pragma once
#include <string>

#include "csrc/field.h"
#include "csrc/methods/method.h"

namespace isentrope::methods {

// [B, T] of logprob's dtype, 0 where mask does not mark and where a token is dropped, else 1. logprob, sum_p2 of the policy that learns,
// old_logprob, old_sum_p2 of the one that drew, advantage: [B, T]. delta ≥ 0. What is NaN is not dropped. float32 or float64.
Tensor divergence_mask(const Tensor& logprob, const Tensor& old_logprob, const Tensor& sum_p2, const Tensor& old_sum_p2,
                       const Tensor& advantage, const Tensor& mask, double delta, c10::string_view divergence);

struct DivergenceMask {
  static constexpr const char* kKind = "divergence_mask";
  static constexpr const char* kHelp =
      "Tokens do not learn whose distribution lies further than delta from that of the policy that drew, where a step "
      "of the policy gradient would move the whole of it further (after arXiv 2607.10848; what is ours in it: "
      "csrc/methods/divergence_mask.h). They keep their place in denominators.";
  static constexpr bool kNeedsMoments = true;   // Update::sum_p2
  static constexpr bool kNeedsOldSumP2 = true;  // Update::old_sum_p2
  std::string divergence = "tv";
  double delta = 0.15;

  template <class Visitor>
  void visit(Visitor& v) {
    v("divergence", divergence,
      "tv, the distance of the token's probabilities; kl, the divergence of the token against all others.",
      one_of({"tv", "kl"}));
    v("delta", delta,
      "Divergence up to which a token learns always (verl's scripts for DPPO: 0.15 of tv, 0.05 of kl); of tv 1 is no "
      "bound.",
      at_least(0));
  }
  Weighted apply(const Update& u, Context&) const;
};

}  // namespace isentrope::methods
