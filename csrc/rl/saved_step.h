// What is saved of a step (rollout.save_every): its completions with what it made of them.
#pragma once
#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "csrc/data/batch.h"
#include "csrc/rl/policy_batch.h"
#include "csrc/rl/reward.h"
#include "csrc/rl/rollout.h"

namespace isentrope::rl {

// A completion of a step with what the step made of it.
struct SavedRollout {
  int64_t group = 0;  // number of its prompt in the phase's stream of examples, from 0
  std::string prompt;
  Completion completion = {};  // parent: by its place in the group
  bool branches = false;       // whether sequences branch
  double reward = 0;           // what its advantage comes from: the weighted sum of scores, and what methods added
  std::vector<std::pair<std::string, std::optional<double>>> scores = {};  // reward/<name>, not weighted
  std::vector<std::pair<std::string, double>> added =
      {};  // by the methods of that kind; of the groups that are learnt from
  // Mean over its learnt tokens, which differ where sequences branch; none: the loss has no token of it.
  std::optional<double> advantage = {};
  // Of each token, where they differ within the completion; NaN where the loss has none of it.
  std::vector<float> advantages = {};
  int64_t row = -1;  // of the step's updates, one behind the other; −1: nothing is learnt from its group
  std::vector<float> weight = {};  // of each token in its update, where methods weigh tokens; NaN as above
};

struct SavedStep {
  std::vector<SavedRollout> rollouts;

  // Completions begin … end − 1, those of one prompt, before anything of them is moved. group: number of the prompt in the stream.
  void add(int64_t group, const std::string& prompt, const std::vector<Completion>& completions, int64_t begin,
           int64_t end, const Rewards& rewards, bool branches);
  // What the updates, whose rows are the completions kept, have of those that have a row.
  void learnt(const methods::Completions& kept, const std::vector<data::Batch>& updates);
};

// Of rows of updates, [B, T] by the positions that predict them: for each of those rollouts the values of its tokens. updates: as many as
// values, in their order.
void take_rows(const std::vector<data::Batch>& updates, const std::vector<torch::Tensor>& values,
               std::vector<SavedRollout>& rollouts, std::vector<float> SavedRollout::*to);

}  // namespace isentrope::rl
