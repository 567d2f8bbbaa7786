#include "csrc/train/schedule.h"

#include <algorithm>
#include <cmath>
#include <numbers>
#include <stdexcept>

namespace isentrope::train {

namespace {

// From 1 at progress 0 to least at progress 1.
double fallen(const std::string& shape, double progress, double least) {
  if (shape == "cosine") return least + (1.0 - least) * 0.5 * (1.0 + std::cos(std::numbers::pi * progress));
  if (shape == "1-sqrt") return 1.0 - (1.0 - least) * std::sqrt(progress);
  if (shape == "linear") return 1.0 - (1.0 - least) * progress;
  throw std::invalid_argument("schedule: '" + shape + "' is not one of linear, cosine, 1-sqrt");
}

}  // namespace

double learning_rate_share(const ScheduleConfig& config, int64_t step, int64_t steps) {
  if (step < config.warmup_steps) return static_cast<double>(step + 1) / static_cast<double>(config.warmup_steps);
  if (config.kind == "constant") return 1.0;
  if (config.kind == "wsd") {
    const double length = std::ceil(config.decay_ratio * static_cast<double>(steps));
    const double progress = std::clamp(1.0 - static_cast<double>(steps - 1 - step) / length, 0.0, 1.0);
    return fallen(config.decay_shape, progress, config.min_lr_ratio);
  }
  const auto span = static_cast<double>(steps - 1 - config.warmup_steps);
  const double progress = step >= steps - 1 ? 1.0 : static_cast<double>(step - config.warmup_steps) / span;
  return fallen(config.kind, progress, config.min_lr_ratio);
}

}  // namespace isentrope::train
