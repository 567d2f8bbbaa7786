// How much memory a process may use on this machine.
#pragma once
#include <string>

namespace isentrope::train {

// Bytes: of the machine, or of the control group that the process is in or one around it, where that is less (memory.max of version 2,
// memory.limit_in_bytes of version 1). root: "" but in tests, before /proc and /sys.
double machine_memory(const std::string& root = "");
// Bytes of this process that are in memory now.
double resident_memory();

}  // namespace isentrope::train
