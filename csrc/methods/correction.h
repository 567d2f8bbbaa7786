// Weight: importance weights π/μ for rollouts that were not drawn from the policy that is trained, π, and how far the two are apart. They
// differ where rollouts have another precision or older weights, and where keys of sampling cut or change the distribution: μ is what
// repetition_penalty, bad_words, min_new_tokens, top_k, top_p and min_p leave, divided by its sum. A cut alone that keeps the mass m of π
// gives each token that is drawn the weight m. Tokens outside it have μ = 0 and are never drawn, so that weighted means are over what was
// kept, with π's own probabilities: no weight makes up for the rest.
#pragma once
#include <optional>
#include <stdexcept>
#include <string>
#include <tuple>

#include "csrc/field.h"
#include "csrc/methods/method.h"

namespace isentrope::methods {

// With d = rescored − old_logprob of a token that counts (0 where that is NaN) and its weight
//
//   level token       w = exp d
//   level sequence    w = exp Σ_t d, the product of its row's
//   level geometric   w = exp mean_t d, their geometric mean
//
// (the exponent held within ±20), factor [B, T] of rescored's dtype, 0 where mask does not mark, and removed, bool, of mode reject
// [B, T], else [0]:
//
//   mode truncate   min(max(w, low), high)
//   mode mask       w where low ≤ w ≤ high, else 0
//   mode reject     1 where low ≤ w ≤ high, else 0 and removed
//
// delta: a row with advantage below 0 on average and mean_t (old_logprob − logprob) > delta has factor 0. Only reject removes: as in
// TRL and verl, what is masked by weight or by delta keeps its place in denominators, and what verl's rejection drops does not.
//
// rescored: log-probs of the policy that is trained, before the update; old_logprob: of μ; logprob: of the policy
// that learns, rescored where there is none. Nats. low 0: no lower bound; high may be infinite. 0 ≤ low ≤ high, delta ≥ 0; delta wants
// advantage. float32 or float64.
std::tuple<Tensor, Tensor> correction(const Tensor& rescored, const Tensor& old_logprob, const Tensor& mask,
                                      const std::optional<Tensor>& advantage, const std::optional<Tensor>& logprob,
                                      c10::string_view level, c10::string_view mode, double low, double high,
                                      std::optional<double> delta);

// [8] double: over the tokens that count, with d as above and w = exp d held within exp ±20,
//
//   0 max |d|   1 mean |d|   2 mean −d (the estimate k1 of KL(π_old ‖ π))   3 mean exp(d) − 1 − d (k3)
//   4 mean w² − 1 (χ²)   5 the mean over rows of (Π w)² − 1, the product held within exp ±20
//   6 mean v   7 (Σ v)² / (n Σ v²), the effective share of the sample;  v = min(w, high)
//
// 0 … 6 are 0 and 7 is 1 where no token counts. By these formulas verl 0.9.1 has kl, k3_kl, chi2_token, chi2_seq, rollout_is_mean and
// rollout_is_eff_sample_size, and TRL the first two. float32 or float64.
Tensor mismatch(const Tensor& logprob, const Tensor& old_logprob, const Tensor& mask, std::optional<double> high);

struct Correction {
  static constexpr const char* kKind = "correction";
  static constexpr const char* kScope = "completion";
  static constexpr const char* kHelp =
      "Weights tokens by the probability that the trained policy had for them before the update, over the one by "
      "which they were drawn, after top_k, top_p and what else cuts, within bounds (truncated importance sampling; "
      "masked, as IcePop, arXiv 2510.18855; "
      "verl 0.9.1 rollout_correction, TRL 1.16.0 vllm_importance_sampling_mode). Completions are scored anew for it.";
  static constexpr bool kNeedsRescored = true;  // Update::rescored
  std::string level = "token";
  std::string mode = "truncate";
  double low = 0;
  double high = 2;
  std::optional<double> delta = {};

  template <class Visitor>
  void visit(Visitor& v) {
    v("level", level,
      "Whose weight it is: token; sequence, the product of a completion's tokens (unbiased, of high variance); "
      "geometric, their geometric mean.",
      one_of({"token", "sequence", "geometric"}));
    v("mode", mode,
      "Beyond the bounds: truncate the weight to them; mask, the weight is 0 and the token keeps its place in "
      "denominators; reject, the weight is 1 within and the token leaves denominators without (verl's rollout_rs "
      "with k1, whose bounds are those of 1 / weight).",
      one_of({"truncate", "mask", "reject"}));
    v("low", low, "Least weight; 0: no lower bound.", at_least(0));
    v("high", high, "Greatest weight. verl's default is 2, TRL's 3; IcePop has 0.5 and 5.", above(0));
    v("delta", delta,
      "Completions of negative advantage do not learn where the log-prob of their tokens is by more than this on "
      "average below the one by which they were drawn (off-policy sequence mask of DeepSeek-V3.2, arXiv 2512.02556); "
      "they "
      "keep their place in denominators.",
      at_least(0));
  }
  std::string problem() const {
    return low > high ? "low: " + std::to_string(low) + " is above high (" + std::to_string(high) + ")" : "";
  }
  Weighted apply(const Update& u, Context&) const {
    if (!u.rescored.defined())
      throw std::invalid_argument(
          "correction: the update has no rescored log-probs; wanted those of the trained policy before it");
    const auto [factor, removed] =
        correction(u.rescored, u.drawn_by(), u.mask, u.advantage, u.logprob, level, mode, low, high, delta);
    return {factor, mode == "reject" ? removed : Tensor()};
  }
};

}  // namespace isentrope::methods
