// Weight: the control of a selection. A loss that selects tokens, clip_cov or kl_cov (kernels/grpo_loss.h), acts on as many tokens drawn
// at random in their place: what it then does is owed to how many they are, not to which (as arXiv 2505.22617 asks of its own rule).
#pragma once
#include "csrc/field.h"
#include "csrc/methods/method.h"

namespace isentrope::methods {

// [B, T] bool: of the tokens that mask marks as many as selected has among them, each equally likely; a function of the seed and of the
// places that mask marks alone.
Tensor random(const Tensor& selected, const Tensor& mask, int64_t seed);

struct Random {
  static constexpr const char* kKind = "random";
  static constexpr const char* kScope = "update";  // of what the loss selects in, objective.scope
  static constexpr const char* kHelp =
      "The control of a selection: as many tokens as the loss clip_cov or kl_cov selects, drawn at random, take their "
      "place (control of arXiv 2505.22617).";

  template <class Visitor>
  void visit(Visitor&) {}
  Tensor choose(const Tensor& selected, const Tensor& mask, uint64_t seed) const {
    return random(selected, mask, static_cast<int64_t>(seed));
  }
};

}  // namespace isentrope::methods
