// Environments that are classes in Python (python/isentrope/environment_classes.py).
#pragma once
#include <memory>

#include "csrc/rl/environment.h"
#include "csrc/train/given_rewards.h"

namespace isentrope::python {

// What the word names, within a limit of seconds a call, 0 for none. Throws what Python raises where there is no such class. What its
// methods raise ends their conversations alone.
std::shared_ptr<const rl::Environment> load_environment(const train::RewardWord& word, double timeout_s);

}  // namespace isentrope::python
