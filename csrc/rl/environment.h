// Environments: what answers a policy that speaks in turns. A conversation is a prompt and then segments, drawn by the policy or given
// by its environment, in turn:
//
//   prompt │ drawn, up to a text of `stop` or the end of sequence │ given │ drawn │ given │ … │ drawn
//
// Only what is drawn has log-probabilities, entropies and targets (rl::Completion, csrc/rl/rollout.h). A task of one turn is an
// environment whose first step is its last; where a phase has no environment, that is what it has.
//
// A conversation lies within one step of the trainer, and a run that was killed repeats that step from its seeds: so what an environment
// answers has to be a function of the example, the seed and what was said, and nothing of it is saved.
#pragma once
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "csrc/data/example.h"
#include "csrc/data/tokenizer.h"
#include "csrc/field.h"

namespace isentrope::rl {

// What an environment answers to a turn.
struct Reply {
  std::string text = {};  // given behind the turn; may be empty
  bool done = false;      // the conversation is over: nothing is given any more
  bool error = false;     // the turn was none that the environment knows, or the environment failed
};

using EnvironmentScores = std::map<std::string, double>;

// The environment's side of one conversation. `scores`, by name, are those of what was said so far: rewards of kind environment take
// the last, and what a turn adds to one is the turn's own reward.
class Episode {
 public:
  virtual ~Episode() = default;
  virtual Reply step(const std::string& text) = 0;
  EnvironmentScores scores;
};

class Environment {
 public:
  virtual ~Environment() = default;
  // The side of a conversation about the example. Called from several threads at a time. seed: of its draws, the same for all
  // conversations about a prompt. prompt, where it is not null: becomes the text that the conversation begins with, and is left alone
  // where that is the example's own prompt.
  virtual std::unique_ptr<Episode> reset(const data::Example& example, uint64_t seed, std::string* prompt) const = 0;
  // texts[i]: the last turn of episode i, without an end of sequence. One answer each.
  virtual std::vector<Reply> step(std::span<Episode* const> episodes, std::span<const std::string> texts) const {
    std::vector<Reply> replies;
    for (size_t i = 0; i < episodes.size(); ++i) replies.push_back(episodes[i]->step(texts[i]));
    return replies;
  }
};

// What every kind of environment has among its keys.
struct ConversationConfig {
  std::vector<std::string> stop = {"\n"};
  int64_t turns = 8;
  int64_t turn_tokens = 0;
  int64_t tokens = 0;
  std::string at_limit = "truncate";

  template <class Visitor>
  void visit(Visitor& v) {
    v("stop", stop, "Texts that end a turn of the policy, beside the end of sequence.");
    v("turns", turns, "Most turns of the policy.", between(1, 4096));
    v("turn_tokens", turn_tokens, "Most tokens of a turn of the policy; 0 for any.", at_least(0));
    v("tokens", tokens,
      "Most tokens behind the prompt, drawn and given; 0 for what the context leaves. rollout.max_new_tokens bounds "
      "those drawn.",
      at_least(0));
    v("at_limit", at_limit,
      "A conversation at one of these limits: truncate, it counts as cut; end, it counts as finished, with the scores "
      "that it has; penalise, the same, and its score `limit` is -1, else 0.",
      one_of({"truncate", "end", "penalise"}));
  }
};

// What rollout() needs to hold conversations.
struct Conversing {
  std::shared_ptr<const Environment> environment;
  ConversationConfig limits;
  data::Tokenizer tokenizer;
  // Of a text that is given behind the token `last`. Throws std::runtime_error that shows it where the tokenizer cannot write it.
  std::vector<int64_t> tokens_of(const std::string& text, int64_t last) const;
};

}  // namespace isentrope::rl
