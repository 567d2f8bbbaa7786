#include "csrc/rl/rollout.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <mutex>
#include <numeric>
#include <optional>
#include <stdexcept>
#include <utility>

#include "csrc/model/decode.h"
#include "csrc/rl/rollout_worker.h"

namespace isentrope::rl {
namespace {

void check(const model::DecoderConfig& config, const std::vector<std::vector<int64_t>>& prompts,
           const std::vector<int64_t>& samples, const std::vector<int64_t>& stop_tokens,
           const std::vector<at::Tensor>& embeddings, int64_t least) {
  if (!embeddings.empty() && embeddings.size() != prompts.size())
    throw std::invalid_argument("rollout: embeddings of " + std::to_string(embeddings.size()) + " prompts for " +
                                std::to_string(prompts.size()) + "; wanted those of each, or none");
  if (samples.size() != prompts.size())
    throw std::invalid_argument("rollout: " + std::to_string(samples.size()) + " counts of samples for " +
                                std::to_string(prompts.size()) + " prompts; wanted one a prompt");
  for (const int64_t count : samples)
    if (count < least)
      throw std::invalid_argument("rollout: samples is " + std::to_string(count) + ", wanted at least " +
                                  std::to_string(least));
  auto in_vocabulary = [&](int64_t token) { return token >= 0 && token < config.token_count(); };
  const std::string range = ", outside the vocabulary 0 … " + std::to_string(config.token_count() - 1);
  for (size_t i = 0; i < prompts.size(); ++i) {
    const std::string name = "rollout: prompt " + std::to_string(i);
    if (prompts[i].empty()) throw std::invalid_argument(name + " is empty; it needs at least one token");
    if (static_cast<int64_t>(prompts[i].size()) >= config.max_position_embeddings)
      throw std::invalid_argument(name + " has " + std::to_string(prompts[i].size()) +
                                  " tokens and leaves no room in model.max_position_embeddings (" +
                                  std::to_string(config.max_position_embeddings) +
                                  "); shorten it or raise model.max_position_embeddings");
    int64_t prefix = 0;
    if (!embeddings.empty()) {
      const at::Tensor& given = embeddings[i];
      if (!given.defined() || given.dim() != 2 || given.size(1) != config.hidden_size ||
          given.scalar_type() != at::kFloat || given.size(0) >= std::ssize(prompts[i]))
        throw std::invalid_argument(name + ": its embeddings are not [P, " + std::to_string(config.hidden_size) +
                                    "] float with at least one token behind them");
      prefix = given.size(0);
      if (std::any_of(prompts[i].begin(), prompts[i].begin() + prefix, [](int64_t t) { return t != model::kHidden; }))
        throw std::invalid_argument(name + " has " + std::to_string(prefix) +
                                    " embeddings; wanted as many hidden tokens (-1) at its begin");
    }
    for (const int64_t token : std::span(prompts[i]).subspan(prefix))
      if (!in_vocabulary(token)) throw std::invalid_argument(name + " holds token " + std::to_string(token) + range);
  }
  for (const int64_t token : stop_tokens)
    if (!in_vocabulary(token)) throw std::invalid_argument("rollout: stop token " + std::to_string(token) + range);
}

// Of conversations that go on: one a sample, each of whose turns was answered.
void check_begun(std::span<const Completion> begun, const std::vector<int64_t>& samples, bool converses) {
  if (begun.empty()) return;
  const int64_t all = std::accumulate(samples.begin(), samples.end(), int64_t{0});
  if (!converses || std::ssize(begun) != all)
    throw std::invalid_argument("rollout: " + std::to_string(begun.size()) + " conversations that go on, and " +
                                std::to_string(all) + " samples" + (converses ? "" : " without an environment") +
                                "; wanted one a sample, with an environment");
  for (const Completion& one : begun)
    if (one.turns.empty() || one.turns.back().end != std::ssize(one.tokens))
      throw std::invalid_argument(
          "rollout: a conversation goes on behind a turn that was answered, and one has tokens behind its last turn, "
          "or "
          "no turn");
}

// Runs of samples, so many that every thread has one.
void make_tasks(RolloutJob& job, int64_t threads) {
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

std::vector<std::string> SamplingConfig::off_policy() const {
  std::vector<std::string> keys;
  for (const auto& [key, given] : {std::pair{"top_k", top_k > 0},
                                   {"top_p", top_p < 1},
                                   {"min_p", min_p > 0},
                                   {"repetition_penalty", repetition_penalty != 1},
                                   {"bad_words", !bad_words.empty()}})
    if (given) keys.emplace_back(key);
  return keys;
}

bool SamplingConfig::cuts() const { return temperature > 0 && (min_new_tokens > 0 || !off_policy().empty()); }

std::vector<Completion> rollout(const model::Decoder& decoder, const std::vector<std::vector<int64_t>>& prompts,
                                const std::vector<int64_t>& samples, const SamplingConfig& sampling,
                                const std::vector<int64_t>& stop_tokens, const RolloutKey& key,
                                const CacheConfig& cache, const std::optional<Branching>& branching,
                                RolloutCounts* counts, const Peers& peers, std::span<const data::Example> examples,
                                std::span<const Completion> begun) {
  const model::DecoderConfig& config = decoder->config();
  check(config, prompts, samples, stop_tokens, sampling.embeddings, /*least=*/begun.empty() ? 1 : 0);
  check_begun(begun, samples, sampling.conversing != nullptr);
  if (!sampling.rules && !(sampling.stop.empty() && sampling.bad_words.empty()))
    throw std::invalid_argument("rollout: stop and bad_words are texts; give them their tokens by with_rules()");
  if (prompts.empty()) return {};
  if (sampling.conversing && examples.size() != prompts.size())
    throw std::invalid_argument("rollout: " + std::to_string(examples.size()) + " examples for " +
                                std::to_string(prompts.size()) + " prompts; conversations want one a prompt");
  if (sampling.conversing && branching)
    throw std::invalid_argument("rollout: conversations do not branch; leave branching or the environment out");
  if (branching && (sampling.prune || !sampling.embeddings.empty()))
    throw std::invalid_argument(
        "rollout: sequences whose prompt is pruned or has embeddings do not branch; leave one out");
  if (sampling.prune && !sampling.prune->layer)
    throw std::invalid_argument("rollout: prune has no layer; model::with_layer finds one");
  std::optional<model::Pruning> pruning;
  if (sampling.prune) pruning.emplace(decoder, *sampling.prune);
  const auto model = model::make_decode_model(decoder, cache.dtype == "bfloat16");
  if (!sampling.embeddings.empty() && model->reads_prefix())
    throw std::invalid_argument("rollout: a layer reads prompts as a whole (prefix_linear), and these have embeddings");
  const int64_t threads = model->parallel() ? at::get_num_threads() : 1;
  RolloutJob job{*model,
                 pruning ? &*pruning : nullptr,
                 0,
                 prompts,
                 samples,
                 config.token_count(),
                 config.max_position_embeddings,
                 sampling,
                 stop_tokens,
                 std::vector<bool>(config.token_count()),
                 key,
                 branching,
                 examples,
                 begun,
                 {},
                 {},
                 {},
                 {}};
  for (const int64_t token : stop_tokens) job.stops[token] = true;
  make_tasks(job, threads * peers.size());
  job.next_task = peers.queue();

  int64_t longest = 0, later = 0, workers = std::min<int64_t>(threads, job.tasks.size());
  for (size_t p = 0; p < prompts.size(); ++p) {
    const int64_t tokens = static_cast<int64_t>(prompts[p].size()) + job.limit(p);
    longest = std::max(longest, tokens);
    later = std::max(later, tokens - job.dropped(p));
  }
  // A worker must hold one whole sequence beside the prompt in hand, of whose pages it has a copy of one and one of its own.
  const int64_t least = model::pages_of(longest) + 2, held = cache.cache_tokens / model::kPagePositions;
  if (cache.cache_tokens > 0 && held < least)
    throw std::invalid_argument("rollout.cache_tokens: " + std::to_string(cache.cache_tokens) +
                                " cannot hold a sequence of " + std::to_string(longest) + " tokens; wanted at least " +
                                std::to_string(least * model::kPagePositions) +
                                ", or 0 for as many as are generated at a time");
  if (cache.cache_tokens > 0) workers = std::min(workers, held / least);
  const int64_t trees = job.trees.size(), rows = model->preferred_rows(), all = workers * peers.size();
  const int64_t most = branching && peers.size() == 1 ? rows : std::min(rows, (trees + all - 1) / all);
  // With branches as many may stand still as run. No more is needed, and with less they wait.
  const auto pages_for = [&](int64_t tokens) {
    return cache.cache_tokens > 0 ? held / workers : ((branching ? 2 : 1) * most + 1) * model::pages_of(tokens) + most;
  };
  const int64_t pages = pages_for(longest);
  if (pruning) job.later_pages = pages_for(later);

  std::mutex mutex;
  RolloutCounts sum;
  const auto work = [&] {
    RolloutCounts own;
    RolloutWorker(job, most, pages, own).run();
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
