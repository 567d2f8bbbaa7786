// The law that ties the reward of a policy to its entropy while nothing holds the entropy up:
//
//   R = -a · exp(H) + b          H: mean entropy of the tokens drawn, nats; R: mean reward; ceiling b - a, at H = 0
//
// (Cui et al., "The Entropy Mechanism of Reinforcement Learning for Reasoning Language Models", arXiv:2505.22617.) Fitted by least
// squares in x = exp(H), over all steps so far, with running moments.
#pragma once
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace isentrope::rl {

class EntropyLaw {
 public:
  struct Fit {
    double a, b;
    double ceiling() const { return b - a; }
    double r2;    // share of the variance of R that the law explains
    double rmse;  // root of the mean square of R's distance from it
  };

  void add(double entropy, double reward);
  // Nothing before there are three points with entropies that differ: the variance of exp(H) must be at least 1e-8.
  std::optional<Fit> fit() const;
  int64_t points() const { return static_cast<int64_t>(n_); }

  // What a resumed run goes on from.
  std::vector<double> state() const { return {n_, x_, r_, xx_, xr_, rr_}; }
  void restore(const std::vector<double>& state);

 private:
  double n_ = 0, x_ = 0, r_ = 0;     // points; means of exp(H) and R
  double xx_ = 0, xr_ = 0, rr_ = 0;  // sums of squares and products about the means
};

}  // namespace isentrope::rl
