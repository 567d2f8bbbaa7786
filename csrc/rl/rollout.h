// Completions drawn from the model in the process. Prompts that a group shares are prefilled once; every sequence holds pages of a
// cache, and its place goes to the next one when it ends; where the cache is full, sequences wait or give their pages up and are
// computed again later. None of this shows in what is drawn. On request sequences branch where the policy hesitates.
#pragma once
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "csrc/data/example.h"
#include "csrc/field.h"
#include "csrc/model/decoder.h"
#include "csrc/model/prune.h"
#include "csrc/rl/peers.h"

namespace isentrope::rl {

class TextRules;
struct Conversing;

struct SamplingConfig {
  double temperature = 1.0;
  int64_t top_k = 0;
  double top_p = 1.0;
  double min_p = 0;
  double repetition_penalty = 1.0;
  int64_t max_new_tokens = 0;
  int64_t min_new_tokens = 0;
  std::vector<std::string> stop = {}, bad_words = {};
  bool sum_p2 = false;                          // draw Completion::sum_p2 too; no key: methods ask for it
  std::shared_ptr<const TextRules> rules = {};  // what these are in tokens: with_rules() of csrc/rl/text_rules.h
  // Where the policy speaks with an environment (csrc/rl/environment.h); stop then ends its turns. No key: the phase's environment.
  std::shared_ptr<const Conversing> conversing = {};
  // How prompts are pruned, with a layer (model::with_layer); no key: that of an evaluation, or a word of sample.
  std::optional<model::PruneConfig> prune = {};
  // Of each prompt [P, C] float, what its first P tokens, which are kHidden, are embedded as; none: no prompt has any.
  std::vector<at::Tensor> embeddings = {};

  // The keys that keep the policy from drawing what it would, as they are set.
  std::vector<std::string> off_policy() const;
  // Whether tokens may be drawn from another distribution than the policy's own: by these keys, or min_new_tokens.
  bool cuts() const;

  template <class Visitor>
  void visit(Visitor& v) {
    v("temperature", temperature, "Logits are divided by it before sampling; 0 takes the likeliest token.",
      between(0, 100));
    v("top_k", top_k, "Sample among the k likeliest tokens; 0 for all.", at_least(0));
    v("top_p", top_p, "Sample among the fewest tokens whose probability reaches it; 1 for all.", between(0, 1));
    v("min_p", min_p,
      "Do not sample tokens with less than this share of the likeliest one's probability, after top_k and top_p; 0 for "
      "all.",
      between(0, 1));
    v("repetition_penalty", repetition_penalty,
      "Before sampling, logits of tokens that the prompt or the completion holds are divided by it, or multiplied "
      "where "
      "they "
      "are below 0 (CTRL); 1 changes nothing.",
      above_to(0, 100));
    v("max_new_tokens", max_new_tokens, "Longest completion in tokens; 0 for what the context leaves.", at_least(0));
    v("min_new_tokens", min_new_tokens,
      "Tokens of a completion before which no stop token is drawn and no text of stop ends it.", at_least(0));
    v("stop", stop,
      "Texts: a completion ends with the token that completes one of them, and counts as finished; the text stays in "
      "it.");
    v("bad_words", bad_words,
      "Texts whose tokens are never drawn one behind the other, with a space in front and without.");
  }
};

struct CacheConfig {
  int64_t cache_tokens = 0;
  std::string dtype = "model";

  template <class Visitor>
  void visit(Visitor& v) {
    v("cache_tokens", cache_tokens,
      "Tokens that the cache of keys and values holds, of all threads together; sequences that do not fit wait, or are "
      "computed "
      "again later. 0: as many as are generated at a time.",
      at_least(0));
    v("dtype", dtype,
      "Weights and cache of rollouts: the model's own type, or bfloat16, which takes half the memory of float32.",
      one_of({"model", "bfloat16"}));
  }
};

// Where sequences branch. H_t is the entropy of the distribution that token t was drawn from, the window of t its mean over
// t … t + window − 1. When that is at least `threshold`, another sequence goes on from the tokens before t. It is on trial until
// its own window of t is known, and is dropped unless it would have branched there too: two such sequences are interchangeable,
// and what follows from either stands for the tokens before them without bias (csrc/rl/tree.h).
struct Branching {
  double threshold;        // nats
  int64_t window = 4;      // also the least distance of two branches of a sequence
  int64_t sequences = 16;  // most of a prompt, first samples included; its samples share what is above their number
  int64_t tokens = 0;      // most that the branches of a prompt may draw, each counted as its longest; 0: any number
};

// A turn of a conversation that was answered: the policy drew the completion's tokens up to `end`, and the environment gave its own behind
// them, which are not drawn: they have no log-probability, no entropy and no target.
struct Exchange {
  int64_t end;                           // of the completion's tokens
  std::vector<int64_t> given = {};       // none where the conversation was over
  std::map<std::string, double> scores;  // by the environment, after the turn
  bool error = false;                    // the environment did not know what the turn meant
};

struct Completion {
  int64_t prompt;       // index into the prompts of the call
  int64_t sample = 0;   // of the prompt: the tree that it belongs to
  int64_t parent = -1;  // index into the result of the completion that it branched off; −1: the first of its tree
  int64_t begin = 0;    // first token of its own; those before are its parent's, or of a conversation that went on
  std::vector<int64_t>
      tokens;  // drawn, from the prompt on; the stop token included, where one was drawn. Of all turns, one behind the other
  // Of each token under softmax(logits / temperature), the policy's own distribution: before repetition_penalty changes it, and
  // bad_words, min_new_tokens, top_k, top_p and min_p cut it.
  std::vector<float> logprob;
  std::vector<float> entropy;      // of that same distribution, in nats
  std::vector<float> sum_p2 = {};  // Σ p² of it; of SamplingConfig::sum_p2 alone
  // Of each token under the distribution that it was drawn from, after all of that; of SamplingConfig::cuts() alone.
  std::vector<float> sampling_logprob = {};
  bool stopped = false;  // it ends in a stop token, or in what completes a text of stop; false: cut at the length limit
  std::vector<Exchange> turns = {};           // of a conversation, those that the environment answered
  std::map<std::string, double> scores = {};  // of a conversation, the environment's last
  bool at_limit = false;                      // of a conversation: a limit of environment ended it
  std::vector<int64_t> kept = {};  // of a prompt that was pruned: the places of the tokens that all layers read

