// What several processes drew of one call of rollout(), brought together.
#pragma once
#include <vector>

#include "csrc/rl/peers.h"
#include "csrc/rl/reward.h"
#include "csrc/rl/rollout.h"

namespace isentrope::rl {

// Each rank gives the completions that it drew, with their rewards, and gets those of all, in the order and with the parents of a
// call on one rank. Rewards that look at one completion at a time are then those of one rank; one that compares the completions
// of its batch compares those of its rank.
void gather(const Peers& peers, std::vector<Completion>& completions, Rewards& rewards, RolloutCounts& counts);

}  // namespace isentrope::rl
