#include "csrc/rl/rollout.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <atomic>
#include <deque>
#include <memory>
#include <mutex>
#include <optional>
#include <stdexcept>
#include <utility>

#include "csrc/data/random.h"
#include "csrc/model/decode.h"
#include "csrc/rl/sample.h"

namespace isentrope::rl {
namespace {

using model::DecodeRow;

// A completion and the tokens at which it and its ancestors branched off: its address in its tree.
struct Leaf {
  Completion completion;
  std::vector<int64_t> path;
};

// What all workers of one call share. A task is a run of samples of one prompt.
struct Job {
  struct Task {
    int64_t prompt, first_sample, last_sample;
  };
  const model::DecodeModel& model;
  const std::vector<std::vector<int64_t>>& prompts;
  const std::vector<int64_t>& samples;
  int64_t vocabulary, context;
  const SamplingConfig& sampling;
  const std::vector<int64_t>& stop_tokens;
  std::vector<bool> stops;  // [V]
  const RolloutKey& key;
  const std::optional<Branching>& branching;
  std::vector<Task> tasks;
  std::vector<int64_t> first_tree;       // [prompts]: the index of its first sample in trees
  std::vector<std::vector<Leaf>> trees;  // [samples of all prompts], each written by one worker
  std::atomic<size_t> next_task{0};

  int64_t limit(int64_t prompt) const {  // most tokens of a completion
    const int64_t room = context - static_cast<int64_t>(prompts[prompt].size());
    return sampling.max_new_tokens > 0 ? std::min(sampling.max_new_tokens, room) : room;
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
};

class Worker {
 public:
  // At most `most` sequences run at a time.
  Worker(Job& job, int64_t most, int64_t pages, RolloutCounts& counts)
      : job_(job),
        most_(most),
        prompt_rows_(job.model.preferred_rows()),
        session_(job.model.session(pages, std::max(most, prompt_rows_))),
        table_(session_->pages()),
        sampler_(job.sampling, job.vocabulary),
        counts_(counts) {}

  void run() {
    std::vector<DecodeRow> rows;
    std::vector<Sequence*> fed;
    while (true) {
      admit();
      rows.clear();
      fed.clear();
      // Sequences that stood still come back beyond the places: the last take turns then.
      for (size_t i = 0; i < running_.size() && static_cast<int64_t>(fed.size()) < most_; ++i) {
        Sequence& s = *running_[i];
        if (s.paused || !make_room(s)) continue;
        rows.push_back({token_at(s, position(s)), position(s), *s.table});
        fed.push_back(&s);
      }
      if (fed.empty()) {
        if (running_.empty() && waiting_.empty() && !more_samples()) return;
        give_up_pages();  // those that stand still hold what the next one needs
        continue;
      }
      const model::Logits logits = session_->step(rows, 0);
      for (size_t i = 0; i < fed.size(); ++i) extend(*fed[i], logits.row(i));
      std::erase_if(running_, [](const auto& s) { return s == nullptr; });
    }
  }

 private:
  using Owned = std::unique_ptr<Sequence>;

  const std::vector<int64_t>& prompt_of(const Sequence& s) const { return job_.prompts[s.leaf.completion.prompt]; }
  // The last of its tokens, which is fed next, and what it is.
  int64_t position(const Sequence& s) const {
    return static_cast<int64_t>(prompt_of(s).size() + s.leaf.completion.tokens.size()) - 1;
  }
  int64_t token_at(const Sequence& s, int64_t position) const {
    const auto& prompt = prompt_of(s);
    const auto length = static_cast<int64_t>(prompt.size());
    return position < length ? prompt[position] : s.leaf.completion.tokens[position - length];
  }

  // ---- places and pages ------------------------------------------------------------------------------------------

