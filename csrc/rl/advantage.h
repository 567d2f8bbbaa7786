// The estimators of csrc/methods/group_advantage.h by the names that csrc/rl uses, and the penalty of long completions.
#pragma once
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "csrc/field.h"
#include "csrc/methods/estimator.h"

namespace isentrope::rl {

using methods::Advantages;
using methods::Groups;
using methods::keep_groups;

struct AdvantageConfig {
  std::string kind = "grpo";
  double eps = 1e-6;

  template <class Visitor>
  void visit(Visitor& v) {
    v("kind", kind, "How the rewards of a group become advantages (csrc/methods/group_advantage.h).",
      one_of({"grpo", "dr_grpo", "rloo", "reinforce_plus_plus_baseline", "opo"}));
    v("eps", eps,
      "grpo: added to the standard deviation of the group's rewards. Rewards that are equal up to rounding give 0 also "
      "with 0.",
      between(0, 1));
  }
};

// Those of the estimator of that kind. Throws std::invalid_argument as it does, and on an unknown kind.
Advantages advantages(std::span<const double> rewards, std::span<const int64_t> lengths, const Groups& groups,
                      const AdvantageConfig& config);

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
