// Advantage: what a completion does for the best of k completions of its prompt.
//
// form: subsets (arXiv 2508.10751). R is the largest reward of k of the group's n completions, all choices of k being equally likely:
//
//   (E[R | the completion is among the k] − E[R]) / (std R + eps)      over all C(n, k) choices, std with their count
//
// For rewards of 0 and 1 and w wrong answers that is the paper's, with ρ = 1 − C(w, k) / C(n, k) and σ = √(ρ (1 − ρ)):
//   (1 − ρ) / (σ + eps) for a right answer,  (1 − ρ − C(w − 1, k − 1) / C(n − 1, k − 1)) / (σ + eps) for a wrong one;
// rewards that are other numbers are covered by the same mean, exactly, from the sorted rewards. k = 1 is grpo with n in the std in
// the place of n − 1. A choice of k = n has nothing beside it: a group of 2 or more, but no more than k, completions is refused.
//
// form: best (arXiv 2503.19595; verl's grpo_passk). The best completion of the group, the first of several, has its reward − the second
// largest reward, divided by the unbiased std of the group + eps; the others have 0. k is the size of the group, and the key without use.
//
// A group of one has s / (1 + eps), one of equal rewards 0.
#pragma once
#include <string>

#include "csrc/field.h"
#include "csrc/methods/method.h"

namespace isentrope::methods {

struct PassAtK {
  static constexpr const char* kKind = "pass_at_k";
  static constexpr const char* kScope = "group";
  static constexpr const char* kHelp =
      "What a completion does for the best of k of its prompt: by all choices of k of the group (arXiv 2508.10751), or "
      "by the best of "
      "the group alone (arXiv 2503.19595).";
  int64_t k = 4;
  std::string form = "subsets";
  double eps = 1e-6;

  template <class Visitor>
  void visit(Visitor& v) {
    v("k", k,
      "Completions of which the best counts; below the completions of a prompt. Without use where form is best.",
      between(1, 1 << 16));
    v("form", form,
      "subsets: mean over all choices of k with the completion − mean over all. best: the best completion alone, its "
      "reward − the "
      "second best (verl's grpo_passk).",
      one_of({"subsets", "best"}));
    v("eps", eps, "Added to the standard deviation.", between(0, 1));
  }
  // Throws std::invalid_argument as check() of csrc/methods/estimator.h does, and on a group of 2 … k completions (subsets).
  Advantages estimate(const Rewarded& r) const;
};

}  // namespace isentrope::methods
