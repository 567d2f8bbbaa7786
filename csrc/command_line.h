// The command line: what its words mean, and what is wrong with them.
#pragma once
#include <functional>
#include <memory>
#include <string>

#include "csrc/train/given_rewards.h"

namespace isentrope {

// The process that runs the command line.
struct Host {
  std::string program = "isentrope";                                      // as it was called
  std::function<rl::RewardFunction(const train::RewardWord&)> load = {};  // of a process that has Python
  std::function<std::shared_ptr<const rl::Environment>(const train::RewardWord&, double)> load_environment = {};
};

// Does what the words ask for; hands over to Python where they, or the configuration, ask for a function in it and the host has none. Returns the exit code
// of the process, 2 for words that are wrong: they are named on standard error with the nearest that there is. Throws what went
// wrong.
int run(int argc, char** argv, const Host& host);

}  // namespace isentrope
