// How much the gradients of sequences differ (gradient noise scale, McCandlish et al., arXiv 1812.06162, appendix A.1): with G the mean
// gradient of a sequence and Σ its covariance,
//
//   B_simple = tr Σ / |G|²        sequences: about the batch beyond which more of them save few steps
//
// From two estimates of G in one update: G_B of its B sequences, and g_b of the b of a part of them, scaled by B / b,
//
//   tr Σ ≈ (|g_b|² − |G_B|²) / (1/b − 1/B)        |G|² ≈ |G_B|² − tr Σ / B
//
// both without bias, as is their sum over several parts: numerators and denominators add up. Either may be below 0, and their quotient
// has a bias: it is taken of their running means. Pure C++.
#pragma once
#include <optional>
#include <vector>

namespace isentrope::train {

class GradientNoise {
 public:
  // About twenty measurements, over which the noise of one evens out.
  static constexpr double kDecay = 0.95;

  // A part of an update: |g_b|² of its gradient as it adds to that of the whole, and b.
  struct Part {
    double squares = 0, sequences = 0;
  };
  // Of one update.
  struct Found {
    double trace = 0, square = 0;  // tr Σ and |G|²
  };
  // parts: of one update of so many sequences, whose gradient has that norm. None where no part is smaller than the whole, or all are
  // empty.
  static std::optional<Found> find(const std::vector<Part>& parts, double sequences, double norm);

  void add(const Found& found);
  std::optional<double> scale() const;  // none where |G|² is not above 0

  // What a resumed run goes on from; nothing before the first measurement.
  std::vector<double> state() const;
  void restore(const std::vector<double>& state);  // throws std::runtime_error for what state() does not give

 private:
  Found mean_;  // both lack the same share of their beginning, which goes out of the quotient
  bool any_ = false;
};

}  // namespace isentrope::train
