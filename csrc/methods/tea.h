// Controller: an entropy bonus on the tokens whose log-probability goes with the advantage (arXiv 2508.03178, "TEA-RL" of Light-IF).
#pragma once
#include "csrc/field.h"
#include "csrc/methods/control.h"

namespace isentrope::methods {

// [B, T] of logprob's dtype, 0 where mask does not mark. With the covariance c = (A − mean A) (ℓ − mean ℓ) of a token, means over all
// tokens that count,
//
//   weight = min(most, alpha softmax(c)),   the softmax over the tokens of the row that count
//
// A constant: the released code lets its gradient through c. logprob ℓ of the policy that learns, nats; advantage A. alpha, most ≥ 0.
// The weights of a row sum to alpha at most, so that the mean falls with its length. A token whose ℓ or A is not finite weighs 0 and is
// in no mean. float32 or float64.
Tensor tea(const Tensor& logprob, const Tensor& advantage, const Tensor& mask, double alpha, double most);

struct Tea {
  static constexpr const char* kKind = "tea";
  static constexpr const char* kScope = "update";
  static constexpr const char* kHelp =
      "An entropy bonus in which a token weighs min(most, alpha · softmax over its completion of the covariance of "
      "log-probability and advantage): where they go together, updates cost most entropy (TEA-RL of Light-IF, arXiv "
      "2508.03178; Qihoo360/Light-IF, where the branch that has it cannot run, takes covariances over a micro-batch "
      "and "
      "leaves their gradient in).";
  double coef = 1;
  double alpha = 10;
  double most = 5;

  template <class Visitor>
  void visit(Visitor& v) {
    v("coef", coef, "Weight of the bonus, which is subtracted from each token's loss; 0: no effect.", at_least(0));
    v("alpha", alpha, "Sum of a completion's weights, but for what `most` cuts.", at_least(0));
    v("most", most, "Most that a token weighs.", at_least(0));
  }
  Control at(int64_t, const Tensor&) const { return {.weighs = coef > 0}; }
  Bonus bonus(const Update& u, int64_t, Context& context) const;
};

}  // namespace isentrope::methods
