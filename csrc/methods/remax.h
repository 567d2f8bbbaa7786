// Advantage: a completion's reward beside that of the greedy completion of its prompt.
//
//   s − greedy
//
// greedy is the reward of the completion that takes the most probable token each time, drawn beside the group once a prompt. It needs
// no second completion, so a group of one learns as any other, and equal rewards are 0 only where they equal it.
#pragma once
#include "csrc/methods/method.h"

namespace isentrope::methods {

struct Remax {
  static constexpr const char* kKind = "remax";
  static constexpr const char* kScope = "completion";
  static constexpr const char* kHelp =
      "reward − reward of the greedy completion of the prompt, which is drawn besides (arXiv 2310.10505).";
  static constexpr bool kNeedsGreedy = true;

  template <class Visitor>
  void visit(Visitor&) {}
  // Throws std::invalid_argument as check() of csrc/methods/estimator.h does, and where greedy is not one finite reward a group.
  Advantages estimate(const Rewarded& r) const;
};

}  // namespace isentrope::methods
