#include "csrc/train/time_limit.h"

#include <chrono>
#include <cstdlib>

#include "csrc/train/process.h"

namespace isentrope::train {

TimeLimit::TimeLimit(const RunConfig& run) : limit_(run.time_limit_s), save_before_(run.save_before_s) {
  if (limit_ > 0) return;
  const char* end = std::getenv("SLURM_JOB_END_TIME");
  if (!end) return;
  char* rest = nullptr;
  const double seconds = std::strtod(end, &rest);
  if (rest != end && *rest == '\0' && seconds > 0) end_ = seconds;
}

std::optional<double> TimeLimit::left() const {
  if (save_before_ == 0) return std::nullopt;
  if (limit_ > 0) return limit_ - seconds_of_process();
  if (end_ == 0) return std::nullopt;
  return end_ - std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count();
}

bool TimeLimit::reached() const {
  const std::optional<double> seconds = left();
  return seconds && *seconds < save_before_ + longest_;
}

}  // namespace isentrope::train
