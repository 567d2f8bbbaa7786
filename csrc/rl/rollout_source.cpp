#include "csrc/rl/rollout_source.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <stdexcept>

#include "csrc/data/random.h"
#include "csrc/message.h"
#include "csrc/methods/windows.h"
#include "csrc/rl/conversation.h"
#include "csrc/rl/policy_batch.h"
#include "csrc/rl/prompt.h"
#include "csrc/rl/shared_rollout.h"

namespace isentrope::rl {
namespace {

using data::Example;
using torch::Tensor;

// 1 or 0
std::vector<double> right_or_wrong(const std::vector<std::optional<double>>& scores) {
  std::vector<double> right;
  for (const auto& score : scores) right.push_back(is_right(score));
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

RolloutSource::RolloutSource(const RolloutConfig& config, const model::Decoder& model, const data::Tokenizer& tokenizer,
                             std::shared_ptr<const data::ExampleSource> examples, RewardSum reward, Methods methods,
                             uint64_t seed, SaveRollouts save, std::shared_ptr<const Peers> peers,
                             std::optional<Reference> reference)
    : config_(config),
      model_(model),
      tokenizer_(tokenizer),
      examples_(std::move(examples)),
      reward_(std::move(reward)),
      methods_(std::move(methods)),
      selection_(methods_.selection()),
      seed_(seed),
      save_(std::move(save)),
      peers_(std::move(peers)) {
  if (const std::string kind = methods_.needs_reference(); !kind.empty()) {
    if (!reference)
      throw std::invalid_argument(
          "reward, " + kind +
          ": it measures completions against a reference, and there is none; wanted a reference model");
    reference_ = std::move(reference);
  }
  for (Shaping& one : methods_.reward) bind(one, tokenizer_);
  for (methods::Advantage& one : methods_.advantage) bind(one, tokenizer_);
  config_.sampling.sum_p2 = config_.sampling.sum_p2 || methods::Chain(methods_.advantage).any([]<class M>(const M&) {
    return requires { M::kNeedsSumP2; };
  });
  if (methods_.advantage.empty()) methods_.advantage.emplace_back(methods::Grpo());
  whole_.shaping = methods::Chain(methods_.reward);
  whole_.advantage = methods::Chain(methods_.advantage);
  pending_ = whole_;
}

// ---- a step -------------------------------------------------------------------------------------------------------

struct RolloutSource::Drawn {
  int64_t first = 0;  // number of the first prompt in the stream
  std::vector<Example> examples;
  std::vector<std::vector<int64_t>> prompts;  // tokens
  std::vector<int64_t> samples;               // of each prompt
  std::vector<Completion> completions;
  Groups groups{0};  // of completions, one a prompt
  RolloutCounts counts;
  std::vector<double> greedy;  // of each prompt, the reward of its greedy completion; where an estimator asks
  Rewards rewards;
  std::vector<double> right;  // 1 or 0 of each completion
  std::vector<Answer> answers;
};

// Over everything that a step drew. rewards, thresholds and samples are of the first sequence of each tree, which no branch bends.
struct RolloutSource::Tally {
  std::vector<double> rewards, entropy, length, thresholds, samples, spread;  // spread: of rewards, of each group
  std::vector<double> ended, cut;                                             // lengths
  std::map<std::string, std::pair<double, double>> scores;  // of each reward: sum, and completions that it applies to
  std::map<std::string, double> timeouts;
  RolloutCounts counts;
  TurnTally turns;  // of conversations
  double truncated = 0, flat = 0, prompts = 0, draws = 0;
};

data::StepData RolloutSource::next(int64_t step) {
  pending_ = whole_;
  const std::optional<Branching> branching = this->branching();
  data::StepData data;
  Kept kept;
  Tally tally;
  SavedStep saved;
  const bool saves = save_ && config_.save_every > 0 && (step + 1) % config_.save_every == 0;
  const double most_draws = selection_ ? static_cast<double>(selection_->draws) : 1;
  const bool greedy = pending_.advantage.any([]<class M>(const M&) {
    return requires { M::kNeedsGreedy; };
  });
  for (; kept.size() < config_.prompts && tally.draws < most_draws; ++tally.draws) {
    Drawn drawn = draw(step, branching);
    score(drawn);
    if (greedy) drawn.greedy = greedy_rewards(drawn);
    this->tally(drawn, tally);
    warn(drawn, data.warnings);
    keep(drawn, kept, tally, saves ? &saved : nullptr);
  }
  count_empty_step(kept.size());

  for (const auto& [name, scores] : tally.scores) data.stats[name] = scores.first / scores.second;
  data.stats.insert(tally.timeouts.begin(), tally.timeouts.end());
  if (pending_.empty == 0) {
    methods::Completions seen =
        completions_of(kept, reward_.first_weight(), config_.sampling.max_new_tokens, config_.mask_truncated);
    seen.step = step;
    if (reference_)
      seen.ref_logprob =
          reference_logprob(kept, *reference_, config_.sampling.temperature, config_.mini_batches, *peers_);
    pending_.shaping.apply(seen, data.stats);
    estimate(seen, kept, pending_.advantage, data.stats);
    data.updates = policy_batches(kept, seen, config_.mini_batches, config_.epochs);
    tell_health(data.updates, data.stats);
    if (saves) saved.learnt(seen, data.updates);
    if (config_.draws_second()) draw_second(step, config_.second(mean(tally.entropy)), kept, data, tally);
  }
  if (!tally.thresholds.empty()) {
    const double seen = mean(tally.thresholds), decay = config_.branch->decay;
    pending_.threshold = pending_.threshold ? decay * *pending_.threshold + (1 - decay) * seen : seen;
  }
  tell(tally, kept.size(), branching, data.stats);
  if (saves) save_(step, saved.rollouts);
  return data;
}

void RolloutSource::commit() { whole_ = pending_; }

std::optional<Branching> RolloutSource::branching() const {
  const auto& branch = config_.branch;
  if (!branch || !pending_.threshold) return std::nullopt;
  return Branching{.threshold = *pending_.threshold,
                   .window = branch->window,
                   .sequences = branch->sequences > 0 ? branch->sequences : 2 * config_.num_generations,
                   .tokens = branch->tokens};
}

std::vector<int64_t> RolloutSource::samples_of(const std::vector<Example>& examples) const {
  const int64_t K = config_.num_generations, P = static_cast<int64_t>(examples.size());
  if (!config_.allocation) return std::vector<int64_t>(P, K);
  std::vector<double> shares;
  for (const Example& example : examples) shares.push_back(pending_.record.share(example.prompt));
  return allocate(shares, P * K, config_.allocation->least, config_.most_samples());
}

RolloutSource::Drawn RolloutSource::draw(int64_t step, const std::optional<Branching>& branching) {
  Drawn drawn;
  drawn.first = pending_.taken;
  drawn.examples = examples_->take(pending_.taken, config_.prompts);
  const RolloutKey key{.seed = seed_, .step = step, .first_prompt = drawn.first};
  for (const Example& example : drawn.examples)
    drawn.prompts.push_back(encode_prompt(opened(example, config_.sampling, key, std::ssize(drawn.prompts)), tokenizer_,
                                          model_->config().max_position_embeddings));
  drawn.samples = samples_of(drawn.examples);
  drawn.completions = rollout(model_, drawn.prompts, drawn.samples, config_.sampling, tokenizer_.end_ids(), key,
                              config_.cache, branching, &drawn.counts, *peers_, drawn.examples);
  pending_.taken += config_.prompts;
  return drawn;
}

// Completions and their scores: those that this process drew, then those of all.
void RolloutSource::score(Drawn& drawn) const {
  const auto answers = [&] {
    drawn.answers.clear();
    for (const Completion& completion : drawn.completions) drawn.answers.push_back(answer_of(completion, tokenizer_));
  };
  answers();
  std::vector<std::string> prompts;
  std::vector<Example> examples;
  for (const Completion& completion : drawn.completions) {
    examples.push_back(drawn.examples[completion.prompt]);
    prompts.push_back(examples.back().prompt);
  }
  drawn.rewards = reward_(prompts, drawn.answers, examples);
  if (peers_->size() > 1) {
    gather(*peers_, drawn.completions, drawn.rewards, drawn.counts);
    answers();
  }
  for (size_t i = 0; i < drawn.completions.size(); ++i)
    if (i + 1 == drawn.completions.size() || drawn.completions[i + 1].prompt != drawn.completions[i].prompt)
      drawn.groups.push_back(static_cast<int64_t>(i) + 1);
  drawn.right = right_or_wrong(drawn.rewards.first);
}

// Each process draws and scores all of them: so all have the same, whatever their number.
std::vector<double> RolloutSource::greedy_rewards(const Drawn& drawn) const {
  SamplingConfig greedy = config_.sampling;
  greedy.temperature = 0;
  const std::vector<Completion> completions =
      rollout(model_, drawn.prompts, std::vector<int64_t>(drawn.prompts.size(), 1), greedy, tokenizer_.end_ids(),
              {.seed = seed_}, config_.cache, {}, nullptr, Peers(), drawn.examples);
  std::vector<Answer> answers;
  std::vector<std::string> prompts;
  for (const Completion& one : completions) {
    answers.push_back(answer_of(one, tokenizer_));
    prompts.push_back(drawn.examples[one.prompt].prompt);
  }
  return reward_(prompts, answers, drawn.examples).total;
}

void RolloutSource::draw_second(int64_t step, const SecondSet& set, const Kept& kept, data::StepData& data,
                                Tally& tally) const {
  SamplingConfig sampling = config_.sampling;
  sampling.temperature = set.temperature;
  Drawn drawn;
  drawn.examples = kept.examples, drawn.prompts = kept.prompts;
  drawn.samples.assign(kept.prompts.size(), set.num_generations);
  const uint64_t seed = data::Stream(seed_, data::Purpose::rollout, /*a=*/1).bits();  // not that of the first set
  drawn.completions = rollout(model_, drawn.prompts, drawn.samples, sampling, tokenizer_.end_ids(),
                              {.seed = seed, .step = step}, config_.cache, {}, &drawn.counts, *peers_, drawn.examples);
  score(drawn);
  tally.counts += drawn.counts;
  data.stats[set.name + "/temperature"] = sampling.temperature;
  data.stats[set.name + "/reward"] = mean(drawn.rewards.total);
  Kept second;
  second.prompts = std::move(drawn.prompts), second.groups = drawn.groups;
  second.completions = std::move(drawn.completions), second.rewards = drawn.rewards.total;
  second.right = {drawn.right.begin(), drawn.right.end()};
  methods::Completions c = completions_of(second, 1, config_.sampling.max_new_tokens, config_.mask_truncated);
  c.advantage = (set.coef * c.reward).unsqueeze(1).to(torch::kFloat32) * c.mask;
  const std::vector<data::Batch> batches = policy_batches(second, c, config_.mini_batches);
  for (size_t u = 0; u < data.updates.size(); ++u)
    data.updates[u].second = std::make_shared<const data::Batch>(batches[u % batches.size()]);
}

void RolloutSource::tally(const Drawn& drawn, Tally& tally) const {
  tally.prompts += static_cast<double>(config_.prompts);
  tally.counts += drawn.counts;
  for (const Completion& completion : drawn.completions) {
    tally.length.push_back(static_cast<double>(completion.tokens.size()));
    tally.truncated += !completion.stopped;
    if (config_.sampling.conversing) tally.turns.add(completion);
    (completion.stopped ? tally.ended : tally.cut).push_back(tally.length.back());
    tally.entropy.insert(tally.entropy.end(), completion.entropy.begin() + completion.begin, completion.entropy.end());
    if (config_.branch && completion.parent < 0)
      if (const auto windows = methods::window_means(completion.entropy, config_.branch->window); !windows.empty())
        tally.thresholds.push_back(methods::quantile(windows, config_.branch->quantile));
  }
  for (const auto& [name, scores] : drawn.rewards.scores)
    for (const auto& score : scores)
      if (score) tally.scores[name].first += *score, ++tally.scores[name].second;
  for (const auto& [name, count] : drawn.rewards.timeouts) tally.timeouts[name] += count;
}

void RolloutSource::warn(const Drawn& drawn, std::vector<std::string>& warnings) {
  bool timed_out = false;
  for (const auto& [name, count] : drawn.rewards.timeouts) {
    timed_out = timed_out || count > 0;
    if (count == 0 || (pending_.told & kTimedOut)) continue;
    warnings.push_back("reward: the function of " + name.substr(name.find('/') + 1) +
                       " took longer than timeout_s over " + std::to_string(drawn.completions.size()) +
                       " completions, the first of them to the prompt " +
                       isentrope::quoted(drawn.examples.front().prompt) +
                       ", and was ended; they have no score by it (" + name + " counts them)");
  }
  if (timed_out) pending_.told |= kTimedOut;
  if (!drawn.rewards.unscored || (pending_.told & kUnscored)) return;
  const size_t i = *drawn.rewards.unscored;
  warnings.push_back("reward: none has a score for the completion " + isentrope::quoted(drawn.answers[i].text) +
                     " to the prompt " + isentrope::quoted(drawn.examples[drawn.completions[i].prompt].prompt) +
                     "; its reward is 0, as that of all others of this kind");
  pending_.told |= kUnscored;
}

void RolloutSource::keep(Drawn& drawn, Kept& kept, Tally& tally, SavedStep* saved) {
  const std::vector<bool> differs = selection_ ? selection_->keep({drawn.rewards.total, drawn.right, drawn.groups})
                                               : methods::keep_groups(drawn.rewards.total, drawn.groups);
  const std::vector<double> weights = reward_.weights();
  kept.scores.resize(weights.size());
  kept.weights = weights;
  for (int64_t p = 0; p < config_.prompts; ++p) {
    int64_t right = 0;
    for (int64_t i = drawn.groups[p]; i < drawn.groups[p + 1]; ++i)
      if (drawn.completions[i].parent < 0) {
        tally.rewards.push_back(drawn.rewards.total[i]);
        right += drawn.right[i] > 0;
      }
    tally.samples.push_back(static_cast<double>(drawn.samples[p]));
    tally.spread.push_back(deviation({tally.rewards.end() - drawn.samples[p], tally.rewards.end()}));
    if (config_.allocation)
      pending_.record.add(drawn.examples[p].prompt, right, drawn.samples[p], config_.allocation->decay);
    tally.flat += !differs[p];
    const int64_t begin = drawn.groups[p], end = drawn.groups[p + 1];
    if (saved)
      saved->add(drawn.first + p, drawn.examples[p].prompt, drawn.completions, begin, end, drawn.rewards,
                 config_.branch.has_value());
    if (kept.size() == config_.prompts || (selection_ && !differs[p])) continue;
    const auto moved = static_cast<int64_t>(kept.completions.size()) - drawn.groups[p];
    for (int64_t i = drawn.groups[p]; i < drawn.groups[p + 1]; ++i) {
      Completion& completion = drawn.completions[i];
      if (completion.parent >= 0) completion.parent += moved;
      for (size_t r = 0; r < weights.size(); ++r) {
        const std::optional<double>& score = drawn.rewards.scores[r].second[i];
        kept.scores[r].push_back(score.value_or(std::numeric_limits<double>::quiet_NaN()));
      }
      if (saved) (saved->rollouts.end() - end + i)->row = static_cast<int64_t>(kept.completions.size());
      kept.rewards.push_back(drawn.rewards.total[i]);
      kept.right.push_back(drawn.right[i] > 0);
      kept.completions.push_back(std::move(completion));
    }
    kept.prompts.push_back(std::move(drawn.prompts[p]));
    if (config_.draws_second()) kept.examples.push_back(drawn.examples[p]);
    if (!drawn.greedy.empty()) kept.greedy.push_back(drawn.greedy[p]);
    kept.groups.push_back(static_cast<int64_t>(kept.completions.size()));
  }
}

void RolloutSource::count_empty_step(int64_t groups) {
  pending_.empty = groups < config_.mini_batches ? pending_.empty + 1 : 0;
  if (pending_.empty == 0 || !selection_ || pending_.empty < selection_->empty_steps) return;
  throw std::runtime_error("reward, " + selection_->kind + ": " + std::to_string(pending_.empty) +
                           " steps in a row of " + std::to_string(selection_->draws) + " batches of " +
                           std::to_string(config_.prompts) + " prompts each found too few groups " +
                           selection_->wanted + " to make an update of; " + selection_->advice);
}

void RolloutSource::tell(const Tally& tally, int64_t groups, const std::optional<Branching>& branching,
                         std::map<std::string, double>& stats) const {
  stats["reward/mean"] = mean(tally.rewards);
  stats["reward/std"] = deviation(tally.rewards);
  stats["entropy/mean"] = mean(tally.entropy);
  stats["entropy/std"] = deviation(tally.entropy);
  stats["length/mean"] = mean(tally.length);
  if (!tally.ended.empty()) stats["length/ended"] = mean(tally.ended);
  if (!tally.cut.empty()) stats["length/cut"] = mean(tally.cut);
  stats["reward/group_std"] = mean(tally.spread);
  stats["length/truncated"] = tally.truncated / static_cast<double>(tally.length.size());
  stats["groups/flat"] = tally.flat / tally.prompts;
  if (selection_) {
    stats["groups/kept"] = static_cast<double>(groups);
    stats["groups/empty_steps"] = static_cast<double>(pending_.empty);
  }
  if (branching) stats["branch/threshold"] = branching->threshold;
  if (config_.branch) {
    stats["branch/kept"] = static_cast<double>(tally.counts.branches) / tally.prompts;
    stats["branch/dropped"] = static_cast<double>(tally.counts.dropped) / tally.prompts;
  }
  if (config_.allocation) stats["samples/std"] = deviation(tally.samples);
  if (config_.cache.cache_tokens > 0) stats["cache/preempted"] = static_cast<double>(tally.counts.preempted);
  tally.turns.tell(stats);
  stats["generated"] = static_cast<double>(tally.counts.drawn);
}

// ---- from step to step --------------------------------------------------------------------------------------------

std::map<std::string, torch::Tensor> RolloutSource::state() const {
  std::map<std::string, Tensor> state{{"taken", torch::tensor({whole_.taken, whole_.empty}, torch::kInt64)}};
  whole_.shaping.save("reward", state);
  whole_.advantage.save("advantage", state);
  if (whole_.told) state["told"] = torch::tensor({whole_.told}, torch::kInt64);
  if (whole_.threshold) state["branch"] = torch::tensor({*whole_.threshold}, torch::kFloat64);
  if (config_.allocation) {
    const PassRecord::State record = whole_.record.state();
    state["record/prompt"] = torch::tensor(record.prompt, torch::kInt64);
    state["record/right"] = torch::tensor(record.right, torch::kFloat64);
    state["record/answers"] = torch::tensor(record.answers, torch::kFloat64);
  }
  return state;
}

void RolloutSource::restore(const std::map<std::string, torch::Tensor>& state) {
  const auto values = [&]<class T>(const char* name, T) {
    const auto found = state.find(name);
    if (found == state.end())
      throw std::runtime_error("rollout: the checkpoint has no " + std::string(name) +
                               "; it stands in a phase without rollouts, so start this phase anew");
    const Tensor& x = found->second;
    return std::vector<T>(x.const_data_ptr<T>(), x.const_data_ptr<T>() + x.numel());
  };
  Passed passed = whole_;
  const std::vector<int64_t> taken = values("taken", int64_t{});
  passed.taken = taken.at(0);
  passed.empty = taken.size() > 1 ? taken[1] : 0;
  if (state.contains("told")) passed.told = values("told", int64_t{}).at(0);
  if (state.contains("branch")) passed.threshold = values("branch", double{}).at(0);
  if (config_.allocation && state.contains("record/prompt"))
    passed.record.restore(
        {values("record/prompt", int64_t{}), values("record/right", double{}), values("record/answers", double{})});
  passed.shaping.restore("reward", state);
  passed.advantage.restore("advantage", state);
  whole_ = passed;
  pending_ = std::move(passed);
}

void RolloutSource::observe(const std::map<std::string, double>& seen) { pending_.shaping.observe(seen); }

}  // namespace isentrope::rl
