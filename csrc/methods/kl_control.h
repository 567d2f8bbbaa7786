// The weight of the divergence from the reference, in the loss or in the reward, steered towards a target (Ziegler et al., arXiv 1909.08593;
// verl's kl_ctrl adaptive).
#pragma once
#include "csrc/field.h"
#include "csrc/methods/method.h"

namespace isentrope::methods {

// After an update whose mean divergence was kl: coef · (1 + clip(kl / target − 1, ±0.2) / horizon). target > 0, horizon ≥ 1, in updates.
double adaptive_kl(double coef, double kl, double target, double horizon);
// The same of each of coef and kl, float32 or float64 of one shape.
Tensor adaptive_kl_each(const Tensor& coef, const Tensor& kl, double target, double horizon);

struct KlControl {
  double target = 0.1;
  double horizon = 100;

  template <class Visitor>
  void visit(Visitor& v) {
    v("target", target, "Divergence from the reference, nats a token: ref_kl/k3 or, of the reward kl, kl_reward/mean.",
      above(0));
    v("horizon", horizon,
      "Updates, of the reward kl steps, over which an error of 20 % or more changes the weight by a fifth (verl and "
      "TRL's PPO count samples).",
      at_least(1));
  }
};

}  // namespace isentrope::methods
