// What is made of completions that are conversations (csrc/rl/environment.h), before they are drawn and behind.
#pragma once
#include <cstdint>
#include <map>
#include <string>

#include "csrc/data/example.h"
#include "csrc/data/tokenizer.h"
#include "csrc/rl/environment.h"
#include "csrc/rl/reward.h"
#include "csrc/rl/rollout.h"

namespace isentrope::rl {

// Of the environment's draws in the conversations of a call about prompt i.
uint64_t conversation_seed(const RolloutKey& key, int64_t prompt);

// The example of prompt i as the conversation begins: itself, but with the text that the environment begins with, where it has its own.
data::Example opened(const data::Example& example, const SamplingConfig& sampling, const RolloutKey& key,
                     int64_t prompt);

// What rewards judge: of a conversation all that the policy said, one turn behind the other, and the environment's scores.
Answer answer_of(const Completion& completion, const data::Tokenizer& tokenizer);

// Over conversations: turns/mean and turns/calls, a conversation, those of the policy, and those that a text of the environment follows;
// turns/tokens, drawn a turn; turns/given, tokens a conversation that the environment gave; turns/errors, share of the answered turns
// that it did not know; turns/limit, share of conversations that a limit ended; turns/entropy_before and turns/entropy_after, nats, mean
// entropy of the last and of the first tokens, at most ten, of the turns before and behind a text of the environment.
class TurnTally {
 public:
  void add(const Completion& completion);
  void tell(std::map<std::string, double>& stats) const;  // nothing where none was added

 private:
  double conversations_ = 0, turns_ = 0, drawn_ = 0, answered_ = 0, calls_ = 0, errors_ = 0, given_ = 0, limits_ = 0;
  double before_ = 0, before_tokens_ = 0, after_ = 0, after_tokens_ = 0;  // sums of entropy, nats
};

}  // namespace isentrope::rl
