// Advantage: what the log-probability of a token has to do with its advantage is taken out (arXiv 2603.11682, "REPO").
#pragma once
#include <optional>
#include <string>

#include "csrc/field.h"
#include "csrc/methods/method.h"

namespace isentrope::methods {

// [B, T] of advantage's dtype, 0 where mask does not mark. With ℓ the log-probability and H the entropy of a token,
//
//   form decorrelate   A − beta L;  L = ℓ + H with centre state (the mean of ℓ over the vocabulary is −H, so that L has mean 0 there),
//                      ℓ − mean ℓ over all tokens that count with centre batch
//   form rescale       max(0, A (1 − beta ℓ)) where A > 0, min(0, A (1 + beta ℓ)) where A < 0 (REPO-R, β = beta |A|)
//
// The paper steers beta to the entropy at the start. Here, where rate is above 0: after each step of mean entropy H of its tokens,
// beta ← beta + rate (H* − H), within 0 and most, H* the target; a rule of ours.
//
// beta 0 changes nothing. A token whose ℓ is not finite keeps its advantage and is in no mean. logprob ℓ and entropy H of the policy that drew, nats; entropy is not looked at but for centre state.
// float32 or float64.
Tensor repo(const Tensor& advantage, const Tensor& logprob, const Tensor& entropy, const Tensor& mask, double beta,
            c10::string_view form, c10::string_view centre);

// state [2] double: beta, and H* (NaN: none yet, which becomes this step's H) → that after a step of mean entropy H, nats.
Tensor repo_beta(const Tensor& state, double entropy, double rate, double most);

struct Repo {
  static constexpr const char* kKind = "repo";
  static constexpr const char* kScope = "token";
  static constexpr const char* kHelp =
      "A − beta (ℓ, centred): likely tokens lose and unlikely ones gain, which holds up the entropy that their "
      "correlation with the advantage would cost (REPO, arXiv 2603.11682). ℓ is of the policy that drew.";
  double beta = 0.01;
  double rate = 0;
  double most = 1;
  std::optional<double> target = {};
  std::string form = "decorrelate";
  std::string centre = "state";

  template <class Visitor>
  void visit(Visitor& v) {
    v("beta", beta,
      "Weight of ℓ, per nat; of form rescale the paper's zeta. Below 0 it lowers the entropy, 0: no effect. The "
      "default is ours: the paper steers it to the entropy at the start. With rate above 0 that of the first step.",
      between(-10, 10));
    v("rate", rate, "What beta rises by for a nat below the target, after each step; 0: beta stays.", at_least(0));
    v("most", most, "Largest beta that rate leads to; the least is 0.", at_least(0));
    v("target", target, "Mean entropy of a step's tokens, nats, that beta is steered to; absent: the first step's.",
      at_least(0));
    v("form", form,
      "decorrelate: A − beta L. rescale: A (1 − beta ℓ) where A is above 0 and A (1 + beta ℓ) where it is below, no "
      "further than 0 (REPO-R).",
      one_of({"decorrelate", "rescale"}));
    v("centre", centre,
      "What L is counted from, of form decorrelate: state, the mean of ℓ under the policy at that position, which is "
      "−H (the paper's); batch, the mean ℓ of the step's tokens.",
      one_of({"state", "batch"}));
  }
  std::string problem() const;
  Tensor initial_state() const;  // none where beta stays
  void apply(Completions& c, Context& context) const;
};

}  // namespace isentrope::methods
