// Weight: only tokens whose entropy the update has left near that of the sampling policy learn (arXiv 2512.05591, "ERC").
#pragma once
#include <string>

#include "csrc/field.h"
#include "csrc/methods/method.h"

namespace isentrope::methods {

// [B, T] of entropy's dtype: 1 where mask marks and low < (H + 1e-8) / (H_old + 1e-8) < high, else 0; 1e-8 as in the released code.
// entropy H of the policy that learns, old_entropy H_old of the one that drew, nats. A NaN does not learn. 0 ≤ low < high. float32 or
// float64.
Tensor entropy_ratio_band(const Tensor& entropy, const Tensor& old_entropy, const Tensor& mask, double low,
                          double high);

struct EntropyRatioBand {
  static constexpr const char* kKind = "entropy_ratio_band";
  static constexpr const char* kScope = "token";
  static constexpr const char* kHelp =
      "A token learns only while its entropy is between low and high times that of the policy that drew it; the "
      "others keep their place in denominators (arXiv 2512.05591, entropy ratio clipping; Kwai-Klear/ERC).";
  double low = 0.95;
  double high = 1.05;

  template <class Visitor>
  void visit(Visitor& v) {
    v("low", low,
      "Lower end of the ratio of entropies, itself outside. 0.95 and 1.05 are those of the paper's runs; the "
      "released configuration has 0.8 and 1.2.",
      at_least(0));
    v("high", high, "Upper end of the ratio of entropies, itself outside.", above(0));
  }
  std::string problem() const {
    return low >= high ? "low: " + std::to_string(low) + " is not below high (" + std::to_string(high) + ")" : "";
  }
  Weighted apply(const Update& u, Context&) const {
    return {entropy_ratio_band(u.entropy, u.old_entropy, u.mask, low, high)};
  }
};

}  // namespace isentrope::methods
