// Weight: only the tokens of highest entropy learn (arXiv 2506.01939, "80/20").
#pragma once
#include <string>

#include "csrc/field.h"
#include "csrc/methods/method.h"

namespace isentrope::methods {

// [B, T] of entropy's dtype: 1 on the max(1, round(fraction N)) tokens of highest entropy among the N that mask marks, 0 elsewhere. Of
// equal entropies the earlier token comes first (row by row). Exact, by selection in linear time. fraction in (0, 1]; NaN counts as the
// highest. float32 or float64.
Tensor top_entropy(const Tensor& entropy, const Tensor& mask, double fraction);

struct TopEntropy {
  static constexpr const char* kKind = "top_entropy";
  static constexpr const char* kScope = "update";
  static constexpr const char* kHelp =
      "Only the tokens of highest entropy learn; the others keep their place in denominators (arXiv 2506.01939).";
  double fraction = 0.2;
  std::string scope = "update";

  template <class Visitor>
  void visit(Visitor& v) {
    v("fraction", fraction, "Share of the update's tokens that learn; exact, ties to the earlier token.",
      above_to(0, 1));
    visit_scope(v, scope);
  }
  Weighted apply(const Update& u, Context&) const { return {top_entropy(u.entropy, u.mask, fraction)}; }
};

}  // namespace isentrope::methods
