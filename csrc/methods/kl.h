// Reward: what a completion strays from a reference is taken from its reward (Ziegler et al., arXiv 1909.08593; verl's
// algorithm.use_kl_in_reward).
#pragma once
#include <optional>
#include <string>

#include "csrc/field.h"
#include "csrc/methods/kl_control.h"
#include "csrc/methods/method.h"

namespace isentrope::methods {

// To be added to the reward of each completion: [B] double, −coef Σ_t k_t over the tokens that mask marks, with Δ = logprob − ref_logprob and
// k by estimator
//
//   k1   Δ                    k2   Δ² / 2
//   abs  |Δ|                  k3   exp(−Δ) + Δ − 1, Δ clamped to ±20 and the value to 10 (kernels/grpo_loss.h)
//
// logprob, ref_logprob: [B, T] of the policy that drew the tokens and of the reference, nats; float32 or float64, summed in double.
Tensor kl(const Tensor& logprob, const Tensor& ref_logprob, const Tensor& mask, double coef,
          c10::string_view estimator);

struct KlReward {
  static constexpr const char* kKind = "kl";
  static constexpr const char* kScope = "completion";
  static constexpr const char* kHelp =
      "Takes coef times the divergence of a completion's tokens from the reference, summed over them, from its reward "
      "(verl 0.9.1: algorithm.use_kl_in_reward). The reference is that of objective.reference, or the model at the "
      "start of the phase; its log-probabilities are computed once a step.";
  static constexpr bool kNeedsReference = true;  // Completions::ref_logprob
  double coef = 0.001;
  std::string estimator = "k1";
  std::optional<KlControl> control;

  template <class Visitor>
  void visit(Visitor& v) {
    v("coef", coef, "Weight of the divergence (verl: algorithm.kl_ctrl.kl_coef).", at_least(0));
    v("estimator", estimator,
      "Of the divergence of a token, Δ = log-prob − that of the reference: k1, Δ; k2, Δ²/2; k3, exp(−Δ) + Δ − 1, at "
      "most "
      "10; abs, |Δ| (verl: algorithm.kl_penalty, kl, mse, low_var_kl and abs).",
      one_of({"k1", "k2", "k3", "abs"}));
    v("control", control,
      "Steers coef towards a divergence, kl_reward/mean, after each step; absent: coef throughout (verl: kl_ctrl of "
      "type "
      "adaptive, whose divergence is the mean of the completions' means).");
  }
  std::string problem() const {
    return control && coef == 0 ? "coef: 0 stays 0 whatever control does; give it a value above 0" : "";
  }
  Tensor initial_state() const { return control ? torch::tensor({coef}, torch::kFloat64) : Tensor(); }
  // Throws std::invalid_argument where there is no reference.
  void apply(Completions& c, Context& context) const;
};

}  // namespace isentrope::methods