  // Tokens behind the prompt, drawn and given.
  int64_t size() const;
  // Those tokens, in the order in which they were said. places, where asked for: of each drawn one its place among them.
  std::vector<int64_t> said(std::vector<int64_t>* places = nullptr) const;
};

// What fixes the draws of a call. Sequence (prompt i, sample j) draws from the stream (seed, purpose rollout or evaluation, step,
// first_prompt + i, j), a branch from one that is made of its parent's and its place: its tokens do not depend on what else is
// in the batch, on threads or on the cache, beyond rounding of the logits.
struct RolloutKey {
  uint64_t seed = 0;
  int64_t step = 0;
  int64_t first_prompt = 0;
  bool evaluation = false;
};

// What a call did. All but `preempted`, `recomputed` and `fed` are functions of its arguments alone.
struct RolloutCounts {
  int64_t drawn = 0;       // tokens, those of branches that were dropped included
  int64_t branches = 0;    // that went on after their trial
  int64_t dropped = 0;     // after their trial
  int64_t preempted = 0;   // times that a sequence gave its pages up
  int64_t recomputed = 0;  // tokens that were fed again therefore, or since a conversation goes on
  int64_t fed = 0;         // to the model, of prompts and all sequences; depends on how samples are shared out too

  RolloutCounts& operator+=(const RolloutCounts& other) {
    drawn += other.drawn, branches += other.branches, dropped += other.dropped;
    preempted += other.preempted, recomputed += other.recomputed, fed += other.fed;
    return *this;
  }
};

// samples[i] completions for prompt i with their branches, ordered by prompt, sample, and within a tree parents before children.
// peers: who draw them together, and call this alike: each takes samples as it has room for them, and gets those alone that it drew, with
// parents and counts of its own; gather() of csrc/rl/shared_rollout.h gives all to all.
// examples: where sampling.conversing is given, what each prompt is about. Every turn that ends is answered by the environment, and the
// conversation goes on in the same pages of the cache.
// begun: of conversations, what was said before of each sample, one prompt's behind the other, each up to a turn that was answered and
// not the last: it goes on from there, with draws of its own, under the limits of the whole; what comes out has all of it, and begin says
// where it went on. The environment hears the turns again. A prompt may then have no sample. Empty: all begin.
// Throws where a prompt is empty, holds a token outside the vocabulary, or leaves no room in the context, where the cache
// cannot hold one sequence, where sampling has texts and no rules, and where min_new_tokens and bad_words leave no token to draw; where
// prompts are to be pruned and the model cannot, or sequences are to branch.
std::vector<Completion> rollout(const model::Decoder& decoder, const std::vector<std::vector<int64_t>>& prompts,
                                const std::vector<int64_t>& samples, const SamplingConfig& sampling,
                                const std::vector<int64_t>& stop_tokens, const RolloutKey& key,
                                const CacheConfig& cache = {}, const std::optional<Branching>& branching = {},
                                RolloutCounts* counts = nullptr, const Peers& peers = Peers(),
                                std::span<const data::Example> examples = {}, std::span<const Completion> begun = {});
// The same number of samples of each.
std::vector<Completion> rollout(const model::Decoder& decoder, const std::vector<std::vector<int64_t>>& prompts,
                                int64_t samples, const SamplingConfig& sampling,
                                const std::vector<int64_t>& stop_tokens, const RolloutKey& key,
                                const CacheConfig& cache = {});

}  // namespace isentrope::rl
