// How large an update can leave a weight: what is asked before it, in the place of a look at all weights after it.
//
// G: the largest |gradient| of the update, at most their norm. Over all weights, η: the learning rate,
//
//   sgd    |m| ← β |m| + G                       an update adds at most η |m|
//   adamw  |m| ← max(|m|, G),  m² ≤ A (v + T)    an update adds at most η / (1-β₁) · min(|m| / eps, √A (1 + √T / eps))
//          A ← max(A, β₁² A / β₂ + (1-β₁)² / (1-β₂)), by Cauchy and Schwarz;  T: what v can have lost to underflow
//   |w| ← |1 - η decay| |w| + that
//
// A few operations a step; the weights themselves are looked at in the first, and where these sums come near the largest float.
#pragma once
#include <limits>

namespace isentrope::train {

struct OptimizerConfig;

struct UpdateBound {
  // A third of the largest float: the roundings of an update have room above it.
  static constexpr double kLargest = 1e38;

  double weights = std::numeric_limits<double>::infinity();  // not looked at yet
  double first = 0, ratio = 0;                               // |m|, A; 0: no update so far

  // After one more update; weights is infinite where a part of its arithmetic could be. kind adamw or sgd.
  UpdateBound after(const OptimizerConfig& config, double lr, double gradient) const;
  bool finite() const { return weights <= kLargest; }  // false of a number that is none
};

// T above.
double lost_to_underflow(const OptimizerConfig& config);

}  // namespace isentrope::train
