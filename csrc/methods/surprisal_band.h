// Weight: only tokens whose surprisal stands in a band about their entropy learn (arXiv 2606.31575, "RSI selection").
#pragma once
#include <string>

#include "csrc/field.h"
#include "csrc/methods/method.h"

namespace isentrope::methods {

// [B, T] of logprob's dtype: 1 where mask marks and low ≤ −logprob / entropy ≤ high, else 0. Both of one policy, nats. Where the
// entropy is 0 (or below, by rounding) the quotient is 0 for a surprisal of 0 and infinite for any other; a NaN does not learn.
// 0 ≤ low ≤ high. float32 or float64.
Tensor surprisal_band(const Tensor& logprob, const Tensor& entropy, const Tensor& mask, double low, double high);

struct SurprisalBand {
  static constexpr const char* kKind = "surprisal_band";
  static constexpr const char* kScope = "token";
  static constexpr bool kOfTargets = true;
  static constexpr const char* kHelp =
      "Only tokens learn whose surprisal is between low and high times their entropy: neither the redundant nor the "
      "tail; the others keep their place in denominators (arXiv 2606.31575, the Relative Surprisal Index).";
  double low = 0.1;
  double high = 3;

  template <class Visitor>
  void visit(Visitor& v) {
    v("low", low, "Least −log-prob / entropy of a token that learns; 0: no bound.", at_least(0));
    v("high", high,
      "Greatest −log-prob / entropy of a token that learns. 0.1 and 3 are those of a public implementation.",
      at_least(0));
  }
  std::string problem() const {
    return low > high ? "low: " + std::to_string(low) + " is above high (" + std::to_string(high) + ")" : "";
  }
  Weighted apply(const Update& u, Context&) const { return {surprisal_band(u.logprob, u.entropy, u.mask, low, high)}; }
};

}  // namespace isentrope::methods
