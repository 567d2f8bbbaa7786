// Weight: as many tokens as another method would choose, drawn at random: the control of those that choose.
#pragma once
#include <string>

#include "csrc/field.h"
#include "csrc/methods/method.h"

namespace isentrope::methods {

// [B, T] of entropy's dtype: 1 on max(1, round(fraction N)) of the N tokens that mask marks, all choices of as many equally likely, 0
// elsewhere. A pure function of shape, mask, fraction, seed and update, whatever the entropy. fraction in (0, 1]. float32 or float64.
Tensor random_tokens(const Tensor& entropy, const Tensor& mask, double fraction, int64_t seed, int64_t update);

struct RandomTokens {
  static constexpr const char* kKind = "random_tokens";
  static constexpr const char* kScope = "update";
  static constexpr const char* kHelp =
      "Only a share of the tokens learns, drawn anew for each update; the others keep their place in denominators. The "
      "control of methods that choose (arXiv 2506.01939): what they gain beyond it is the choice's.";
  double fraction = 0.2;
  int64_t seed = 1;
  std::string scope = "update";

  template <class Visitor>
  void visit(Visitor& v) {
    v("fraction", fraction, "Share of the update's tokens that learn.", above_to(0, 1));
    v("seed", seed, "Fixes which.", at_least(0));
    visit_scope(v, scope);
  }
  Tensor initial_state() const { return torch::zeros({1}, torch::kDouble); }  // updates so far
  Weighted apply(const Update& u, Context& context) const {
    const auto update = context.state[0].item<int64_t>();
    context.state = context.state + 1;
    return {random_tokens(u.entropy, u.mask, fraction, seed, update)};
  }
};

}  // namespace isentrope::methods
