// Weight: tokens that would move the entropy most learn least (arXiv 2510.10150, "STEER").
#pragma once
#include <string>

#include "csrc/field.h"
#include "csrc/methods/method.h"

namespace isentrope::methods {

// [B, T] of logprob's dtype, 0 where mask does not mark. The change of entropy that a token's update predicts is
//
//   Ω = A / π_old · π (1 − π)^power (ℓ + H),  π = exp ℓ,
//
// with ℓ and ℓ_old not below log 1e-8 nor above 0, and 0 where it is not finite. With m the least and M the greatest |Ω| among the
// tokens that count (the whole update that is handed over),
//
//   form linear        factor = high − (high − low) (|Ω| − m) / (M − m), and (low + high) / 2 where M = m
//   form exponential   factor = max(low, exp(−k |Ω|)), k = −log(low) / max(M, 0.02): from 1 down to low; high has no part in it
//
// logprob ℓ and entropy H of the policy that learns, old_logprob ℓ_old of the one that drew, nats. power 1 or 2. 0 ≤ low ≤ high;
// exponential: 1e-6 ≤ low ≤ 1. float32 or float64.
Tensor steer(const Tensor& logprob, const Tensor& old_logprob, const Tensor& entropy, const Tensor& advantage,
             const Tensor& mask, c10::string_view form, double low, double high, int64_t power);

struct Steer {
  static constexpr const char* kKind = "steer";
  static constexpr const char* kScope = "update";
  static constexpr const char* kHelp =
      "Tokens learn the less the more their update is predicted to change the entropy: a factor between high and low "
      "by |A / π_old · π (1 − π)² (ℓ + H)|, from its least to its greatest (arXiv 2510.10150, STEER; zz-haooo/STEER, "
      "which has scope micro).";
  std::string form = "linear";
  double low = 0.8;
  double high = 1.2;
  int64_t power = 2;
  std::string scope = "update";

  template <class Visitor>
  void visit(Visitor& v) {
    v("form", form,
      "linear: from high to low; exponential: from 1 to low, max(low, exp(−k |Ω|)) with k = −log(low) / "
      "max(greatest, 0.02), the form of the paper's first version. The released code has both, linear by default.",
      one_of({"linear", "exponential"}));
    v("low", low, "Factor of the token with the greatest change; exponential: at least 0.000001, at most 1.",
      at_least(0));
    v("high", high, "Factor of the token with the least change; exponential: not used.", at_least(0));
    v("power", power,
      "Of 1 − π in the change: 2 is the paper's, 1 that of the newest released code (its history has 2 too).",
      between(1, 2));
    visit_scope(v, scope);
  }
  std::string problem() const {
    if (form == "exponential" && (low < 1e-6 || low > 1))
      return "low: " + std::to_string(low) + " with form exponential; wanted 0.000001 to 1";
    if (form == "linear" && low > high)
      return "low: " + std::to_string(low) + " is above high (" + std::to_string(high) + ")";
    return "";
  }
  Weighted apply(const Update& u, Context&) const {
    return {steer(u.logprob, u.old_logprob, u.entropy, u.advantage, u.mask, form, low, high, power)};
  }
};

}  // namespace isentrope::methods
