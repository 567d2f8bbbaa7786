// Advantage: a completion's reward beside those of the other completions of its prompt, and one advantage a completion.
//
// K completions of a prompt are a group, and K may differ from group to group; rewards s, lengths n in tokens.
//
//   grpo                           (s − mean s) / (std s + eps), std with K − 1             arXiv 2402.03300
//   dr_grpo                        s − mean s                                               arXiv 2503.20783
//   rloo                           s − mean of the others' s                                arXiv 2402.14740
//   opo                            s − Σ n s / Σ n                                          arXiv 2505.23585
//   reinforce_plus_plus_baseline   a = s − mean s, then (a − m) / √(v + 1e-8), m and v the mean and the unbiased
//                                  variance of a over all tokens of the batch               arXiv 2501.03262
//
// Means without a mark are over the group. grpo with std: batch takes the std over all completions of the batch (TRL's
// scale_rewards="batch"). A group of one has no baseline: its mean counts as 0 and its std as 1, so grpo gives s / (1 + eps) and the
// others s; a batch whose rewards are equal up to rounding, or a single one, has std 1 as well. A group without tokens has baseline 0
// in opo; a batch of fewer than two tokens is centred but not scaled. A group whose rewards are equal up to rounding
// (csrc/methods/estimator.h) has advantages of 0 (before the whitening), and its std counts as 1 in slopes.
#pragma once
#include <string>

#include "csrc/field.h"
#include "csrc/methods/estimator.h"
#include "csrc/methods/method.h"

namespace isentrope::methods {

enum class Baseline { kMean, kOthers, kTokens };  // of the group; of the others in it; of its tokens

// (reward − baseline) · scale, as above and without the whitening. Throws std::invalid_argument as check() of
// csrc/methods/estimator.h does.
Advantages group_advantages(const Rewarded& r, Baseline baseline, Scale scale = Scale::kNone, double eps = 0);

struct Grpo {
  static constexpr const char* kKind = "grpo";
  static constexpr const char* kScope = "group";
  static constexpr const char* kHelp = "(reward − mean of the group) / (its std + eps) (arXiv 2402.03300).";
  double eps = 1e-6;
  std::string std = "group";

  template <class Visitor>
  void visit(Visitor& v) {
    v("eps", eps,
      "Added to the standard deviation of the rewards. Rewards that are equal up to rounding give 0 also with 0.",
      between(0, 1));
    v("std", std,
      "Rewards whose standard deviation is taken: of the group, or of all completions of the batch, which weighs hard "
      "and easy "
      "prompts alike (TRL's scale_rewards).",
      one_of({"group", "batch"}));
  }
  Advantages estimate(const Rewarded& r) const {
    return group_advantages(r, Baseline::kMean, std == "batch" ? Scale::kBatch : Scale::kGroup, eps);
  }
};

struct DrGrpo {
  static constexpr const char* kKind = "dr_grpo";
  static constexpr const char* kScope = "group";
  static constexpr const char* kHelp = "reward − mean of the group: nothing is divided by a std (arXiv 2503.20783).";

  template <class Visitor>
  void visit(Visitor&) {}
  Advantages estimate(const Rewarded& r) const { return group_advantages(r, Baseline::kMean); }
};

struct Rloo {
  static constexpr const char* kKind = "rloo";
  static constexpr const char* kScope = "group";
  static constexpr const char* kHelp = "reward − mean of the others of the group (arXiv 2402.14740).";

  template <class Visitor>
  void visit(Visitor&) {}
  Advantages estimate(const Rewarded& r) const { return group_advantages(r, Baseline::kOthers); }
};

struct Opo {
  static constexpr const char* kKind = "opo";
  static constexpr const char* kScope = "group";
  static constexpr const char* kHelp = "reward − mean of the group, weighted by length in tokens (arXiv 2505.23585).";

  template <class Visitor>
  void visit(Visitor&) {}
  Advantages estimate(const Rewarded& r) const { return group_advantages(r, Baseline::kTokens); }
};

struct ReinforcePlusPlusBaseline {
  static constexpr const char* kKind = "reinforce_plus_plus_baseline";
  static constexpr const char* kScope = "step";
  static constexpr const char* kHelp =
      "reward − mean of the group, then of mean 0 and variance 1 over all tokens of the batch (arXiv 2501.03262).";

  template <class Visitor>
  void visit(Visitor&) {}
  Advantages estimate(const Rewarded& r) const;
};

}  // namespace isentrope::methods
