// From the rewards of a group of completions to one advantage a completion, and what is done to rewards and
// groups before it. Pure C++.
//
// K completions of a prompt are a group, and K may differ from group to group.
#pragma once
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "csrc/field.h"

namespace isentrope::rl {

struct AdvantageConfig {
  std::string kind = "grpo";
  double eps = 1e-6;

  template <class Visitor>
  void visit(Visitor& v) {
    v("kind", kind, "How the rewards of a group become advantages (csrc/rl/advantage.h).",
      one_of({"grpo", "dr_grpo", "rloo", "reinforce_plus_plus_baseline", "opo"}));
    v("eps", eps,
      "grpo: added to the standard deviation of the group's rewards. Rewards that are equal up to rounding give 0 also "
      "with 0.",
      between(0, 1));
  }
};

// Values in groups, one group behind the other: those of group g are number groups[g] … groups[g + 1] − 1.
using Groups = std::vector<int64_t>;

struct Advantages {
  std::vector<double> value;  // of each completion, all of whose tokens have it
  std::vector<double>
      slope;  // by how much it grows with the completion's own reward where the others' stay, baseline and scale
              // held: a token with a return of its own has value + slope · (return − reward)
};

// rewards s and lengths n in tokens (≥ 0) of completions in groups.
//
//   grpo                           (s − mean s) / (std s + eps), std with K − 1             arXiv 2402.03300
//   dr_grpo                        s − mean s                                               arXiv 2503.20783
//   rloo                           s − mean of the others' s                                arXiv 2402.14740
//   opo                            s − Σ n s / Σ n                                          arXiv 2505.23585
//   reinforce_plus_plus_baseline   a = s − mean s, then (a − m) / √(v + 1e-8), m and v the mean and the unbiased
//                                  variance of a over all tokens of the batch               arXiv 2501.03262
//
// Means without a mark are over the group. A group of one has no baseline: its mean counts as 0 and its std as 1, so
// grpo gives s / (1 + eps) and the others s. A group without tokens has baseline 0 in opo; a batch of fewer than two
// tokens is centred but not scaled. A group whose rewards are equal up to rounding (all within 2^-21 of the largest, or
// 1e-12) has advantages of 0 (before the whitening), and its std counts as 1 in slopes. Throws std::invalid_argument on
// counts that differ, a reward that is not finite or beyond 1e18, a negative length, an unknown kind.
Advantages advantages(std::span<const double> rewards, std::span<const int64_t> lengths, const Groups& groups,
                      const AdvantageConfig& config);

// Of each group whether its values differ by more than rounding, as above, so that it has something to say (dynamic sampling, DAPO, arXiv 2503.14476). A
// group of one is kept.
std::vector<bool> keep_groups(std::span<const double> rewards, const Groups& groups);

struct OverlongConfig {
  int64_t len = 4096;
  double penalty_factor = 1.0;

  template <class Visitor>
  void visit(Visitor& v) {
    v("len", len, "The penalty grows from 0 over this many tokens before the length limit.", at_least(1));
    v("penalty_factor", penalty_factor, "Penalty of a completion as long as the limit.", at_least(0));
  }
};

// To be added to the reward of a completion of n tokens (soft overlong punishment, DAPO):
//   min(0, −penalty_factor · (n − (max_len − len)) / len)
// Throws std::invalid_argument where len is not in 1 … max_len.
double overlong_penalty(int64_t length, const OverlongConfig& config, int64_t max_len);

}  // namespace isentrope::rl
