#include "csrc/rl/rollout_worker.h"

#include <algorithm>
#include <utility>

namespace isentrope::rl {

using model::DecodeRow;

RolloutWorker::RolloutWorker(RolloutJob& job, int64_t most, int64_t pages, RolloutCounts& counts)
    : job_(job),
      most_(most),
      prompt_rows_(job_.model.preferred_rows()),
      reads_prefix_(job_.model.reads_prefix()),
      // A branch leaves `window` tokens behind the last that its parent was fed.
      session_(job_.model.session(pages, std::max({most, prompt_rows_, reads_prefix_ ? longest_prompt() : 0}),
                                  job_.branching ? job_.branching->window + 1 : 1, job_.pruning, job_.later_pages)),
      table_(session_->pages()),
      sampler_(job_.sampling, job_.vocabulary),
      cuts_(job_.sampling.cuts()),
      counts_(counts) {}

int64_t RolloutWorker::longest_prompt() const {
  int64_t longest = 0;
  for (const auto& prompt : job_.prompts) longest = std::max(longest, std::ssize(prompt));
  return longest;
}

void RolloutWorker::run() {
  std::vector<DecodeRow> rows;
  std::vector<Sequence*> fed;
  while (true) {
    admit();
    if (converses() && converse()) continue;  // there is room for others
    rows.clear();
    fed.clear();
    // Sequences that stood still come back beyond the places: the last take turns then.
    for (size_t i = 0; i < running_.size() && static_cast<int64_t>(fed.size()) < most_; ++i) {
      Sequence& s = *running_[i];
      // A branch in the place of the first token behind a prompt of one feeds that again: a prefix, which is a step of its own.
      const bool first = reads_prefix_ && position(s) == 0;
      if (s.paused || (first && !rows.empty()) || !make_room(s)) continue;
      rows.push_back({token_at(s, position(s)), position(s), *s.table});
      fed.push_back(&s);
      if (first) break;
    }
    if (fed.empty()) {
      if (running_.empty() && waiting_.empty() && !more_samples()) return;
      give_up_pages();  // those that stand still hold what the next one needs
      continue;
    }
    const model::Logits logits = step(rows, 0, reads_prefix_ && rows.front().position == 0);
    for (size_t i = 0; i < fed.size(); ++i) extend(*fed[i], logits.row(i));
    std::erase_if(running_, [](const auto& s) { return s == nullptr; });
  }
}

// ---- places and pages ------------------------------------------------------------------------------------------

void RolloutWorker::admit() {
  while (std::count_if(running_.begin(), running_.end(), [](const Owned& s) { return !s->paused; }) < most_) {
    const auto next = std::find_if(waiting_.begin(), waiting_.end(), [](const Owned& s) { return !s->paused; });
    if (next == waiting_.end()) {
      if (!more_samples() || !begin_sample()) return;
      continue;
    }
    if (!restore(**next)) return;
    running_.push_back(std::move(*next));
    waiting_.erase(next);
  }
}

bool RolloutWorker::restore(Sequence& s) {
  const int64_t last = position(s);
  if (s.table) return true;
  if (!has_room(s.leaf.completion.prompt, last + 1)) return false;
  s.table = table_.open();
  feed(s, *s.table, last, /*logits=*/false);
  counts_.recomputed += last;
  return true;
}

model::Logits RolloutWorker::feed(const Sequence& s, int64_t table, int64_t count, bool logits) {
  const int64_t prompt = s.leaf.completion.prompt, prefix = job_.prefix(prompt);
  const bool in_one = prefix > 0 || job_.pruning;
  if (job_.pruning) table_.shorten(table, job_.dropped(prompt));
  table_.extend(table, count);
  model::Logits out{};
  std::vector<DecodeRow> rows;
  const int64_t whole = reads_prefix_ ? std::ssize(prompt_of(s)) : 0;
  if (in_one) {
    out = session_->prefill(prompt_of(s), table, prefix > 0 ? job_.sampling.embeddings[prompt] : at::Tensor(),
                            logits ? &prompt_kept_ : nullptr);
    counts_.fed += std::ssize(prompt_of(s));
  }
  for (int64_t t = in_one ? std::ssize(prompt_of(s)) : 0; t < count; ++t) {
    rows.push_back({token_at(s, t), t, table});
    const bool full = static_cast<int64_t>(rows.size()) >= prompt_rows_;
    if (t + 1 < count && (t < whole ? t + 1 < whole : !full)) continue;
    const bool last = logits && t + 1 == count;
    out = step(rows, static_cast<int64_t>(rows.size()) - last, t < whole);
    rows.clear();
  }
  return out;
}

model::Logits RolloutWorker::step(std::span<const DecodeRow> rows, int64_t logits_from, bool prefix) {
  counts_.fed += std::ssize(rows);
  return session_->step(rows, logits_from, prefix);
}

bool RolloutWorker::make_room(Sequence& s) {
  while (!table_.extend(*s.table, position(s) + 1)) {
    give_up_pages();
    if (!s.table) return false;
  }
  return true;
}

void RolloutWorker::give_up_pages() {
  if (drop_prompt()) return;
  for (auto s = waiting_.rbegin(); s != waiting_.rend(); ++s)
    if ((*s)->table) return give_up(**s);
  if (running_.empty()) return;
  give_up(*running_.back());
  waiting_.push_front(std::move(running_.back()));
  running_.pop_back();
}

void RolloutWorker::give_up(Sequence& s) {
  table_.close(*s.table);
  s.table.reset();
  ++counts_.preempted;
}

bool RolloutWorker::drop_prompt() {
  if (!prompt_table_) return false;
  table_.close(*prompt_table_);
  prompt_table_.reset();
  return true;
}

// ---- samples ---------------------------------------------------------------------------------------------------

bool RolloutWorker::more_samples() {
  while (sample_ == last_sample_) {
    drop_prompt();
    const auto task = static_cast<size_t>(job_.next_task());
    if (task >= job_.tasks.size()) return false;
    prompt_ = job_.tasks[task].prompt;
    sample_ = job_.tasks[task].first_sample;
    last_sample_ = job_.tasks[task].last_sample;
  }
  return true;
}

bool RolloutWorker::begin_sample() {
  if (!job_.begun.empty()) {  // it is fed like one that gave its pages up
    waiting_.push_back(first_of_tree(prompt_, sample_++));
    go_on(*waiting_.back());
    return true;
  }
  const auto length = static_cast<int64_t>(job_.prompts[prompt_].size());
  // Of its own it needs the page of its first token, and a copy of the last one of its prompt.
  if (prompt_table_ ? !table_.has_free(2, 2) : !has_room(prompt_, length + 1)) return false;
  auto s = first_of_tree(prompt_, sample_);
  if (!prompt_table_) {
    prompt_table_ = table_.open();
    const model::Logits logits = feed(*s, *prompt_table_, length, /*logits=*/true);
    prompt_logits_.assign(logits.data, logits.data + job_.vocabulary);
  }
  ++sample_;
  s->table = table_.fork(*prompt_table_, length);
  s->leaf.completion.kept = prompt_kept_;
  running_.push_back(std::move(s));
  extend(*running_.back(), prompt_logits_.data());
  std::erase_if(running_, [](const auto& r) { return r == nullptr; });
  return true;
}

data::Stream RolloutWorker::stream(int64_t prompt, uint64_t id) const {
  const RolloutKey& key = job_.key;
  return {key.seed, key.evaluation ? data::Purpose::evaluation : data::Purpose::rollout,
          static_cast<uint64_t>(key.step), static_cast<uint64_t>(key.first_prompt + prompt), id};
}

RolloutWorker::Owned RolloutWorker::first_of_tree(int64_t prompt, int64_t sample) const {
  auto s = std::make_unique<Sequence>(Sequence{.leaf = {},
                                               .id = static_cast<uint64_t>(sample),
                                               .stream = stream(prompt, sample),
                                               .limit = job_.limit(prompt),
                                               .branches = 0,
                                               .spare = 0,
                                               .table = {}});
  s->leaf.completion.prompt = prompt;
  s->leaf.completion.sample = sample;
  if (converses()) begin_conversation(*s);
  if (job_.branching) {
    const int64_t samples = job_.samples[prompt];
    const auto share = [&](int64_t x) {
      return std::max<int64_t>(x, 0) / samples + (sample < std::max<int64_t>(x, 0) % samples);
    };
    s->branches = share(job_.branching->sequences - samples);
    s->spare = job_.branching->tokens > 0 ? share(job_.branching->tokens) : s->branches * s->limit;
  }
  return s;
}

}  // namespace isentrope::rl
