#include "csrc/rl/entropy_law.h"

#include <algorithm>
#include <cmath>
#include <stdexcept>

namespace isentrope::rl {

void EntropyLaw::add(double entropy, double reward) {
  const double x = std::exp(entropy);
  if (!std::isfinite(x) || !std::isfinite(reward)) return;
  n_ += 1;
  const double dx = x - x_, dr = reward - r_;  // from the old means
  x_ += dx / n_;
  r_ += dr / n_;
  xx_ += dx * (x - x_);
  xr_ += dx * (reward - r_);
  rr_ += dr * (reward - r_);
}

std::optional<EntropyLaw::Fit> EntropyLaw::fit() const {
  constexpr double kLeastVariance = 1e-8;  // below it the entropies are one number, and any slope fits
  if (n_ < 3 || xx_ / n_ < kLeastVariance) return std::nullopt;
  const double slope = xr_ / xx_, rest = std::max(rr_ - slope * xr_, 0.0);
  return Fit{.a = -slope, .b = r_ - slope * x_, .r2 = rr_ > 0 ? 1 - rest / rr_ : 1, .rmse = std::sqrt(rest / n_)};
}

void EntropyLaw::restore(const std::vector<double>& state) {
  if (state.size() != 6)
    throw std::runtime_error("entropy law: a state of " + std::to_string(state.size()) + " numbers; wanted 6");
  n_ = state[0], x_ = state[1], r_ = state[2], xx_ = state[3], xr_ = state[4], rr_ = state[5];
}

}  // namespace isentrope::rl
