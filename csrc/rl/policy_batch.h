// From the groups that a step keeps to the batches of its updates.
#pragma once
#include <cstdint>
#include <vector>

#include "csrc/data/batch.h"
#include "csrc/rl/advantage.h"
#include "csrc/rl/ares.h"
#include "csrc/rl/rollout.h"

namespace isentrope::rl {

// What a step learns from: prompts with their completions, one group behind the other.
struct Kept {
  std::vector<std::vector<int64_t>> prompts;
  Groups groups{0};                     // of completions
  std::vector<Completion> completions;  // parents by their place here
  std::vector<double> rewards;          // of each completion, penalties included
  std::vector<bool> right;              // of each completion

  int64_t size() const { return static_cast<int64_t>(prompts.size()); }
};

// Adds what ARES says of the completions, for a right answer of the first reward's weight, to their rewards.
AresStep shape(Ares& ares, double weight, Kept& kept);

// A batch for each of `updates` updates, on its own share of the groups. ares: of all completions kept, where there is any.
std::vector<data::Batch> policy_batches(const Kept& kept, int64_t updates, const AdvantageConfig& advantage,
                                        const AresStep& ares, bool mask_truncated);

}  // namespace isentrope::rl
