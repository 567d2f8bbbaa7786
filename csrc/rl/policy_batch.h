// From the groups that a step keeps to the batches of its updates: what methods (csrc/methods) see of them and do to them.
#pragma once
#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "csrc/data/batch.h"
#include "csrc/data/example.h"
#include "csrc/methods/chain.h"
#include "csrc/methods/registry.h"
#include "csrc/rl/rollout.h"

namespace isentrope::rl {

using methods::Groups;

// What a step learns from: prompts with their completions, one group behind the other.
struct Kept {
  std::vector<std::vector<int64_t>> prompts;
  Groups groups{0};                         // of completions
  std::vector<Completion> completions;      // parents by their place here
  std::vector<double> rewards;              // of each completion
  std::vector<bool> right;                  // of each completion
  std::vector<std::vector<double>> scores;  // [reward][completion], not weighted; NaN where it does not apply
  std::vector<double> weights;              // of each reward
  std::vector<double> greedy;               // [group] reward of the greedy completion, where a method asks for it
  std::vector<data::Example> examples;      // [group], where a second set is drawn for them

  int64_t size() const { return static_cast<int64_t>(prompts.size()); }
};

// As methods see them, with rewards and without advantages. unit, longest: methods::Completions. mask_truncated: completions that
// were cut at the length limit are not learnt from.
methods::Completions completions_of(const Kept& kept, double unit, int64_t longest, bool mask_truncated);

// Advantages [B, T] of c.reward, made by the first of the chain and changed by the others. Where sequences branch, a tree counts in
// its group as one completion, and each token has the return of its place (csrc/rl/tree.h).
void estimate(methods::Completions& c, const Kept& kept, methods::Chain<methods::Advantage>& chain,
              std::map<std::string, double>& stats);

// A batch for each of `updates` updates, on its own share of the groups; all of them once an epoch, in the same order.
std::vector<data::Batch> policy_batches(const Kept& kept, const methods::Completions& c, int64_t updates,
                                        int64_t epochs = 1);

// What of the updates says whether there is something to learn: advantage/zero, the share of learnt tokens whose advantage is 0, and
// entropy/positive, entropy/negative, the mean entropy, when they were drawn, of those whose advantage is above and below 0.
void tell_health(const std::vector<data::Batch>& updates, std::map<std::string, double>& stats);

}  // namespace isentrope::rl
