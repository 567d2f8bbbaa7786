// Log-probabilities of drawn completions under a model that is not the one that drew them.
#pragma once
#include <torch/types.h>

#include <cstdint>

#include "csrc/model/decoder.h"
#include "csrc/rl/peers.h"
#include "csrc/rl/policy_batch.h"

namespace isentrope::rl {

// The policy that rewards measure against, and the most tokens, padding included, that it goes over at once (0: those of an update).
struct Reference {
  model::Decoder model;
  int64_t micro_tokens = 0;
};

// [B, T] float, as methods::Completions has logprob: of softmax(logits / temperature) of the reference, 0 behind a completion's end.
// updates: how many the step has. Each of the peers goes over its share of the completions, and all get all; called by all.
torch::Tensor reference_logprob(const Kept& kept, const Reference& reference, double temperature, int64_t updates,
                                const Peers& peers = Peers());

}  // namespace isentrope::rl
