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
  double decay_ratio = 0.1;
  std::string decay_shape = "linear";

  template <class Visitor>
  void visit(Visitor& v) {
    v("kind", kind, "Shape after warm-up; wsd (warm-up, stable, decay) stays at the peak and falls at the end.",
      one_of({"constant", "linear", "cosine", "wsd"}));
    v("warmup_steps", warmup_steps, "Steps of linear rise.", at_least(0));
    v("min_lr_ratio", min_lr_ratio, "Share of the peak that the last step has (linear, cosine, wsd).", between(0, 1));
    v("decay_ratio", decay_ratio, "Share of the phase's steps in which wsd falls.", above_to(0, 1));
    v("decay_shape", decay_shape, "How wsd falls (csrc/train/schedule.h).", one_of({"linear", "cosine", "1-sqrt"}));
  }
};

// step counts from 0; steps is the length of the phase.
//   warm-up   (step + 1)/warmup_steps
//   then with p = (step − warmup_steps)/(steps − 1 − warmup_steps), which is 0 at the first step after warm-up and 1 at the last step:
//   wsd       1 until the last ⌈decay_ratio · steps⌉ steps; over these, p from 0 at the step before the first to 1 at the last,
//             as linear, as cosine, or 1-sqrt: 1 − (1 − min_lr_ratio)·√p
//             (Hu et al., MiniCPM, arXiv 2404.06395; 1-sqrt: Hägele et al., arXiv 2405.18392)
//   linear    1 − (1 − min_lr_ratio)·p
//   cosine    min_lr_ratio + (1 − min_lr_ratio)·½(1 + cos(π·p))
// A phase whose only step after warm-up is its last takes min_lr_ratio.
double learning_rate_share(const ScheduleConfig& config, int64_t step, int64_t steps);

}  // namespace isentrope::train
