// Completions drawn from the model in the process: prompts that a group shares are prefilled once, every
// sequence has its place in a KV cache, finished sequences leave the batch.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "csrc/field.h"
#include "csrc/model/decoder.h"

namespace isentrope::rl {

struct SamplingConfig {
  double temperature = 1.0;
  int64_t top_k = 0;
  double top_p = 1.0;
  int64_t max_new_tokens = 0;
  int64_t min_new_tokens = 0;

  template <class Visitor>
  void visit(Visitor& v) {
    v("temperature", temperature, "Logits are divided by it before sampling; 0 takes the likeliest token.",
      at_least(0));
    v("top_k", top_k, "Sample among the k likeliest tokens; 0 for all.", at_least(0));
    v("top_p", top_p, "Sample among the fewest tokens whose probability reaches it; 1 for all.",
      between(0, 1));
    v("max_new_tokens", max_new_tokens, "Longest completion in tokens; 0 for what the context leaves.",
      at_least(0));
    v("min_new_tokens", min_new_tokens, "Tokens of a completion before which no stop token is drawn.",
      at_least(0));
  }
};

struct Completion {
  int64_t prompt;               // index into the prompts of the call
  std::vector<int64_t> tokens;  // the stop token included, where one was drawn
  std::vector<float>
      logprob;  // of each token under softmax(logits / temperature), before min_new_tokens, top-k and top-p cut it
  std::vector<float> entropy;  // of that same distribution, in nats
  bool stopped;                // false: cut at the length limit
};

// What fixes the draws of a call. Sequence (prompt i, sample j) draws from the stream (seed, purpose rollout
// or evaluation, step, first_prompt + i, j): its tokens do not depend on what else is in the batch, beyond
// rounding of the logits.
struct RolloutKey {
  uint64_t seed = 0;
  int64_t step = 0;
  int64_t first_prompt = 0;
  bool evaluation = false;
};

// samples completions for each prompt, ordered by prompt, then sample.
// Throws where a prompt is empty, holds a token outside the vocabulary, or leaves no room in the context.
std::vector<Completion> rollout(const model::Decoder& decoder,
                                const std::vector<std::vector<int64_t>>& prompts, int64_t samples,
                                const SamplingConfig& sampling, const std::vector<int64_t>& stop_tokens,
                                const RolloutKey& key);

}  // namespace isentrope::rl
