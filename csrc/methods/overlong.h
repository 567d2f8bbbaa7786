// Reward: a soft penalty of completions near the length limit (DAPO, arXiv 2503.14476).
#pragma once
#include "csrc/field.h"
#include "csrc/methods/method.h"

namespace isentrope::methods {

// To be added to the reward of a completion of n tokens: min(0, −penalty_factor · (n − (longest − len)) / len). Throws
// std::invalid_argument where len is not in 1 … longest.
double overlong_penalty(int64_t n, int64_t longest, int64_t len, double penalty_factor);

// The same of each: length [B] int64 → [B] double.
Tensor overlong(const Tensor& length, int64_t longest, int64_t len, double penalty_factor);

struct Overlong {
  static constexpr const char* kKind = "overlong";
  static constexpr const char* kScope = "completion";
  static constexpr const char* kHelp =
      "Adds min(0, -penalty_factor (n - (max_new_tokens - len)) / len) to the reward of a completion of n tokens (soft "
      "overlong punishment of DAPO, arXiv 2503.14476).";
  int64_t len = 4096;
  double penalty_factor = 1.0;

  template <class Visitor>
  void visit(Visitor& v) {
    v("len", len, "The penalty grows from 0 over this many tokens before the length limit, rollout.max_new_tokens.",
      at_least(1));
    v("penalty_factor", penalty_factor, "Penalty of a completion as long as the limit.", at_least(0));
  }
  void apply(Completions& c, Context&) const { c.add(kKind, overlong(c.length, c.longest, len, penalty_factor)); }
};

}  // namespace isentrope::methods
