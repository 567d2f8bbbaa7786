// Advantage: a reward beside a baseline of each position of the group, the one of least variance of the gradient.
//
//   w = 1 − 2 π + Σ p²,  W_t = Σ_{j ≤ t} w_j          a completion's squared length of the gradient by the logits up to token t: π the
//                                                     chance of its token, Σ p² over the vocabulary, both of the policy that drew it
//   B_t = Σ s W_t / (Σ W_t + 1e-8)                    over the completions of the group whose token t counts
//   A_t = s − B_t
//
// s is a completion's reward, the return of all of its tokens. w is not negative but for rounding, and counts as 0 there. At positions
// where one completion of the group counts alone, and in a group of one, B is 0 (alone_zero, verl's handle_zero_tail), or without it
// the completion's own reward but in a group of one. A group of rewards that are equal up to rounding (csrc/methods/estimator.h) has
// advantages of 0.
#pragma once
#include "csrc/field.h"
#include "csrc/methods/method.h"

namespace isentrope::methods {

// [B, T] of logprob's dtype, 0 where mask is false; what stands there is never used. reward [B], logprob and sum_p2 [B, T], mask [B, T],
// group [B] rising. float32 or float64; sums in double.
Tensor optimal_token_baseline(const Tensor& reward, const Tensor& logprob, const Tensor& sum_p2, const Tensor& mask,
                              const Tensor& group, bool alone_zero);

struct OptimalTokenBaseline {
  static constexpr const char* kKind = "optimal_token_baseline";
  static constexpr const char* kScope = "group";
  static constexpr const char* kHelp =
      "reward − the baseline of least variance of each position: rewards of the group weighted by Σ (1 − 2 π + Σ p²) "
      "of the tokens up to "
      "it (verl 0.9.1, optimal_token_baseline).";
  static constexpr bool kNeedsSumP2 = true;
  bool alone_zero = true;

  template <class Visitor>
  void visit(Visitor& v) {
    v("alone_zero", alone_zero,
      "Where a completion is the last of its group that goes on, its baseline is 0; false: its own reward, so that it "
      "learns nothing "
      "there.");
  }
  Tensor estimate_tokens(const Completions& c) const {
    return optimal_token_baseline(c.reward, c.logprob, c.sum_p2, c.mask, c.group, alone_zero);
  }
};

}  // namespace isentrope::methods
