// Advantage: of groups of low entropy right answers learn less, of those of high entropy wrong ones (arXiv 2607.16850, "GEPO": group
// entropy-controlled policy optimization; another method of that name, arXiv 2508.17850, is an importance weight).
//
//   h_g = −Σ logprob / tokens over all tokens of a group that count (or the mean of their entropies: of: entropy)
//   A ← low A where A > 0 and h_g < h_low, high A where A < 0 and h_g > h_high
//   after a step h_low ← (1 − rate) h_low + rate (μ − spread_low σ), h_high ← (1 − rate) h_high + rate (μ + spread_high σ)
//
// with μ, σ the mean and population standard deviation of h_g over the step's groups. In the first step the bounds are those that it
// makes itself. The state is the two bounds, NaN before there are any.
#pragma once
#include <string>
#include <tuple>

#include "csrc/field.h"
#include "csrc/methods/method.h"

namespace isentrope::methods {

// The new advantages [B, T] of advantage's dtype, 0 where mask does not mark, and the new state [2] double. h [B, T]: −logprob or entropy
// of the policy that drew, nats; group [B] rising; state [2] double, h_low and h_high. low, high 0 to 1, which changes nothing. Groups
// without a token, and those of a mean that is not finite, are in no statistic and keep their advantages. float32 or float64.
std::tuple<Tensor, Tensor> gepo(const Tensor& advantage, const Tensor& h, const Tensor& mask, const Tensor& group,
                                const Tensor& state, double low, double high, double spread_low, double spread_high,
                                double rate);

struct Gepo {
  static constexpr const char* kKind = "gepo";
  static constexpr const char* kScope = "group";
  static constexpr const char* kHelp =
      "Advantages above 0 times low in groups whose entropy is below a running bound, those below 0 times high in "
      "groups above another: prompts that the policy knows are not exploited further, and where it hesitates wrong "
      "answers are not punished away (GEPO, arXiv 2607.16850).";
  double low = 0.5;
  double high = 0.2;
  double spread_low = 0.2;
  double spread_high = 0.3;
  double rate = 0.01;
  std::string of = "logprob";

  template <class Visitor>
  void visit(Visitor& v) {
    v("low", low, "Factor of advantages above 0 in groups of low entropy; 1: none.", between(0, 1));
    v("high", high,
      "Factor of advantages below 0 in groups of high entropy; 1: none. A low below it is what the paper makes "
      "responsible for answers that shrink.",
      between(0, 1));
    v("spread_low", spread_low, "Standard deviations that the lower bound lies below the mean of the groups.",
      between(-10, 10));
    v("spread_high", spread_high, "And the upper one above it.", between(-10, 10));
    v("rate", rate, "Share of a step in the running bounds.", between(0, 1));
    v("of", of,
      "What a group's entropy is measured by: logprob, the mean surprisal of its tokens (the paper's estimate); "
      "entropy, the mean of their entropies.",
      one_of({"logprob", "entropy"}));
  }
  Tensor initial_state() const;
  void apply(Completions& c, Context& context) const;
};

}  // namespace isentrope::methods
