// The learning rate at a step, as a share of its peak.
#pragma once
#include <cstdint>
#include <string>

#include "csrc/field.h"

namespace isentrope::train {

struct ScheduleConfig {
  std::string kind = "constant";
  int64_t warmup_steps = 0;
  double min_lr_ratio = 0.0;

  template <class Visitor>
  void visit(Visitor& v) {
    v("kind", kind, "Shape after warm-up.", one_of({"constant", "linear", "cosine"}));
    v("warmup_steps", warmup_steps, "Steps of linear rise.", at_least(0));
    v("min_lr_ratio", min_lr_ratio, "Share of the peak that the last step has (linear, cosine).", between(0, 1));
  }
};

// step counts from 0; steps is the length of the phase.
//   warm-up   (step + 1)/warmup_steps
//   then with p = (step − warmup_steps)/(steps − 1 − warmup_steps), which is 0 at the first step after warm-up and 1 at the last step:
//   linear    1 − (1 − min_lr_ratio)·p
//   cosine    min_lr_ratio + (1 − min_lr_ratio)·½(1 + cos(π·p))
// A phase whose only step after warm-up is its last takes min_lr_ratio.
double learning_rate_share(const ScheduleConfig& config, int64_t step, int64_t steps);

}  // namespace isentrope::train
