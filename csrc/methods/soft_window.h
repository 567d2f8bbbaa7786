// Weight: tokens of right answers learn by how their entropy stands out of its neighbourhood (arXiv 2609.39402, "PEPO").
#pragma once
#include "csrc/field.h"
#include "csrc/methods/method.h"

namespace isentrope::methods {

// [B, T] of entropy's dtype, 0 where mask does not mark. Over a row's n tokens that count, with
//
//   e_t = exp H_t / Σ_{|k − t| ≤ window / 2} exp H_k,
//
// k over positions whose token counts: n e_t / Σ e where advantage > 0, so that the mean over the row is 1, else 1. window 1: 1
// everywhere. Rows are independent. entropy H of the policy that learns, nats; sums in double, of exp(H − max H) and without
// differences; an H more than 80 below the greatest of its row counts as 80 below. A NaN spreads over its row. window ≥ 1. float32 or
// float64.
Tensor soft_window(const Tensor& entropy, const Tensor& advantage, const Tensor& mask, int64_t window);

struct SoftWindow {
  static constexpr const char* kKind = "soft_window";
  static constexpr const char* kScope = "completion";
  static constexpr const char* kHelp =
      "Tokens of positive advantage learn by exp of their entropy over its sum in a centred window, scaled so that a "
      "completion's mean factor is 1 (arXiv 2609.39402, PEPO).";
  int64_t window = 101;

  template <class Visitor>
  void visit(Visitor& v) {
    v("window", window,
      "Positions of the window, the token's own in its middle: those at most half of it away; 1: no effect.",
      at_least(1));
  }
  Weighted apply(const Update& u, Context&) const { return {soft_window(u.entropy, u.advantage, u.mask, window)}; }
};

}  // namespace isentrope::methods
