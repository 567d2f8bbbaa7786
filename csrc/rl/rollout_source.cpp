#include "csrc/rl/rollout_source.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <stdexcept>

#include "csrc/model/page_table.h"
#include "csrc/rl/tree.h"
#include "csrc/rl/windows.h"

namespace isentrope::rl {
namespace {

using data::Batch;
using data::Example;
using torch::Tensor;

// What a step learns from: prompts with their completions, one group behind the other.
struct Kept {
  std::vector<std::vector<int64_t>> prompts;
  Groups groups{0};                     // of completions
  std::vector<Completion> completions;  // parents by their place here
  std::vector<double> rewards;          // of each completion, penalties included
  std::vector<bool> right;              // of each completion

  int64_t size() const { return static_cast<int64_t>(prompts.size()); }
};

// Advantages of the tokens of each completion's segments, their weights included: [completions][segments].
struct TokenAdvantage {
  int64_t begin, end;
  double value;
};
std::vector<std::vector<TokenAdvantage>> token_advantages(const Kept& kept, const AdvantageConfig& config) {
  const auto found = segments(kept.completions, kept.rewards);
  // A tree counts in its group as one completion: with its value, and the length of its first sample.
  std::vector<double> values;
  std::vector<int64_t> lengths, tree_of;
  Groups trees{0};
  for (int64_t g = 0; g < kept.size(); ++g) {
    for (int64_t i = kept.groups[g]; i < kept.groups[g + 1]; ++i) {
      const Completion& c = kept.completions[i];
      if (c.parent < 0) {
        values.push_back(found[i].front().value);
        lengths.push_back(static_cast<int64_t>(c.tokens.size()));
      }
      tree_of.push_back(static_cast<int64_t>(values.size()) - 1);
    }
    trees.push_back(static_cast<int64_t>(values.size()));
  }
  const Advantages a = advantages(values, lengths, trees, config);
  std::vector<std::vector<TokenAdvantage>> out(found.size());
  for (size_t i = 0; i < found.size(); ++i)
    for (const Segment& s : found[i]) {
      const int64_t j = tree_of[i];
      out[i].push_back({s.begin, s.end, s.weight * (a.value[j] + a.slope[j] * (s.value - values[j]))});
    }
  return out;
}

// Rows of a policy update from groups first … last − 1: prompt and completion padded on the right; target and statistics where
// the completion's own tokens are. ares: of all completions of the step, where there is any.
Batch collate(const Kept& kept, int64_t first, int64_t last, const std::vector<std::vector<TokenAdvantage>>& advantage,
              const AresStep& ares, bool mask_truncated) {
  const int64_t begin = kept.groups[first], B = kept.groups[last] - begin;
  int64_t T = 1;
  for (int64_t g = first; g < last; ++g)
    for (int64_t i = kept.groups[g]; i < kept.groups[g + 1]; ++i)
      T = std::max<int64_t>(T, kept.prompts[g].size() + kept.completions[i].tokens.size());
  Batch batch{torch::zeros({B, T}, torch::kInt64), torch::full({B, T}, data::kIgnore, torch::kInt64),
              torch::zeros({B, T}, torch::kFloat32), torch::zeros({B, T}, torch::kFloat32)};
  const bool weighs = !ares.kl_weight.empty();
  if (weighs) {
    batch.ref_kl_weight = torch::ones({B, T}, torch::kFloat32);
    batch.difficulty = torch::empty({B}, torch::kInt64);
  }
  auto tokens = batch.tokens.accessor<int64_t, 2>();
  auto target = batch.target.accessor<int64_t, 2>();
  auto logprob = batch.old_logprob.accessor<float, 2>();
  auto token_advantage = batch.advantage.accessor<float, 2>();
  for (int64_t g = first; g < last; ++g)
    for (int64_t i = kept.groups[g]; i < kept.groups[g + 1]; ++i) {
      const Completion& completion = kept.completions[i];
      const int64_t row = i - begin, start = kept.prompts[g].size();
      std::copy(kept.prompts[g].begin(), kept.prompts[g].end(), tokens[row].data());
      std::copy(completion.tokens.begin(), completion.tokens.end(), tokens[row].data() + start);
      if (weighs) batch.difficulty.mutable_data_ptr<int64_t>()[row] = ares.difficulty[i];
      if (mask_truncated && !completion.stopped) continue;
      for (const TokenAdvantage& part : advantage[i])
        for (int64_t t = part.begin; t < part.end; ++t) {
          const int64_t at = start + t - 1;  // the position whose logits predict the token
          target[row][at] = completion.tokens[t];
          logprob[row][at] = completion.logprob[t];
          token_advantage[row][at] = static_cast<float>(part.value);
          if (weighs) batch.ref_kl_weight.mutable_data_ptr<float>()[row * T + at] = ares.kl_weight[i][t];
        }
    }
  return batch;
}

// Adds what ARES says of the completions, for a right answer of the first reward's weight, to their rewards.
AresStep shape(Ares& ares, double weight, Kept& kept) {
  std::vector<AresCompletion> completions;
  for (size_t i = 0; i < kept.completions.size(); ++i)
    completions.push_back({kept.completions[i].tokens, kept.completions[i].entropy, kept.right[i]});
  AresStep shaped = ares.step(completions, kept.groups);
  for (size_t i = 0; i < kept.rewards.size(); ++i) kept.rewards[i] += weight * shaped.shaping[i];
  return shaped;
}

// 1 or 0
std::vector<double> right_or_wrong(const std::vector<double>& scores) {
  std::vector<double> right;
  for (const double score : scores) right.push_back(score >= 0.5);
  return right;
}

double mean(const std::vector<double>& x) {
  return x.empty() ? 0.0 : std::accumulate(x.begin(), x.end(), 0.0) / static_cast<double>(x.size());
}

double deviation(const std::vector<double>& x) {
  const double m = mean(x);
  double squares = 0;
  for (double value : x) squares += (value - m) * (value - m);
  return x.empty() ? 0.0 : std::sqrt(squares / static_cast<double>(x.size()));
}

}  // namespace

std::string RolloutConfig::problem() const {
  if (prompts % updates != 0)
    return "updates: " + std::to_string(updates) + " does not divide prompts (" + std::to_string(prompts) +
           "); every update takes the same number of whole groups";
  if (overlong && sampling.max_new_tokens == 0)
    return "overlong: needs max_new_tokens, the length limit that the penalty counts back from";
  if (sampling.max_new_tokens > 0 && sampling.min_new_tokens > sampling.max_new_tokens)
    return "min_new_tokens: " + std::to_string(sampling.min_new_tokens) + " is above max_new_tokens (" +
           std::to_string(sampling.max_new_tokens) + ")";
  if (overlong && overlong->buffer > sampling.max_new_tokens)
    return "overlong: buffer is " + std::to_string(overlong->buffer) +
           " tokens, and the length limit that it counts back from, max_new_tokens, " +
           std::to_string(sampling.max_new_tokens) + "; give a buffer of at most that";
  // Below 1e-3 two logits that differ by 0.01 have odds of 22000 : 1.
  if (sampling.temperature < 1e-3)
    return "temperature: at less than 0.001 the completions of a prompt are all the same, and a policy learns from how "
           "they "
           "differ";
  if (sampling.top_k == 1)
    return "top_k: 1 takes the likeliest token always, so that the completions of a prompt are all the same; a policy "
           "learns from how they differ";
  if (sampling.top_p == 0)
    return "top_p: 0 takes the likeliest token always, so that the completions of a prompt are all the same; a policy "
           "learns from how they differ";
  if (filter_groups && samples == 1 && !allocation)
    return "filter_groups: a group of one completion has nothing to differ from; give samples of 2 or more";
  const int64_t cached = cache.cache_tokens / model::kPagePositions,
                shortest = 1 + std::max<int64_t>(sampling.max_new_tokens, 1);
  if (cache.cache_tokens > 0 && cached < model::pages_of(shortest) + 2)  // as rollout() counts
    return "cache_tokens: " + std::to_string(cache.cache_tokens) + " cannot hold one sequence of " +
           std::to_string(shortest) + " tokens; wanted at least " +
           std::to_string((model::pages_of(shortest) + 2) * model::kPagePositions) + ", or 0";
  if (branch && branch->sequences > 0 && branch->sequences < samples)
    return "branch.sequences: " + std::to_string(branch->sequences) + " is below samples (" + std::to_string(samples) +
           "), which it includes";
  if (allocation && (allocation->least > samples || most_samples() < samples))
    return "allocation: samples (" + std::to_string(samples) + ") is the mean, and does not lie between least (" +
           std::to_string(allocation->least) + ") and most (" + std::to_string(most_samples()) + ")";
  return "";
}

RolloutSource::RolloutSource(const RolloutConfig& config, const model::Decoder& model, const data::Tokenizer& tokenizer,
                             std::shared_ptr<const data::ExampleSource> examples, RewardSum reward, uint64_t seed)
    : config_(config),
      model_(model),
      tokenizer_(tokenizer),
      examples_(std::move(examples)),
      reward_(std::move(reward)),
      seed_(seed) {
  if (config_.ares) ares_.emplace(*config_.ares, trigger_tokens(config_.ares->triggers, tokenizer_));
}

// How many completions each prompt gets, prompts · samples in all.
std::vector<int64_t> RolloutSource::samples_of(const std::vector<Example>& examples) const {
  const int64_t K = config_.samples, P = static_cast<int64_t>(examples.size());
  if (!config_.allocation) return std::vector<int64_t>(P, K);
  std::vector<double> shares;
  for (const Example& example : examples) shares.push_back(record_.share(example.prompt));
  return allocate(shares, P * K, config_.allocation->least, config_.most_samples());
}

data::StepData RolloutSource::next(int64_t step) {
  const int64_t P = config_.prompts;
  const auto& branch = config_.branch;
  std::optional<Branching> branching;
  if (branch && threshold_)
    branching = {.threshold = *threshold_,
                 .window = branch->window,
                 .sequences = branch->sequences > 0 ? branch->sequences : 2 * config_.samples,
                 .tokens = branch->tokens};
  Kept kept;
  // Over everything that was drawn; rewards, thresholds and samples of the first sequence of each tree, which no branch bends.
  std::vector<double> all, entropy, length, thresholds, samples_drawn;
  std::map<std::string, double> stats;
  RolloutCounts counts;
  double truncated = 0, flat = 0, prompts_drawn = 0, draws = 0;

  for (; kept.size() < P && draws < static_cast<double>(config_.max_draws); ++draws) {
    const std::vector<Example> examples = examples_->take(taken_, P);
    std::vector<std::vector<int64_t>> prompts;
    for (const Example& example : examples) prompts.push_back(tokenizer_.encode(example.prompt));
    const std::vector<int64_t> samples = samples_of(examples);
    RolloutCounts did;
    std::vector<Completion> completions =
        rollout(model_, prompts, samples, config_.sampling, {tokenizer_.eos_id()},
                {.seed = seed_, .step = step, .first_prompt = taken_}, config_.cache, branching, &did);
    taken_ += P;
    prompts_drawn += static_cast<double>(P);
    counts += did;

    std::vector<std::string> prompt_text, text;
    std::vector<Example> example_of;
    Groups groups{0};
    for (size_t i = 0; i < completions.size(); ++i) {
      const Completion& completion = completions[i];
      const Example& example = examples[completion.prompt];
      prompt_text.push_back(example.prompt);
      text.push_back(tokenizer_.decode(completion.tokens));
      example_of.push_back(example);
      length.push_back(static_cast<double>(completion.tokens.size()));
      truncated += !completion.stopped;
      entropy.insert(entropy.end(), completion.entropy.begin() + completion.begin, completion.entropy.end());
      if (i + 1 == completions.size() || completions[i + 1].prompt != completion.prompt)
        groups.push_back(static_cast<int64_t>(i) + 1);
      if (branch && completion.parent < 0)
        if (const auto windows = window_means(completion.entropy, branch->window); !windows.empty())
          thresholds.push_back(quantile(windows, branch->quantile));
    }
    Rewards scored = reward_(prompt_text, text, example_of);
    for (const auto& [name, value] : scored.stats) stats[name] += value;
    const std::vector<double> accuracy = right_or_wrong(scored.first);
    const std::vector<bool> differs = keep_groups(ares_ ? accuracy : scored.total, groups);
    for (int64_t p = 0; p < P; ++p) {
      int64_t right = 0;
      for (int64_t i = groups[p]; i < groups[p + 1]; ++i)
        if (completions[i].parent < 0) {
          all.push_back(scored.total[i]);
          right += accuracy[i] > 0;
        }
      samples_drawn.push_back(static_cast<double>(samples[p]));
      if (config_.allocation) record_.add(examples[p].prompt, right, samples[p], config_.allocation->decay);
      flat += !differs[p];
      if (kept.size() == P || (config_.filter_groups && !differs[p])) continue;
      const auto moved = static_cast<int64_t>(kept.completions.size()) - groups[p];
      for (int64_t i = groups[p]; i < groups[p + 1]; ++i) {
        Completion& completion = completions[i];
        if (completion.parent >= 0) completion.parent += moved;
        double reward = scored.total[i];
        if (config_.overlong)
          reward += overlong_penalty(static_cast<int64_t>(completion.tokens.size()), *config_.overlong,
                                     config_.sampling.max_new_tokens);
        kept.rewards.push_back(reward);
        kept.right.push_back(accuracy[i] > 0);
        kept.completions.push_back(std::move(completion));
      }
      kept.prompts.push_back(std::move(prompts[p]));
      kept.groups.push_back(static_cast<int64_t>(kept.completions.size()));
    }
  }

  for (auto& [name, value] : stats) value /= draws;  // a mean of each draw → of all
  data::StepData data;
  const int64_t U = config_.updates;
  empty_ = kept.size() < U ? empty_ + 1 : 0;
  if (empty_ == config_.max_empty_steps)
    throw std::runtime_error(
        "rollout.filter_groups: " + std::to_string(empty_) + " steps in a row of " + std::to_string(config_.max_draws) +
        " batches of " + std::to_string(P) +
        " prompts each found too few groups whose rewards differ to make an update of; the task is too "
        "easy or too hard for the model, or rollout.max_draws is too small");
  if (empty_ == 0) {
    const AresStep ares = ares_ ? shape(*ares_, reward_.first_weight(), kept) : AresStep();
    const auto advantage = token_advantages(kept, config_.advantage);
    for (int64_t u = 0; u < U; ++u)
      data.updates.push_back(
          collate(kept, kept.size() * u / U, kept.size() * (u + 1) / U, advantage, ares, config_.mask_truncated));
    stats.insert(ares.stats.begin(), ares.stats.end());
  }
  if (!thresholds.empty()) {
    const double seen = mean(thresholds);
    threshold_ = threshold_ ? branch->decay * *threshold_ + (1 - branch->decay) * seen : seen;
  }

  stats["reward/mean"] = mean(all);
  stats["reward/std"] = deviation(all);
  stats["entropy/mean"] = mean(entropy);
  stats["entropy/std"] = deviation(entropy);
  stats["length/mean"] = mean(length);
  stats["length/truncated"] = truncated / static_cast<double>(length.size());
  stats["groups/flat"] = flat / prompts_drawn;
  if (config_.filter_groups) {
    stats["groups/kept"] = static_cast<double>(kept.size());
    stats["groups/empty_steps"] = static_cast<double>(empty_);
  }
  if (branching) stats["branch/threshold"] = branching->threshold;
  if (branch) {
    stats["branch/kept"] = static_cast<double>(counts.branches) / prompts_drawn;
    stats["branch/dropped"] = static_cast<double>(counts.dropped) / prompts_drawn;
  }
  if (config_.allocation) stats["samples/std"] = deviation(samples_drawn);
  if (config_.cache.cache_tokens > 0) stats["cache/preempted"] = static_cast<double>(counts.preempted);
  stats["generated"] = static_cast<double>(counts.drawn);
  data.stats = std::move(stats);
  return data;
}

std::map<std::string, torch::Tensor> RolloutSource::state() const {
  std::map<std::string, Tensor> state{{"taken", torch::tensor({taken_, empty_}, torch::kInt64)}};
  if (ares_) state["ares"] = torch::tensor(ares_->state(), torch::kFloat64);
  if (threshold_) state["branch"] = torch::tensor({*threshold_}, torch::kFloat64);
  if (config_.allocation) {
    const PassRecord::State record = record_.state();
    state["record/prompt"] = torch::tensor(record.prompt, torch::kInt64);
    state["record/right"] = torch::tensor(record.right, torch::kFloat64);
    state["record/answers"] = torch::tensor(record.answers, torch::kFloat64);
  }
  return state;
}

void RolloutSource::restore(const std::map<std::string, torch::Tensor>& state) {
  const Tensor& taken = state.at("taken");
  taken_ = taken[0].item<int64_t>();
  empty_ = taken.numel() > 1 ? taken[1].item<int64_t>() : 0;
  if (const auto found = state.find("branch"); found != state.end()) threshold_ = found->second.item<double>();
  const auto values = [&]<class T>(const char* name, T) {
    const Tensor& x = state.at(name);
    return std::vector<T>(x.const_data_ptr<T>(), x.const_data_ptr<T>() + x.numel());
  };
  if (config_.allocation && state.contains("record/prompt"))
    record_.restore(
        {values("record/prompt", int64_t{}), values("record/right", double{}), values("record/answers", double{})});
  if (!ares_) return;
  if (!state.contains("ares"))
    throw std::runtime_error(
        "rollout.ares: the checkpoint stands in a phase without it; take it out, or start the phase anew");
  ares_->restore(values("ares", double{}));
}

void RolloutSource::observe(const std::map<std::string, double>& seen) {
  if (!ares_) return;
  for (int d = 0; d < kDifficulties; ++d)
    if (const auto found = seen.find(std::string("ref_kl/") + kDifficultyNames[d]); found != seen.end())
      ares_->measured(static_cast<Difficulty>(d), found->second);
}

}  // namespace isentrope::rl
