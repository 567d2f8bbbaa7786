// The files of data.reasoning_gym.
#pragma once
#include <string>
#include <vector>

#include "csrc/train/config.h"

namespace isentrope::train {

// Makes the files of the phases that have none yet, by `python -m isentrope.tasks`. Files that are there are left as they are, so that
// a run goes on with the problems that it began with. Returns a note for each phase whose files it made. Throws std::runtime_error with
// the phase and what Python says: a task or setting that is not there, reasoning-gym that is missing, a folder that cannot be written.
std::vector<std::string> make_task_files(const TrainConfig& config);

}  // namespace isentrope::train
