#include "csrc/train/gradient_noise.h"

#include <stdexcept>
#include <string>

namespace isentrope::train {

std::optional<GradientNoise::Found> GradientNoise::find(const std::vector<Part>& parts, double sequences, double norm) {
  const double whole = norm * norm;
  double excess = 0, share = 0;
  for (const Part& part : parts) {
    if (part.sequences <= 0 || part.sequences >= sequences) continue;
    const double scale = sequences / part.sequences;
    excess += part.squares * scale * scale - whole;
    share += 1 / part.sequences - 1 / sequences;
  }
  if (share == 0) return std::nullopt;
  const double trace = excess / share;
  return Found{.trace = trace, .square = whole - trace / sequences};
}

void GradientNoise::add(const Found& found) {
  mean_.trace = kDecay * mean_.trace + (1 - kDecay) * found.trace;
  mean_.square = kDecay * mean_.square + (1 - kDecay) * found.square;
  any_ = true;
}

std::optional<double> GradientNoise::scale() const {
  return mean_.square > 0 ? std::optional(mean_.trace / mean_.square) : std::nullopt;
}

std::vector<double> GradientNoise::state() const {
  return any_ ? std::vector{mean_.trace, mean_.square} : std::vector<double>();
}

void GradientNoise::restore(const std::vector<double>& state) {
  if (state.size() != 2)
    throw std::runtime_error("the checkpoint has " + std::to_string(state.size()) +
                             " numbers of the gradient noise scale, wanted 2; it is of another version, or damaged");
  mean_ = {.trace = state[0], .square = state[1]};
  any_ = true;
}

}  // namespace isentrope::train
