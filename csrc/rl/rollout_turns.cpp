#include <algorithm>
#include <stdexcept>
#include <string>

#include "csrc/rl/conversation.h"
#include "csrc/rl/rollout_worker.h"

namespace isentrope::rl {

void RolloutWorker::begin_conversation(Sequence& s) const {
  const int64_t prompt = s.leaf.completion.prompt;
  s.episode = job_.sampling.conversing->environment->reset(job_.examples[prompt], conversation_seed(job_.key, prompt),
                                                           /*prompt=*/nullptr);
}

void RolloutWorker::go_on(Sequence& s) const {
  const Completion& before = job_.begun[job_.first_tree[s.leaf.completion.prompt] + s.leaf.completion.sample];
  Completion& c = s.leaf.completion;
  c.begin = std::ssize(before.tokens);
  c.tokens = before.tokens, c.logprob = before.logprob, c.entropy = before.entropy;
  c.sum_p2 = before.sum_p2, c.sampling_logprob = before.sampling_logprob, c.turns = before.turns;
  data::Stream mix(s.id, data::Purpose::rollout, static_cast<uint64_t>(c.begin), /*b=*/2);
  s.id = (uint64_t{mix.bits()} << 32 | mix.bits()) | uint64_t{1} << 63;  // no number of a sample
  s.stream = stream(c.prompt, s.id);
  const Conversing& with = *job_.sampling.conversing;
  int64_t begin = 0;
  for (const Exchange& turn : c.turns) {
    Episode* const episode = s.episode.get();
    std::vector<int64_t> said(c.tokens.begin() + begin, c.tokens.begin() + turn.end);
    if (with.tokenizer.ends(said.back())) said.pop_back();
    const std::string text = with.tokenizer.decode(said);
    with.environment->step({&episode, 1}, {&text, 1});
    begin = turn.end;
  }
}

void RolloutWorker::end_turn(Sequence& s) {
  Completion& c = s.leaf.completion;
  const ConversationConfig& limits = job_.sampling.conversing->limits;
  const int64_t most = job_.sampling.max_new_tokens, drawn = std::ssize(c.tokens);
  s.asks = c.stopped;
  if (c.stopped) return;
  if (c.size() >= s.limit || (most > 0 && drawn >= most) ||
      (limits.turn_tokens > 0 && drawn - turn_of(c) >= limits.turn_tokens))
    end_conversation(s, /*at_limit=*/true);
}

bool RolloutWorker::converse() {
  const Conversing& with = *job_.sampling.conversing;
  std::vector<Sequence*> asking;
  std::vector<Episode*> episodes;
  std::vector<std::string> texts;
  for (const Owned& s : running_) {
    if (!s->asks) continue;
    const Completion& c = s->leaf.completion;
    std::vector<int64_t> turn(c.tokens.begin() + turn_of(c), c.tokens.end());
    if (with.tokenizer.ends(turn.back())) turn.pop_back();
    asking.push_back(s.get());
    episodes.push_back(s->episode.get());
    texts.push_back(with.tokenizer.decode(turn));
  }
  if (asking.empty()) return false;
  const std::vector<Reply> replies = with.environment->step(episodes, texts);
  if (replies.size() != asking.size())
    throw std::runtime_error("environment: " + std::to_string(replies.size()) + " answers to " +
                             std::to_string(asking.size()) + " turns; wanted one each");
  std::vector<std::pair<Sequence*, int64_t>> go_on;  // and the first of their tokens that the cache has not
  bool ended = false;
  for (size_t i = 0; i < asking.size(); ++i) {
    const int64_t from = position(*asking[i]);
    if (answered(*asking[i], replies[i]))
      go_on.emplace_back(asking[i], from);
    else
      ended = true;
  }
  // What was said last and what was given, but for the very last token, whose logits the next step asks for. Pages first: who gives
  // its own up is fed when it is its turn again.
  for (const auto& [s, from] : go_on)
    if (s->table) make_room(*s);
  std::vector<model::DecodeRow> rows;
  const auto flush = [&] {
    if (!rows.empty()) step(rows, std::ssize(rows));
    rows.clear();
  };
  for (const auto& [s, from] : go_on) {
    if (!s->table) continue;
    const std::vector<int64_t> said = s->leaf.completion.said();
    const int64_t length = std::ssize(prompt_of(*s));
    for (int64_t t = from; t < position(*s); ++t) {
      rows.push_back({said[t - length], t, *s->table});
      if (std::ssize(rows) == prompt_rows_) flush();
    }
  }
  flush();
  std::erase_if(running_, [](const auto& s) { return s == nullptr; });
  return ended;
}

bool RolloutWorker::answered(Sequence& s, const Reply& reply) {
  const Conversing& with = *job_.sampling.conversing;
  Completion& c = s.leaf.completion;
  s.asks = false;
  c.turns.push_back({.end = std::ssize(c.tokens), .scores = s.episode->scores, .error = reply.error});
  bool limit = false;
  if (!reply.done) {
    std::vector<int64_t> given = with.tokens_of(reply.text, c.tokens.back());
    const int64_t most = job_.sampling.max_new_tokens;
    limit = std::ssize(c.turns) >= with.limits.turns || c.size() + std::ssize(given) >= s.limit ||
            (most > 0 && std::ssize(c.tokens) >= most);
    if (!limit) {
      c.stopped = false;
      c.turns.back().given = std::move(given);
      return true;
    }
  }
  end_conversation(s, limit);
  return false;
}

void RolloutWorker::end_conversation(Sequence& s, bool at_limit) {
  Completion& c = s.leaf.completion;
  const std::string& then = job_.sampling.conversing->limits.at_limit;
  c.at_limit = at_limit;
  c.stopped = !at_limit || then != "truncate";
  c.scores = s.episode->scores;
  c.scores["limit"] = at_limit && then == "penalise" ? -1 : 0;
  job_.trees[job_.first_tree[c.prompt] + c.sample].push_back(std::move(s.leaf));
  remove(s);
}

}  // namespace isentrope::rl
