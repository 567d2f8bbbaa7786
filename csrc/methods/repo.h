// Advantage: what the log-probability of a token has to do with its advantage is taken out (arXiv 2603.11682, "REPO").
#pragma once
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
// beta 0 changes nothing. logprob ℓ and entropy H of the policy that drew, nats; entropy is not looked at but for centre state.
// float32 or float64.
Tensor repo(const Tensor& advantage, const Tensor& logprob, const Tensor& entropy, const Tensor& mask, double beta,
            c10::string_view form, c10::string_view centre);

struct Repo {
  static constexpr const char* kKind = "repo";
  static constexpr const char* kHelp =
      "A − beta (ℓ, centred): likely tokens lose and unlikely ones gain, which holds up the entropy that their "
      "correlation with the advantage would cost (REPO, arXiv 2603.11682). ℓ is of the policy that drew.";
  double beta = 0.01;
  std::string form = "decorrelate";
  std::string centre = "state";

  template <class Visitor>
  void visit(Visitor& v) {
    v("beta", beta,
      "Weight of ℓ, per nat; of form rescale the paper's zeta. Below 0 it lowers the entropy, 0: no effect. The "
      "default is ours: the paper steers it to the entropy at the start.",
      between(-10, 10));
    v("form", form,
      "decorrelate: A − beta L. rescale: A (1 − beta ℓ) where A is above 0 and A (1 + beta ℓ) where it is below, no "
      "further than 0 (REPO-R).",
      one_of({"decorrelate", "rescale"}));
    v("centre", centre,
      "What L is counted from, of form decorrelate: state, the mean of ℓ under the policy at that position, which is "
      "−H (the paper's); batch, the mean ℓ of the step's tokens.",
      one_of({"state", "batch"}));
  }
  void apply(Completions& c, Context&) const {
    c.advantage = repo(c.advantage, c.logprob, c.entropy, c.mask, beta, form, centre);
  }
};

}  // namespace isentrope::methods
