// Advantage: several rewards, each normalised in its group before they are added, so that the one that varies most does not drown the
// others (GDPO).
//
//   a = Σ_k w_k (s_k − mean s_k) / (std s_k + eps)      over the group, std with n − 1
//
// then, by `over`, at mean 0 and variance 1 in the batch:
//
//   completions    (a − mean a) / (std a + eps)         over completions; TRL's multi_objective_aggregation="normalize_then_sum"
//   tokens         (a − m) / √(v + 1e-8)                over tokens, a completion counting as often as it has tokens; verl's gdpo
//
// A reward that does not apply to a completion (NaN) adds nothing to it, and counts in no mean. One that applies to fewer than two
// completions of a group of several, or is equal up to rounding (csrc/methods/estimator.h), adds 0 to all of the group; a group of one
// has Σ w_k s_k / (1 + eps). A completion to which no reward applies has advantage 0 and no part in the statistics of the batch. A batch
// whose a are equal up to rounding has advantages of 0.
#pragma once
#include <span>
#include <string>
#include <vector>

#include "csrc/field.h"
#include "csrc/methods/method.h"

namespace isentrope::methods {

struct Gdpo {
  static constexpr const char* kKind = "gdpo";
  static constexpr const char* kScope = "step";
  static constexpr const char* kHelp =
      "Each reward normalised in its group, then their weighted sum normalised in the batch (GDPO, arXiv 2601.05242).";
  std::vector<double> weights = {};
  double eps = 1e-6;
  std::string over = "completions";

  template <class Visitor>
  void visit(Visitor& v) {
    v("weights", weights,
      "Weight of each normalised reward, in the order of the rewards; empty: the rewards' own weights (TRL: "
      "reward_weights, verl: gdpo_reward_weights).",
      between(-1e6, 1e6));
    v("eps", eps, "Added to each standard deviation.", between(0, 1));
    v("over", over, "What the sum is normalised over: the batch's completions, or its tokens as in verl.",
      one_of({"completions", "tokens"}));
  }
  // From Rewarded::scores. What other methods have added to the rewards (reward − Σ weight · score), where it is more than rounding, is one
  // more reward of weight 1. Slopes are 0: a change of the reward is a change of no one reward, so a token's own return says nothing.
  // Throws std::invalid_argument as check() of csrc/methods/estimator.h does, of scores too, and where weights and scores differ in
  // number.
  Advantages estimate(const Rewarded& r) const;
};

}  // namespace isentrope::methods
