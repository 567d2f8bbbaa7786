#include "csrc/train/schedule.h"

#include <algorithm>
#include <cmath>
#include <numbers>
#include <stdexcept>

namespace isentrope::train {

double learning_rate_share(const ScheduleConfig& config, int64_t step, int64_t steps) {
  if (step < config.warmup_steps) return static_cast<double>(step + 1) / static_cast<double>(config.warmup_steps);
  if (config.kind == "constant") return 1.0;
  const auto span = static_cast<double>(steps - 1 - config.warmup_steps);
  const double progress = step >= steps - 1 ? 1.0 : static_cast<double>(step - config.warmup_steps) / span;
  if (config.kind == "linear") return 1.0 - (1.0 - config.min_lr_ratio) * progress;
  if (config.kind == "cosine")
    return config.min_lr_ratio + (1.0 - config.min_lr_ratio) * 0.5 * (1.0 + std::cos(std::numbers::pi * progress));
  throw std::invalid_argument("schedule.kind: '" + config.kind + "' is not one of constant, linear, cosine");
}

}  // namespace isentrope::train
