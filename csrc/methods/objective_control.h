// Controllers that keys of a policy objective hold, each alone, beside the list `entropy`.
#pragma once
#include <cstdint>

#include "csrc/field.h"
#include "csrc/methods/control.h"
#include "csrc/methods/kl_control.h"
#include "csrc/one_of.h"

namespace isentrope::methods {

// Key ref_kl_control: the weight of the divergence from the reference in the loss, from ref_kl_coef on.
struct RefKlControl {
  static constexpr const char* kKind = "ref_kl_control";
  static constexpr bool kAlone = true;
  double coef = 0;
  KlControl control = {};

  template <class Visitor>
  void visit(Visitor& v) {
    control.visit(v);
  }
  Tensor initial_state() const { return torch::tensor({coef}, torch::kFloat64); }
  Control at(int64_t, const Tensor& state) const { return {.ref_kl_coef = *state.const_data_ptr<double>()}; }
  void observe(const std::map<std::string, double>& seen, Context& context) const;  // ref_kl/k3
};

// Key inner_policy: for the first steps the policy of an inner layer learns in the place of the whole (BuPO, arXiv 2512.19673).
struct InnerPolicy {
  static constexpr const char* kKind = "inner_policy";
  static constexpr bool kAlone = true;
  int64_t layer = 0;
  int64_t steps = 30;

  template <class Visitor>
  void visit(Visitor& v) {
    v("layer", layer,
      "Block, from 0, behind which the head reads the residual stream, without the last norm (the authors: 5 of Qwen3, "
      "26 "
      "of Llama); no gradient reaches the blocks behind it, and the last block is the whole.",
      at_least(0));
    v("steps", steps, "Steps of the phase that it takes, of which too many harm (the authors: 30 of 300).",
      at_least(1));
  }
  Control at(int64_t step, const Tensor&) const { return step < steps ? Control{.layer = layer} : Control(); }
};

using ObjectiveControl = OneOf<RefKlControl, InnerPolicy>;

}  // namespace isentrope::methods
