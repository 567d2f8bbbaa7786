// Reward: groups that have nothing to say are left out, and others drawn in their place (dynamic sampling of DAPO, arXiv 2503.14476).
#pragma once
#include "csrc/field.h"
#include "csrc/methods/method.h"

namespace isentrope::methods {

// Of each completion whether its group is kept: [B] bool. A group is one whose rewards differ by more than rounding (2^-21 of the largest
// in size, or 1e-12), or one of a single completion. reward [B] float32 or float64, what is compared, 1 and 0 of answers that are right
// and wrong; group [B] int64, rising.
Tensor filter_groups(const Tensor& reward, const Tensor& group);

struct FilterGroups {
  static constexpr const char* kKind = "filter_groups";
  static constexpr const char* kScope = "group";
  static constexpr const char* kHelp =
      "Draws more prompts in place of groups whose rewards are all equal (DAPO, arXiv 2503.14476). It looks at the "
      "weighted sum of the scores, wherever it stands in the list.";
  std::string by = "reward";
  int64_t max_draws = 10;
  int64_t max_empty_steps = 3;

  template <class Visitor>
  void visit(Visitor& v) {
    v("by", by, "reward: groups whose rewards are all equal; right: whose answers are all right or all wrong.",
      one_of({"reward", "right"}));
    v("max_draws", max_draws,
      "Most batches of prompts drawn in one step, which then learns from the groups that it found.", at_least(1));
    v("max_empty_steps", max_empty_steps,
      "So many steps in a row that find fewer groups than updates, and are skipped, stop the run.", at_least(1));
  }
  Selection selection() const;
};

}  // namespace isentrope::methods
