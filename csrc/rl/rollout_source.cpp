#include "csrc/rl/rollout_source.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <stdexcept>

namespace isentrope::rl {
namespace {

using data::Batch;
using data::Example;
using torch::Tensor;

// One prompt with its completions and their rewards.
struct Group {
  std::vector<int64_t> prompt;
  std::vector<Completion> completions;
};

// Rows of a policy update: prompt and completion padded on the right; target and statistics where the completion is.
// ares: of all completions of the step, where there is any; those of this update begin with number first.
Batch collate(const Group* groups, int64_t count, const double* advantage /* [count, K] */, bool mask_truncated,
              const AresStep& ares, int64_t first) {
  int64_t B = 0, T = 1;
  for (const Group* group = groups; group != groups + count; ++group)
    for (const Completion& completion : group->completions) {
      ++B;
      T = std::max<int64_t>(T, group->prompt.size() + completion.tokens.size());
    }
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
  auto row_advantage = batch.advantage.accessor<float, 2>();
  int64_t row = 0;
  for (const Group* group = groups; group != groups + count; ++group)
    for (const Completion& completion : group->completions) {
      const int64_t start = group->prompt.size(), length = completion.tokens.size();
      std::copy(group->prompt.begin(), group->prompt.end(), tokens[row].data());
      std::copy(completion.tokens.begin(), completion.tokens.end(), tokens[row].data() + start);
      for (int64_t t = 0; t < length && (completion.stopped || !mask_truncated); ++t) {
        const int64_t at = start + t - 1;  // the position whose logits predict the token
        target[row][at] = completion.tokens[t];
        logprob[row][at] = completion.logprob[t];
        row_advantage[row][at] = static_cast<float>(advantage[row]);
        if (weighs) batch.ref_kl_weight.mutable_data_ptr<float>()[row * T + at] = ares.kl_weight[first + row][t];
      }
      if (weighs) batch.difficulty.mutable_data_ptr<int64_t>()[row] = ares.difficulty[first + row];
      ++row;
    }
  return batch;
}

// Adds what ares says of the completions, for a right answer of that weight, to their rewards.
AresStep shape(Ares& ares, const std::vector<Group>& groups, const std::vector<bool>& right, double weight,
               std::vector<double>& rewards) {
  std::vector<AresCompletion> completions;
  std::vector<int64_t> begin{0};
  for (const Group& group : groups) {
    for (const Completion& c : group.completions)
      completions.push_back({c.tokens, c.entropy, right[completions.size()]});
    begin.push_back(static_cast<int64_t>(completions.size()));
  }
  AresStep shaped = ares.step(completions, begin);
  for (size_t i = 0; i < rewards.size(); ++i) rewards[i] += weight * shaped.shaping[i];
  return shaped;
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
  if (sampling.temperature == 0) return "temperature: 0 draws the same completion " + std::to_string(samples) +
                                        " times; a policy needs a temperature above 0";
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

data::StepData RolloutSource::next(int64_t step) {
  const int64_t P = config_.prompts, K = config_.samples;
  std::vector<Group> groups;               // kept, at most P
  std::vector<double> rewards;             // [groups, K], with penalties
  std::vector<bool> right;                 // [groups, K]
  std::vector<double> all, entropy, length;  // over everything that was drawn
  std::map<std::string, double> stats;
  double truncated = 0, flat = 0, generated = 0;

  for (int64_t draw = 0; static_cast<int64_t>(groups.size()) < P; ++draw) {
    if (draw == config_.max_draws)
      throw std::runtime_error("rollout.filter_groups: " + std::to_string(draw) + " batches of " + std::to_string(P) +
                               " prompts gave only " + std::to_string(groups.size()) +
                               " groups with differing rewards; the task is too easy or too hard for the model, or "
                               "rollout.max_draws (" + std::to_string(config_.max_draws) + ") is too small");
    const std::vector<Example> examples = examples_->take(taken_, P);
    std::vector<std::vector<int64_t>> prompts;
    for (const Example& example : examples) prompts.push_back(tokenizer_.encode(example.prompt));
    std::vector<Completion> completions = rollout(model_, prompts, K, config_.sampling, {tokenizer_.eos_id()},
                                                  {.seed = seed_, .step = step, .first_prompt = taken_});
    taken_ += P;

    std::vector<std::string> prompt_text, text;
    std::vector<Example> example_of;
    std::vector<int64_t> lengths;
    for (const Completion& completion : completions) {
      const Example& example = examples[completion.prompt];
      prompt_text.push_back(example.prompt);
      text.push_back(tokenizer_.decode(completion.tokens));
      example_of.push_back(example);
      lengths.push_back(static_cast<int64_t>(completion.tokens.size()));
      length.push_back(static_cast<double>(completion.tokens.size()));
      generated += length.back();
      truncated += !completion.stopped;
      entropy.insert(entropy.end(), completion.entropy.begin(), completion.entropy.end());
    }
    const Rewards scored = reward_(prompt_text, text, example_of);
    for (const auto& [name, value] : scored.stats) stats[name] += value;
    all.insert(all.end(), scored.total.begin(), scored.total.end());

    Tensor total = torch::tensor(scored.total, torch::kFloat64).view({P, K});
    const Tensor accuracy = torch::tensor(scored.first, torch::kFloat64).view({P, K}).ge(0.5);
    const Tensor differs = keep_groups(ares_ ? accuracy.to(torch::kFloat64) : total);
    if (config_.overlong)
      total = total + overlong_penalty(torch::tensor(lengths, torch::kInt64).view({P, K}), *config_.overlong,
                                       config_.sampling.max_new_tokens);
    flat += static_cast<double>(P) - differs.sum().item<double>();
    for (int64_t p = 0; p < P && static_cast<int64_t>(groups.size()) < P; ++p) {
      if (config_.filter_groups && !differs[p].item<bool>()) continue;
      const auto first = completions.begin() + p * K;
      groups.push_back({prompts[p], {std::make_move_iterator(first), std::make_move_iterator(first + K)}});
      const double* row = total.const_data_ptr<double>() + p * K;
      rewards.insert(rewards.end(), row, row + K);
      for (int64_t k = 0; k < K; ++k) right.push_back(scored.first[p * K + k] >= 0.5);
    }
  }

  std::vector<int64_t> lengths;
  for (const Group& group : groups)
    for (const Completion& completion : group.completions) lengths.push_back(completion.tokens.size());
  const AresStep shaped = ares_ ? shape(*ares_, groups, right, reward_.first_weight(), rewards) : AresStep{};
  const Tensor advantage = advantages(torch::tensor(rewards, torch::kFloat64).view({P, K}),
                                      torch::tensor(lengths, torch::kInt64).view({P, K}), config_.advantage).contiguous();

  data::StepData data;
  const int64_t share = P / config_.updates;
  for (int64_t u = 0; u < config_.updates; ++u)
    data.updates.push_back(collate(groups.data() + u * share, share, advantage.const_data_ptr<double>() + u * share * K,
                                   config_.mask_truncated, shaped, u * share * K));
  const double drawn = static_cast<double>(all.size());
  for (auto& [name, value] : stats) value /= drawn / static_cast<double>(P * K);  // a mean of each draw → of all
  stats["reward/mean"] = mean(all);
  stats["reward/std"] = deviation(all);
  stats["entropy/mean"] = mean(entropy);
  stats["entropy/std"] = deviation(entropy);
  stats["length/mean"] = mean(length);
  stats["length/truncated"] = truncated / drawn;
  stats["groups/flat"] = flat / (drawn / static_cast<double>(K));
  stats["generated"] = generated;
  stats.insert(shaped.stats.begin(), shaped.stats.end());
  data.stats = std::move(stats);
  return data;
}

std::map<std::string, torch::Tensor> RolloutSource::state() const {
  std::map<std::string, Tensor> state{{"taken", torch::tensor({taken_}, torch::kInt64)}};
  if (ares_) state["ares"] = torch::tensor(ares_->state(), torch::kFloat64);
  return state;
}

void RolloutSource::restore(const std::map<std::string, torch::Tensor>& state) {
  taken_ = state.at("taken").item<int64_t>();
  if (!ares_) return;
  const auto found = state.find("ares");
  if (found == state.end())
    throw std::runtime_error(
        "rollout.ares: the checkpoint stands in a phase without it; take it out, or start the phase anew");
  const Tensor& ares = found->second;
  ares_->restore({ares.const_data_ptr<double>(), ares.const_data_ptr<double>() + ares.numel()});
}

void RolloutSource::observe(const std::map<std::string, double>& seen) {
  if (!ares_) return;
  for (int d = 0; d < kDifficulties; ++d)
    if (const auto found = seen.find(std::string("ref_kl/") + kDifficultyNames[d]); found != seen.end())
      ares_->measured(static_cast<Difficulty>(d), found->second);
}

}  // namespace isentrope::rl
