// Weights: only the tokens of highest entropy learn (arXiv 2506.01939, "80/20"), or those that surprise more than the model expects to be
// surprised (arXiv 2508.03178, "Entropy-SFT" of Light-IF).
#pragma once
#include <string>

#include "csrc/field.h"
#include "csrc/methods/method.h"

namespace isentrope::methods {

// [B, T] of entropy's dtype: 1 on the max(1, round(fraction N)) tokens of highest entropy among the N that mask marks, 0 elsewhere. Of
// equal entropies the earlier token comes first (row by row). Exact, by selection in linear time. fraction in (0, 1]; NaN counts as the
// highest. float32 or float64.
Tensor top_entropy(const Tensor& entropy, const Tensor& mask, double fraction);

struct TopEntropy {
  static constexpr const char* kKind = "top_entropy";
  static constexpr const char* kScope = "update";
  static constexpr bool kOfTargets = true;
  static constexpr const char* kHelp =
      "Only the tokens of highest entropy learn; the others keep their place in denominators (arXiv 2506.01939).";
  double fraction = 0.2;
  std::string scope = "update";

  template <class Visitor>
  void visit(Visitor& v) {
    v("fraction", fraction, "Share of the update's tokens that learn; exact, ties to the earlier token.",
      above_to(0, 1));
    visit_scope(v, scope);
  }
  Weighted apply(const Update& u, Context&) const { return {top_entropy(u.entropy, u.mask, fraction)}; }
};

// [B, T] bool: the tokens among the N that mask marks that are not among the max(1, ⌊fraction N⌋) of highest −ℓ − lambda_entropy H, which leave
// the mask and so the denominators. Of equal scores the earlier token is kept (row by row); NaN counts as the highest. Exact, by
// selection in linear time. logprob ℓ of the tokens and entropy H of one policy, nats. fraction in (0, 1]; 1 removes none. float32 or
// float64.
Tensor entropy_sft(const Tensor& logprob, const Tensor& entropy, const Tensor& mask, double fraction,
                   double lambda_entropy);

struct EntropySft {
  static constexpr const char* kKind = "entropy_sft";
  static constexpr const char* kScope = "update";
  static constexpr bool kOfTargets = true;
  static constexpr const char* kHelp =
      "Only the tokens of highest cross-entropy − lambda_entropy · entropy are learnt: those that surprise where the "
      "model was "
      "sure. The others leave denominators, so that the loss is the mean over what is learnt (Entropy-SFT of Light-IF, "
      "arXiv 2508.03178; Qihoo360/Light-IF, which has scope micro).";
  double fraction = 0.8;
  double lambda_entropy = 0.8;
  std::string scope = "update";

  template <class Visitor>
  void visit(Visitor& v) {
    v("fraction", fraction,
      "Share of the update's tokens that are learnt, rounded down; exact, ties to the earlier token. The recipe's; 0.2 "
      "is the default of the released arguments. 1: no effect.",
      above_to(0, 1));
    v("lambda_entropy", lambda_entropy,
      "Weight of the entropy; 0: the tokens of highest cross-entropy. The recipe's; 1 in the released arguments.",
      between(-100, 100));
    visit_scope(v, scope);
  }
  Weighted apply(const Update& u, Context&) const {
    const Tensor removed = entropy_sft(u.logprob, u.entropy, u.mask, fraction, lambda_entropy);
    return {u.mask.logical_and(removed.logical_not()).to(u.logprob.scalar_type()), removed};
  }
};

}  // namespace isentrope::methods
