// Weights: tokens whose update would move the entropy far are taken out (arXiv 2602.03392, "Clip_B" and "Clip_V").
//
// A token of probability p, where the entropy is H, has the discriminator S = p (H + log p): raising its logit a little lowers the
// entropy there by S. Its deviation is
//
//   clip_b   z = S − m         m the mean of S over the update's tokens, σ the population standard deviation of S
//   clip_v   z = S − E         E = H Σ p² + Σ p² log p the mean of S under the policy at that position; σ that of z
//
// (p, H, Σ over the policy that learns). Kept are the tokens with −mu_low σ ≤ z ≤ mu_high σ, and those of advantages that `signs` does
// not name; where σ is below 1e-12 all are. Where more than the share max_frac would go, only the max(1, ⌊max_frac N⌋) whose z is
// farthest beyond its bound do, of equal ones the earlier. What is taken out leaves denominators too.
#pragma once
#include <optional>
#include <string>

#include "csrc/field.h"
#include "csrc/methods/method.h"

namespace isentrope::methods {

// [B, T] bool: the tokens that are taken out. logprob, entropy, advantage [B, T] float32 or float64, nats. signs: "neg", "pos", "both":
// advantages below 0, above 0, other than 0. mu_low ≥ 0; mu_high ≥ 0, absent: no bound; max_frac in (0, 1], 1: no cap.
Tensor clip_b(const Tensor& logprob, const Tensor& entropy, const Tensor& advantage, const Tensor& mask, double mu_low,
              std::optional<double> mu_high, c10::string_view signs, double max_frac);
// The same with Σ p² and Σ p² log p of the policy, [B, T].
Tensor clip_v(const Tensor& logprob, const Tensor& entropy, const Tensor& sum_p2, const Tensor& sum_p2_logp,
              const Tensor& advantage, const Tensor& mask, double mu_low, std::optional<double> mu_high,
              c10::string_view signs, double max_frac);

struct DiscriminatorKeys {
  double mu_low = 2.5;
  std::optional<double> mu_high = {};
  std::string signs = "neg";
  double max_frac = 1.0;

  template <class Visitor>
  void visit_with(Visitor& v, const char* mu_help) {
    v("mu_low", mu_low, mu_help, at_least(0));
    v("mu_high", mu_high,
      "Standard deviations above which tokens are taken out; absent: none are. The paper states a two-sided rule, the "
      "released code has the lower side alone.",
      at_least(0));
    v("signs", signs,
      "Advantages that are looked at: neg, those below 0 (the released code: pushing a rare token down lowers the "
      "entropy), pos, both.",
      one_of({"neg", "pos", "both"}));
    v("max_frac", max_frac,
      "Where a larger share would go, only max(1, ⌊max_frac · tokens⌋) of the farthest do; 1: no cap.", above_to(0, 1));
  }
};

struct ClipB : DiscriminatorKeys {
  static constexpr const char* kKind = "clip_b";
  static constexpr const char* kHelp =
      "Takes tokens out whose p (H + log p) lies more than mu_low standard deviations below the mean of the update's "
      "tokens: rare tokens of negative advantage, by default (Clip_B, arXiv 2602.03392; the released code takes p and "
      "H before a step's first update).";

  template <class Visitor>
  void visit(Visitor& v) {
    visit_with(v, "Standard deviations below which tokens are taken out; the paper's μ, which it tries from 2 to 3.");
  }
  Weighted apply(const Update& u, Context& context) const;
};

struct ClipV : DiscriminatorKeys {
  static constexpr const char* kKind = "clip_v";
  static constexpr const char* kHelp =
      "Takes tokens out whose p (H + log p) lies more than mu_low standard deviations below its mean under the policy "
      "at that position, the farthest max_frac at most (Clip_V, arXiv 2602.03392).";
  static constexpr bool kNeedsMoments = true;  // Update::sum_p2 and sum_p2_logp
  ClipV() : DiscriminatorKeys{.mu_low = 8.5, .max_frac = 1e-4} {}

  template <class Visitor>
  void visit(Visitor& v) {
    visit_with(v,
               "Standard deviations below which tokens are taken out; the paper's μ, which it tries from 7.5 to 8.5 "
               "(the released class has 2, its configuration 8.5).");
  }
  Weighted apply(const Update& u, Context& context) const;
};

}  // namespace isentrope::methods
