// Advantage: of the completions of a prompt those of low perplexity gain (arXiv 2508.02260, "low-PPL").
#pragma once
#include "csrc/field.h"
#include "csrc/methods/method.h"

namespace isentrope::methods {

// [B, T] of advantage's dtype: A · min(max(1 − alpha w, low), high) where mask marks, else 0. Of a row, u = −mean of logprob over its
// tokens that count, the logarithm of its perplexity; w = (u − m) / s, with m the mean and s the population standard deviation (1 where
// it is at most 1e-6) of those u of its group that lie within 1.5 quartile distances of the quartiles (interpolated linearly), or of all
// where none does. Rows without a token have no u, and one whose u is not finite keeps its advantages and is in no statistic.
// alpha 0, and low = high = 1, change nothing. alpha of any sign, 0 ≤ low ≤ 1 ≤ high. logprob of the policy that drew. float32 or float64.
Tensor perplexity(const Tensor& advantage, const Tensor& logprob, const Tensor& mask, const Tensor& group, double alpha,
                  double low, double high);

struct Perplexity {
  static constexpr const char* kKind = "perplexity";
  static constexpr const char* kHelp =
      "A · clip(1 − alpha w, low, high), with w how many standard deviations the log-perplexity of a completion lies "
      "above the mean of its group, outliers left out of both: fluent completions learn more, and no sign changes "
      "(arXiv 2508.02260; in the released branch for low perplexity the factor is computed and not multiplied in).";
  double alpha = 0.01;
  double low = 0.8;
  double high = 1.2;

  template <class Visitor>
  void visit(Visitor& v) {
    v("alpha", alpha,
      "Change of the factor for a standard deviation; below 0 it favours high perplexity (the paper's control), 0: no "
      "effect.",
      between(-10, 10));
    v("low", low, "Least factor.", between(0, 1));
    v("high", high, "Greatest factor.", at_least(1));
  }
  void apply(Completions& c, Context&) const {
    c.advantage = perplexity(c.advantage, c.logprob, c.mask, c.group, alpha, low, high);
  }
};

}  // namespace isentrope::methods
