#include "csrc/train/update_bound.h"

#include <algorithm>
#include <cmath>

#include "csrc/train/optimizer.h"

namespace isentrope::train {

double lost_to_underflow(const OptimizerConfig& config) {
  return static_cast<double>(std::numeric_limits<float>::min()) / (1 - config.betas.back());
}

UpdateBound UpdateBound::after(const OptimizerConfig& c, double lr, double gradient) const {
  constexpr double kRounding = 1.01;  // of sums over at most some 10⁴ updates that a moment remembers
  // The norm does not see a gradient whose square underflows.
  const double unseen = std::sqrt(static_cast<double>(std::numeric_limits<float>::min()));
  const double G = kRounding * (gradient + unseen);
  UpdateBound next;
  double rate = lr, added = 0;
  if (c.kind == "sgd") {
    next.first = c.betas[0] * first + G;
    added = lr * next.first;
  } else {
    const double b1 = c.betas[0], b2 = c.betas[1], eps = static_cast<float>(c.eps);
    next.first = std::max(first, G);
    next.ratio = std::max(ratio, (b1 * b1 * ratio > 0 ? b1 * b1 * ratio / b2 : 0) + (1 - b1) * (1 - b1) / (1 - b2));
    rate = lr / (1 - b1);
    const double by_ratio = std::sqrt(next.ratio) * (1 + std::sqrt(lost_to_underflow(c)) / eps);
    added = kRounding * rate * std::min(next.first / eps, by_ratio);
    if (G * G > kLargest) return next;  // the second moment
  }
  const double decay = std::abs(1 - lr * c.weight_decay);
  if (!(rate <= kLargest && decay <= kLargest && next.first <= kLargest)) return next;
  next.weights = std::max(decay, 1.0) * weights + added;  // the largest may have no decay
  return next;
}

}  // namespace isentrope::train
