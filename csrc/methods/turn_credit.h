// Advantage: what each turn of a conversation earned is credited to that turn and those before it (turn-level credit assignment,
// arXiv 2505.11821), beside the advantage of the whole conversation.
//
//   r_k   what turn k added to a score of the environment
//   G_k   Σ_{j ≥ k} discount^(j − k) r_j
//   A ← A + coef (G_k − mean) / (std + eps) on the tokens of turn k
//
// mean and std (n − 1) go over the completions of the group that have a turn k (normalize "turn"), over all turns of the group
// ("group"), or there is none of them ("none": A + coef G_k). Where values are equal up to rounding (csrc/methods/estimator.h), or there is
// one alone, nothing is added. The paper gives each turn its own reward, without those of later turns: discount 0.
#pragma once
#include <string>

#include "csrc/field.h"
#include "csrc/methods/method.h"

namespace isentrope::methods {

// [B, T] of advantage's dtype, 0 where mask does not mark. reward [B, K] float32 or float64: of each turn, NaN behind a row's last one.
// turn [B, T] integer: of each token the number of its turn, from 0. group [B] integer, rising. coef 0 changes nothing.
Tensor turn_credit(const Tensor& advantage, const Tensor& reward, const Tensor& mask, const Tensor& turn,
                   const Tensor& group, double coef, double discount, c10::string_view normalize, double eps);

struct TurnCredit {
  static constexpr const char* kKind = "turn_credit";
  static constexpr const char* kScope = "group";
  static constexpr const char* kHelp =
      "What a turn of a conversation added to a score of its environment is credited to the tokens of that turn and, "
      "discounted, of those before it, normalised among the group's (turn-level GRPO, arXiv 2505.11821).";
  std::string score = "";
  double coef = 1.0;
  double discount = 1.0;
  std::string normalize = "turn";
  double eps = 1e-6;

  std::string problem() const {
    return score.empty() ? "score: is missing; it says which score of the environment turns are credited with" : "";
  }
  template <class Visitor>
  void visit(Visitor& v) {
    v("score", score, "Name of the environment's score (docs/environments.md).");
    v("coef", coef, "Weight beside the conversation's advantage; 0: none.", at_least(0));
    v("discount", discount, "Of what later turns added: 0, a turn has its own alone, as in the paper; 1, all of it.",
      between(0, 1));
    v("normalize", normalize,
      "What mean and deviation are of: turn, the group's turns of the same number; group, all of its turns; none, "
      "neither.",
      one_of({"turn", "group", "none"}));
    v("eps", eps, "Added to the standard deviation.", between(0, 1));
  }

  bool needs_turns() const { return true; }
  // Throws std::invalid_argument where the environment has no score of that name.
  void apply(Completions& c, Context& context) const;
};

}  // namespace isentrope::methods
