// Weight: tokens learn by how widely their attention is spread (arXiv 2605.07660, "anchors and explorers").
#pragma once
#include <string>

#include "csrc/field.h"
#include "csrc/methods/method.h"

namespace isentrope::methods {

// [B, T] of attention's dtype, 0 where mask does not mark: max(0, 1 + coef (e − mean e)), e the entropy of the token's attention row
// normalised to [0, 1] (over the logarithm of its keys, mean over heads), mean over all tokens that count in what is handed over,
// summed in double. coef 0: 1. float32 or float64.
Tensor attention_entropy(const Tensor& attention, const Tensor& mask, double coef);

struct AttentionEntropy {
  static constexpr const char* kKind = "attention_entropy";
  static constexpr const char* kScope = "update";
  static constexpr const char* kHelp =
      "Tokens learn by the entropy e of their attention row at one layer, normalised to [0, 1]: factor 1 + coef (e − "
      "mean e), not below 0. Below 0, coef favours tokens with concentrated attention, whose gradients are the "
      "stable ones; above 0, those that attend widely (arXiv 2605.07660 reweights softly by it; this linear form is "
      "ours, not its schedule).";
  static constexpr bool kNeedsAttentionEntropy = true;  // Update::attention_entropy, of this layer
  int64_t layer = -1;
  double coef = -0.5;
  std::string scope = "update";

  template <class Visitor>
  void visit(Visitor& v) {
    v("layer", layer, "Layer whose attention is looked at, the first is 0; −1: the last.", at_least(-1));
    v("coef", coef, "How much the factor changes from concentrated (0) to uniform attention (1); 0: no effect.",
      between(-10, 10));
    visit_scope(v, scope);
  }
  Weighted apply(const Update& u, Context&) const { return {attention_entropy(u.attention_entropy, u.mask, coef)}; }
};

}  // namespace isentrope::methods
