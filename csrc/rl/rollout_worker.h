// What one thread of a rollout does. csrc/rl/rollout.h says what comes out of it. rollout_worker.cpp: which sequence runs, and the
// pages of the cache; rollout_branch.cpp: tokens, and where sequences branch; rollout_turns.cpp: conversations.
#pragma once
#include <algorithm>
#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <vector>

#include "csrc/data/random.h"
#include "csrc/model/decode.h"
#include "csrc/rl/environment.h"
#include "csrc/rl/rollout.h"
#include "csrc/rl/sample.h"

namespace isentrope::rl {

// A completion and the tokens at which it and its ancestors branched off: its address in its tree.
struct Leaf {
  Completion completion;
  std::vector<int64_t> path;
};

// What all workers of one call share. A task is a run of samples of one prompt.
struct RolloutJob {
  struct Task {
    int64_t prompt, first_sample, last_sample;
  };
  const model::DecodeModel& model;
  const model::Pruning* pruning;  // of prompts; null: none
  int64_t later_pages;            // of a worker, for the layers that read kept tokens alone
  const std::vector<std::vector<int64_t>>& prompts;
  const std::vector<int64_t>& samples;
  int64_t vocabulary, context;
  const SamplingConfig& sampling;
  const std::vector<int64_t>& stop_tokens;
  std::vector<bool> stops;  // [V]
  const RolloutKey& key;
  const std::optional<Branching>& branching;
  std::span<const data::Example> examples;  // [prompts] of conversations
  std::span<const Completion> begun;        // [samples of all prompts] of conversations that go on; else empty
  std::vector<Task> tasks;
  std::vector<int64_t> first_tree;       // [prompts]: the index of its first sample in trees
  std::vector<std::vector<Leaf>> trees;  // [samples of all prompts], each written by one worker
  std::function<int64_t()> next_task;    // of all peers; a place behind the last where none is left

  // Tokens of a prompt that stand for embeddings, and those that later layers do not read.
  int64_t prefix(int64_t prompt) const { return sampling.embeddings.empty() ? 0 : sampling.embeddings[prompt].size(0); }
  int64_t dropped(int64_t prompt) const {
    return pruning ? pruning->dropped(std::ssize(prompts[prompt]), prefix(prompt)) : 0;
  }
  int64_t limit(int64_t prompt) const {  // most tokens of a completion; of a conversation with those that are given
    const int64_t room = context - static_cast<int64_t>(prompts[prompt].size());
    const int64_t most = sampling.conversing ? sampling.conversing->limits.tokens : sampling.max_new_tokens;
    return most > 0 ? std::min(most, room) : room;
  }
};

// A sequence that is being written. It runs, or waits for a place or for pages.
struct Sequence {
  Leaf leaf;
  uint64_t id;  // of its stream
  data::Stream stream;
  int64_t limit;                 // most tokens of the completion
  int64_t branches, spare;       // that may still leave it and what leaves it, and the tokens that they may draw
  int64_t next_branch = 0;       // first token at which one may
  int64_t trial_from = 0;        // of one on trial: its parent's next_branch when it left
  bool on_trial = false;         // a branch whose window is not known yet
  Sequence* parent = nullptr;    // of one on trial, where the parent stands still
  bool paused = false;           // stands still: a branch of it is on trial
  std::optional<int64_t> table;  // its number in the page table, where it has pages
  std::unique_ptr<Episode> episode = {};  // of a conversation
  bool asks = false;                      // its turn has ended: the environment is to answer
};

class RolloutWorker {
 public:
  // At most `most` sequences run at a time.
  RolloutWorker(RolloutJob& job, int64_t most, int64_t pages, RolloutCounts& counts);
  void run();

 private:
  using Owned = std::unique_ptr<Sequence>;

  const std::vector<int64_t>& prompt_of(const Sequence& s) const { return job_.prompts[s.leaf.completion.prompt]; }
  // The last of its tokens, which is fed next, and what it is.
  int64_t position(const Sequence& s) const {
    return static_cast<int64_t>(prompt_of(s).size()) + s.leaf.completion.size() - 1;
  }
  int64_t token_at(const Sequence& s, int64_t position) const {
    const auto& prompt = prompt_of(s);
    const auto length = static_cast<int64_t>(prompt.size());
    if (position < length) return prompt[position];
    const Completion& c = s.leaf.completion;
    if (position == this->position(s))
      return c.turns.empty() || std::ssize(c.tokens) > c.turns.back().end || c.turns.back().given.empty()
                 ? c.tokens.back()
                 : c.turns.back().given.back();
    return c.turns.empty() ? c.tokens[position - length] : c.said()[position - length];
  }

