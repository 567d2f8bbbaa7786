// Reward: groups that have nothing to say are left out, and others drawn in their place (dynamic sampling of DAPO, arXiv 2503.14476).
#pragma once
#include "csrc/field.h"
#include "csrc/methods/method.h"

namespace isentrope::methods {

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
};

}  // namespace isentrope::methods