  // Sequences that waited go first, in their order, then new samples.
  void admit() {
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

  // Gives a waiting sequence its pages; false where too few are free.
  bool restore(Sequence& s) {
    const int64_t last = position(s);
    if (s.table) return true;
    if (model::pages_of(last + 1) > table_.free_pages()) return false;
    s.table = table_.open();
    feed(s, *s.table, last, /*logits=*/false);
    counts_.recomputed += last;
    return true;
  }

  // Feeds the first `count` tokens of a sequence that has none in the cache yet. → the logits after the last of them.
  model::Logits feed(const Sequence& s, int64_t table, int64_t count, bool logits) {
    table_.extend(table, count);
    model::Logits out{};
    std::vector<DecodeRow> rows;
    for (int64_t t = 0; t < count; ++t) {
      rows.push_back({token_at(s, t), t, table});
      if (static_cast<int64_t>(rows.size()) < prompt_rows_ && t + 1 < count) continue;
      const bool last = logits && t + 1 == count;
      out = session_->step(rows, static_cast<int64_t>(rows.size()) - last);
      rows.clear();
    }
    return out;
  }

  // The page that the next token of a running sequence goes to. False where there is none and it gave up its own.
  bool make_room(Sequence& s) {
    while (!table_.extend(*s.table, position(s) + 1)) {
      give_up_pages();
      if (!s.table) return false;
    }
    return true;
  }

  // Frees pages: those of the prompt in hand, else of the last that waits, else of the last that was admitted, which then waits.
  void give_up_pages() {
    if (drop_prompt()) return;
    for (auto s = waiting_.rbegin(); s != waiting_.rend(); ++s)
      if ((*s)->table) return give_up(**s);
    if (running_.empty()) return;
    give_up(*running_.back());
    waiting_.push_front(std::move(running_.back()));
    running_.pop_back();
  }

  void give_up(Sequence& s) {
    table_.close(*s.table);
    s.table.reset();
    ++counts_.preempted;
  }

  bool drop_prompt() {
    if (!prompt_table_) return false;
    table_.close(*prompt_table_);
    prompt_table_.reset();
    return true;
  }

  // ---- samples ---------------------------------------------------------------------------------------------------

  bool more_samples() {
    while (sample_ == last_sample_) {
      drop_prompt();
      const size_t task = job_.next_task++;
      if (task >= job_.tasks.size()) return false;
      prompt_ = job_.tasks[task].prompt;
      sample_ = job_.tasks[task].first_sample;
      last_sample_ = job_.tasks[task].last_sample;
    }
    return true;
  }

  // The next sample of the task in hand; false where too few pages are free. Its prompt goes through the model once.
  bool begin_sample() {
    const auto length = static_cast<int64_t>(job_.prompts[prompt_].size());
    // Of its own it needs the page of its first token, and a copy of the last one of its prompt.
    if ((prompt_table_ ? 2 : model::pages_of(length + 1)) > table_.free_pages()) return false;
    auto s = first_of_tree(prompt_, sample_);
    if (!prompt_table_) {
      prompt_table_ = table_.open();
      const model::Logits logits = feed(*s, *prompt_table_, length, /*logits=*/true);
      prompt_logits_.assign(logits.data, logits.data + job_.vocabulary);
    }
    ++sample_;
    s->table = table_.fork(*prompt_table_, length);
    running_.push_back(std::move(s));
    extend(*running_.back(), prompt_logits_.data());
    std::erase_if(running_, [](const auto& r) { return r == nullptr; });
    return true;
  }

  data::Stream stream(int64_t prompt, uint64_t id) const {
    const RolloutKey& key = job_.key;
    return {key.seed, key.evaluation ? data::Purpose::evaluation : data::Purpose::rollout,
            static_cast<uint64_t>(key.step), static_cast<uint64_t>(key.first_prompt + prompt), id};
  }

  Owned first_of_tree(int64_t prompt, int64_t sample) const {
    auto s = std::make_unique<Sequence>(Sequence{.leaf = {},
                                                 .id = static_cast<uint64_t>(sample),
                                                 .stream = stream(prompt, sample),
                                                 .limit = job_.limit(prompt),
                                                 .branches = 0,
                                                 .spare = 0,
                                                 .table = {}});
    s->leaf.completion.prompt = prompt;
    s->leaf.completion.sample = sample;
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

  // ---- tokens and branches ---------------------------------------------------------------------------------------

  // Draws the next token of a running sequence, and what follows from it.
  void extend(Sequence& s, const float* logits) {
    Completion& c = s.leaf.completion;
    const bool early = static_cast<int64_t>(c.tokens.size()) < job_.sampling.min_new_tokens;
    const Draw draw =
        sampler_.draw(logits, s.stream.uniform(), early ? std::span(job_.stop_tokens) : std::span<const int64_t>());
    c.tokens.push_back(draw.token);
    c.logprob.push_back(draw.logprob);
    c.entropy.push_back(draw.entropy);
    c.stopped = job_.stops[draw.token];
    ++counts_.drawn;
    const auto n = static_cast<int64_t>(c.tokens.size());
    const bool ended = c.stopped || n >= s.limit;
    if (s.on_trial && (ended || n == c.begin + job_.branching->window) && !end_trial(s)) {
      ++counts_.dropped;
      return remove(s);
    }
    if (job_.branching && !s.on_trial) try_branch(s, ended);
    if (!ended) return;
    counts_.branches += !s.leaf.path.empty();
    job_.trees[job_.first_tree[c.prompt] + c.sample].push_back(std::move(s.leaf));
    remove(s);
  }

  // Whether the window that begins at token t is known and as high as to branch.
  bool hesitates(const Completion& c, int64_t t) const {
    const int64_t w = job_.branching->window;
    if (t < 0 || t + w > static_cast<int64_t>(c.entropy.size())) return false;
    double sum = 0;
    for (int64_t i = t; i < t + w; ++i) sum += c.entropy[i];
    return sum / static_cast<double>(w) >= job_.branching->threshold;
  }

  // A running sequence whose last window says so gets a branch on trial, and stands still meanwhile, so that what may leave it
  // next is known.
  void try_branch(Sequence& s, bool ended) {
    const Completion& c = s.leaf.completion;
    const int64_t w = job_.branching->window, t = static_cast<int64_t>(c.tokens.size()) - w, longest = s.limit - t;
    if (t < s.next_branch || s.branches == 0 || s.spare < longest || !hesitates(c, t)) return;
    const int64_t from = std::exchange(s.next_branch, t + w);
    data::Stream mix(s.id, data::Purpose::rollout, static_cast<uint64_t>(t), /*b=*/1);
    const uint64_t id = (uint64_t{mix.bits()} << 32 | mix.bits()) | uint64_t{1} << 63;  // no number of a sample
    auto branch = std::make_unique<Sequence>(
        Sequence{.leaf = {.completion = {.prompt = c.prompt,
                                         .sample = c.sample,
                                         .begin = t,
                                         .tokens = {c.tokens.begin(), c.tokens.begin() + t},
                                         .logprob = {c.logprob.begin(), c.logprob.begin() + t},
                                         .entropy = {c.entropy.begin(), c.entropy.begin() + t}},
                          .path = s.leaf.path},
                 .id = id,
                 .stream = stream(c.prompt, id),
                 .limit = s.limit,
                 .branches = s.branches - 1,
                 .spare = s.spare - longest,
                 .next_branch = t + w,
                 .trial_from = from,
                 .on_trial = true,
                 .parent = ended ? nullptr : &s,
                 .table = {}});
    branch->leaf.path.push_back(t);
    branch->table = table_.fork(*s.table, position(*branch));
    s.paused = !ended;
    waiting_.push_front(std::move(branch));
  }

  // Whether the branch goes on: whether it, in its parent's place, would have been left at this token and at none before, of
  // which windows also hold tokens of its own. It then shares with its parent what may still leave either.
  bool end_trial(Sequence& s) {
    const Completion& c = s.leaf.completion;
    const int64_t spare = s.spare + s.limit - c.begin;  // the parent's when it left
    bool kept = hesitates(c, c.begin);
    for (int64_t t = s.trial_from; t < c.begin; ++t) kept = kept && !(hesitates(c, t) && spare >= s.limit - t);
    s.on_trial = false;
    if (Sequence* parent = std::exchange(s.parent, nullptr)) {
      parent->paused = false;
      if (kept) {
        parent->branches = s.branches - s.branches / 2;
        parent->spare = s.spare - s.spare / 2;
        s.branches /= 2;
        s.spare /= 2;
      }
    }
    return kept;
  }

  void remove(Sequence& s) {
    table_.close(*s.table);
    std::find_if(running_.begin(), running_.end(), [&](const Owned& r) { return r.get() == &s; })->reset();
  }

  Job& job_;
  int64_t most_, prompt_rows_;
  std::unique_ptr<model::DecodeSession> session_;
  model::PageTable& table_;
  Sampler sampler_;
  RolloutCounts& counts_;
  std::vector<Owned> running_;  // in the order of their admission
  std::deque<Owned> waiting_;
  int64_t prompt_ = 0, sample_ = 0,
          last_sample_ = 0;              // the task in hand: samples sample_ … last_sample_ − 1 have not begun
  std::optional<int64_t> prompt_table_;  // where its prompt is in the cache
  std::vector<float> prompt_logits_;     // [V], after the prompt's last token
};

void check(const model::DecoderConfig& config, const std::vector<std::vector<int64_t>>& prompts,
           const std::vector<int64_t>& samples, const std::vector<int64_t>& stop_tokens) {
  if (samples.size() != prompts.size())
    throw std::invalid_argument("rollout: " + std::to_string(samples.size()) + " counts of samples for " +
                                std::to_string(prompts.size()) + " prompts; wanted one a prompt");
  for (const int64_t count : samples)
    if (count < 1) throw std::invalid_argument("rollout: samples is " + std::to_string(count) + ", wanted at least 1");
  auto in_vocabulary = [&](int64_t token) { return token >= 0 && token < config.vocabulary; };
  const std::string range = ", outside the vocabulary 0 … " + std::to_string(config.vocabulary - 1);
  for (size_t i = 0; i < prompts.size(); ++i) {
    const std::string name = "rollout: prompt " + std::to_string(i);
    if (prompts[i].empty()) throw std::invalid_argument(name + " is empty; it needs at least one token");
    if (static_cast<int64_t>(prompts[i].size()) >= config.context)
      throw std::invalid_argument(name + " has " + std::to_string(prompts[i].size()) +
                                  " tokens and leaves no room in model.context (" + std::to_string(config.context) +
                                  "); shorten it or raise model.context");
    for (const int64_t token : prompts[i])
      if (!in_vocabulary(token)) throw std::invalid_argument(name + " holds token " + std::to_string(token) + range);
  }
  for (const int64_t token : stop_tokens)
    if (!in_vocabulary(token)) throw std::invalid_argument("rollout: stop token " + std::to_string(token) + range);
}

// Runs of samples, so many that every thread has one.
void make_tasks(Job& job, int64_t threads) {
  const auto P = static_cast<int64_t>(job.prompts.size());
  int64_t trees = 0;
  for (int64_t p = 0; p < P; ++p) {
    const int64_t parts = std::min(job.samples[p], (threads + P - 1) / P);
    for (int64_t i = 0; i < parts; ++i)
      job.tasks.push_back({p, job.samples[p] * i / parts, job.samples[p] * (i + 1) / parts});
    job.first_tree.push_back(trees);
    trees += job.samples[p];
  }
  job.trees.resize(trees);
}

// Ordered by path, parents stand before their children.
std::vector<Completion> completions(std::vector<std::vector<Leaf>>& trees) {
  std::vector<Completion> out;
  for (std::vector<Leaf>& tree : trees) {
    std::sort(tree.begin(), tree.end(), [](const Leaf& a, const Leaf& b) { return a.path < b.path; });
    const auto first = static_cast<int64_t>(out.size());
    for (const Leaf& leaf : tree) {
      Completion c = leaf.completion;
      if (!leaf.path.empty()) {
        const std::vector<int64_t> above(leaf.path.begin(), leaf.path.end() - 1);
        const auto parent = std::find_if(tree.begin(), tree.end(), [&](const Leaf& x) { return x.path == above; });
        c.parent = first + (parent - tree.begin());
      }
      out.push_back(std::move(c));
    }
  }
  return out;
}

}  // namespace

std::vector<Completion> rollout(const model::Decoder& decoder, const std::vector<std::vector<int64_t>>& prompts,
                                const std::vector<int64_t>& samples, const SamplingConfig& sampling,
                                const std::vector<int64_t>& stop_tokens, const RolloutKey& key,
                                const CacheConfig& cache, const std::optional<Branching>& branching,
                                RolloutCounts* counts) {
  const model::DecoderConfig& config = decoder->config();
  check(config, prompts, samples, stop_tokens);
  if (prompts.empty()) return {};
  const auto model = model::make_decode_model(decoder, cache.dtype == "bfloat16");
  const int64_t threads = model->parallel() ? at::get_num_threads() : 1;
  Job job{*model,
          prompts,
          samples,
          config.vocabulary,
          config.context,
          sampling,
          stop_tokens,
          std::vector<bool>(config.vocabulary),
          key,
          branching,
          {},
          {},
          {}};
  for (const int64_t token : stop_tokens) job.stops[token] = true;
  make_tasks(job, threads);

  int64_t longest = 0, workers = std::min<int64_t>(threads, job.tasks.size());
  for (size_t p = 0; p < prompts.size(); ++p)
    longest = std::max(longest, static_cast<int64_t>(prompts[p].size()) + job.limit(p));
  // A worker must hold one whole sequence beside the prompt in hand, of whose pages it has a copy of one and one of its own.
  const int64_t least = model::pages_of(longest) + 2, held = cache.cache_tokens / model::kPagePositions;
  if (cache.cache_tokens > 0 && held < least)
    throw std::invalid_argument("rollout.cache_tokens: " + std::to_string(cache.cache_tokens) +
                                " cannot hold a sequence of " + std::to_string(longest) + " tokens; wanted at least " +
                                std::to_string(least * model::kPagePositions) +
                                ", or 0 for as many as are generated at a time");
  if (cache.cache_tokens > 0) workers = std::min(workers, held / least);
  const int64_t trees = job.trees.size(), rows = model->preferred_rows();
  const int64_t most = branching ? rows : std::min(rows, (trees + workers - 1) / workers);
  // With branches as many may stand still as run. No more is needed, and with less they wait.
  const int64_t pages =
      cache.cache_tokens > 0 ? held / workers : ((branching ? 2 : 1) * most + 1) * model::pages_of(longest) + most;

  std::mutex mutex;
  RolloutCounts sum;
  const auto work = [&] {
    RolloutCounts own;
    Worker(job, most, pages, own).run();
    const std::lock_guard lock(mutex);
    sum += own;
  };
  if (workers == 1) {
    work();
  } else {
    at::parallel_for(0, workers, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) work();
    });
  }
  if (counts) *counts = sum;
  return completions(job.trees);
}

std::vector<Completion> rollout(const model::Decoder& decoder, const std::vector<std::vector<int64_t>>& prompts,
                                int64_t samples, const SamplingConfig& sampling,
                                const std::vector<int64_t>& stop_tokens, const RolloutKey& key,
                                const CacheConfig& cache) {
  return rollout(decoder, prompts, std::vector<int64_t>(prompts.size(), samples), sampling, stop_tokens, key, cache);
}

}  // namespace isentrope::rl
