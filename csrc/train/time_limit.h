// The end that a run is told of beforehand: a run leaves ahead of it, with its state saved, in place of being ended within a step.
//
//   left    = run.time_limit_s − the seconds since the process began, or where that is 0 the seconds until SLURM_JOB_END_TIME (a
//             Unix time, of Slurm from 22.05 on)
//   reached   where left < run.save_before_s + the longest step so far, its evaluations and its checkpoint with it
#pragma once
#include <algorithm>
#include <optional>

#include "csrc/train/config.h"

namespace isentrope::train {

class TimeLimit {
 public:
  explicit TimeLimit(const RunConfig& run);

  void stepped(double seconds) { longest_ = std::max(longest_, seconds); }
  bool reached() const;                // false where no limit is known, or run.save_before_s is 0
  std::optional<double> left() const;  // seconds; nullopt where no limit is looked at

 private:
  double limit_ = 0;  // seconds of the process
  double end_ = 0;    // Unix time; 0 for none
  double save_before_ = 0, longest_ = 0;
};

}  // namespace isentrope::train