  // ---- places and pages: rollout_worker.cpp
  // Sequences that waited go first, in their order, then new samples.
  void admit();
  // Gives a waiting sequence its pages; false where too few are free.
  bool restore(Sequence& s);
  // Whether as many pages are free as so many tokens of a sequence take.
  bool has_room(int64_t prompt, int64_t tokens) const {
    return table_.has_free(model::pages_of(tokens), model::pages_of(tokens - job_.dropped(prompt)));
  }
  // Feeds the first `count` tokens of a sequence that has none in the cache yet. → the logits after the last of them.
  model::Logits feed(const Sequence& s, int64_t table, int64_t count, bool logits);
  model::Logits step(std::span<const model::DecodeRow> rows, int64_t logits_from, bool prefix = false);
  // The page that the next token of a running sequence goes to. False where there is none and it gave up its own.
  bool make_room(Sequence& s);
  // Frees pages: those of the prompt in hand, else of the last that waits, else of the last that was admitted, which then waits.
  void give_up_pages();
  void give_up(Sequence& s);
  bool drop_prompt();
  int64_t longest_prompt() const;

  // ---- samples: rollout_worker.cpp
  bool more_samples();
  // The next sample of the task in hand; false where too few pages are free. Its prompt goes through the model once.
  bool begin_sample();
  data::Stream stream(int64_t prompt, uint64_t id) const;
  Owned first_of_tree(int64_t prompt, int64_t sample) const;

  // ---- tokens and branches: rollout_branch.cpp
  // Draws the next token of a running sequence, and what follows from it.
  void extend(Sequence& s, const float* logits);
  // The draw alone. early: min_new_tokens holds the end back.
  Draw draw(Sequence& s, const float* logits, bool early);
  // Whether the window that begins at token t is known and as high as to branch.
  bool hesitates(const Completion& c, int64_t t) const;
  // A running sequence whose last window says so gets a branch on trial, and stands still meanwhile, so that what may leave it
  // next is known.
  void try_branch(Sequence& s, bool ended);
  // Whether the branch goes on: whether it, in its parent's place, would have been left at this token and at none before, of
  // which windows also hold tokens of its own. It then shares with its parent what may still leave either.
  bool end_trial(Sequence& s);
  void remove(Sequence& s);

  // ---- conversations: rollout_turns.cpp
  bool converses() const { return job_.sampling.conversing != nullptr; }
  // Tokens of a conversation's turn in hand begin here.
  static int64_t turn_of(const Completion& c) { return c.turns.empty() ? 0 : c.turns.back().end; }
  void begin_conversation(Sequence& s) const;
  // Puts the sequence behind what was said before, which its environment hears; it has no pages yet.
  void go_on(Sequence& s) const;
  // After a token was drawn: the turn may be over, or the conversation at a limit.
  void end_turn(Sequence& s);
  // The environment answers those whose turn has ended. Whether a conversation ended.
  bool converse();
  bool answered(Sequence& s, const Reply& reply);  // whether the conversation goes on
  void end_conversation(Sequence& s, bool at_limit);

  RolloutJob& job_;
  int64_t most_, prompt_rows_;
  bool reads_prefix_;  // a prompt goes in one step then
  std::unique_ptr<model::DecodeSession> session_;
  model::PageTable& table_;
  Sampler sampler_;
  const bool cuts_;                          // SamplingConfig::cuts()
  std::vector<int64_t> before_, forbidden_;  // of the draw in hand: prompt and completion, tokens that are not drawn
  RolloutCounts& counts_;
  std::vector<Owned> running_;  // in the order of their admission
  std::deque<Owned> waiting_;
  int64_t prompt_ = 0, sample_ = 0,
          last_sample_ = 0;              // the task in hand: samples sample_ … last_sample_ − 1 have not begun
  std::optional<int64_t> prompt_table_;  // where its prompt is in the cache
  std::vector<float> prompt_logits_;     // [V], after the prompt's last token
  std::vector<int64_t> prompt_kept_;     // Completion::kept
};

}  // namespace isentrope::rl
