#include "csrc/train/evaluation.h"

#include <algorithm>
#include <cmath>

#include "csrc/data/collate.h"
#include "csrc/data/text_stream.h"
#include "csrc/methods/preference.h"
#include "csrc/rl/conversation.h"
#include "csrc/rl/pass_at.h"
#include "csrc/rl/prompt.h"
#include "csrc/rl/reference_logprob.h"
#include "csrc/rl/shared_rollout.h"
#include "csrc/rl/text_rules.h"
#include "csrc/train/chat_template.h"
#include "csrc/train/prefix.h"
#include "csrc/train/probe.h"

namespace isentrope::train {
namespace {

struct Answers {
  std::vector<double> right;                     // [prompts · samples], 1 or 0
  std::vector<double> lengths;                   // [prompts · samples], tokens
  std::vector<double> entropies;                 // [prompts · samples], sum over tokens
  double entropy = 0;                            // mean over tokens
  double unscored = 0;                           // answers
  std::vector<Sample> shown;                     // the first to each of the first prompts
  rl::Kept drawn;                                // prompts and completions
  std::vector<int64_t> classes;                  // of each prompt, where a probe told
  std::optional<model::PruneConfig> prune = {};  // with its layer
};

Answers answer(const model::Decoder& model, const data::Tokenizer& tokenizer,
               const std::vector<data::Example>& examples, const rl::RewardSum& score, rl::SamplingConfig sampling,
               int64_t samples, const rl::CacheConfig& cache, int64_t show, std::vector<Answer>* told,
               const rl::Peers& peers, const EvaluationConfig& config, const Probe* probe = nullptr) {
  const rl::RolloutKey key{.evaluation = true};
  std::vector<std::vector<int64_t>> prompts;
  for (const data::Example& one : examples) {
    const data::Example example = rl::opened(one, sampling, key, std::ssize(prompts));
    prompts.push_back(rl::encode_prompt(config.repeat_prompt ? rl::read_twice(example) : example, tokenizer,
                                        model->config().max_position_embeddings));
  }
  if (sampling.prune && !prompts.empty()) sampling.prune = model::with_layer(*sampling.prune, model, prompts);
  std::optional<std::vector<int64_t>> classes;
  if (probe) classes = probe->classes(hidden_of(model, prompts));
  rl::RolloutCounts counts;
  auto completions = classes ? rollout_by_class(*probe, *classes, model, prompts, samples, sampling,
                                                tokenizer.end_ids(), key, cache, &counts, peers)
                             : rl::rollout(model, prompts, std::vector<int64_t>(prompts.size(), samples), sampling,
                                           tokenizer.end_ids(), key, cache, {}, &counts, peers, examples);
  std::vector<std::string> prompt_text;
  std::vector<rl::Answer> text;
  std::vector<data::Example> example_of;
  for (const rl::Completion& completion : completions) {
    example_of.push_back(examples[completion.prompt]);
    prompt_text.push_back(example_of.back().prompt);
    text.push_back(rl::answer_of(completion, tokenizer));
  }
  rl::Rewards rewards = score(prompt_text, text, example_of);
  if (peers.size() > 1) rl::gather(peers, completions, rewards, counts);

  Answers answers;
  answers.prune = sampling.prune;
  double tokens = 0;
  for (const rl::Completion& completion : completions) {
    answers.lengths.push_back(static_cast<double>(completion.tokens.size()));
    tokens += answers.lengths.back();
    answers.entropies.push_back(0);
    for (float H : completion.entropy) answers.entropy += H, answers.entropies.back() += H;
  }
  const std::vector<std::optional<double>>& scores = rewards.first;
  const auto prompt_of = [&](size_t i) { return examples[completions[i].prompt].prompt; };
  for (const auto& one : scores) answers.right.push_back(rl::is_right(one)), answers.unscored += !one;
  for (size_t i = 0; told && i < completions.size(); ++i)
    told->push_back({completions[i].prompt, prompt_of(i), completions[i], prompts[completions[i].prompt],
                     sampling.temperature == 0, scores[i]});
  for (size_t i = 0; i < completions.size() && completions[i].prompt < show; i += static_cast<size_t>(samples)) {
    const rl::Completion& completion = completions[i];
    answers.shown.push_back({.prompt = prompt_of(i),
                             .tokens = data::texts_of(tokenizer, completion.tokens),
                             .entropy = {completion.entropy.begin(), completion.entropy.end()},
                             .right = answers.right[i] > 0});
  }
  answers.entropy /= std::max(tokens, 1.0);
  if (classes) answers.classes = *classes;
  answers.drawn.prompts = std::move(prompts);
  for (size_t p = 1; p <= answers.drawn.prompts.size(); ++p)
    answers.drawn.groups.push_back(static_cast<int64_t>(p) * samples);
  answers.drawn.completions = std::move(completions);
  return answers;
}

// Mean over prompts of the entropy of the differential information of their n answers, each drawn at that temperature.
double information(const rl::Kept& drawn, const rl::Reference& reference, double temperature, int64_t n,
                   const rl::Peers& peers) {
  const torch::Tensor by_reference =
      rl::reference_logprob(drawn, reference, temperature, /*updates=*/drawn.size(), peers)
          .sum(1, false, torch::kFloat64);
  torch::Tensor own = torch::zeros_like(by_reference);
  for (size_t i = 0; i < drawn.completions.size(); ++i)
    for (const float l : drawn.completions[i].logprob) own.mutable_data_ptr<double>()[i] += l;
  return methods::differential_information(own.view({-1, n}), by_reference.view({-1, n})).mean().item<double>();
}

double mean(const std::vector<double>& x) {
  double sum = 0;
  for (double value : x) sum += value;
  return x.empty() ? 0.0 : sum / static_cast<double>(x.size());
}

// [prompts · samples] → [prompts], sums over the samples of a prompt.
std::vector<double> by_prompt(const std::vector<double>& x, int64_t samples) {
  std::vector<double> sums(x.size() / static_cast<size_t>(samples), 0.0);
  for (size_t i = 0; i < x.size(); ++i) sums[i / static_cast<size_t>(samples)] += x[i];
  return sums;
}

Interval of_share(const std::vector<double>& right, int64_t samples) {
  std::vector<double> shares = by_prompt(right, samples);
  for (double& share : shares) share /= static_cast<double>(samples);
  Interval interval = wilson_of_groups(shares, samples);
  interval.n = std::to_string(shares.size()) + " prompts" + (samples > 1 ? " x " + std::to_string(samples) : "");
  return interval;
}

// Of conversations what a step has as turns/…, and the means of the environment's scores.
void tell_turns(const std::vector<rl::Completion>& completions, Evaluation& found) {
  rl::TurnTally tally;
  Evaluation turns;
  for (const rl::Completion& one : completions) {
    tally.add(one);
    for (const auto& [name, score] : one.scores)
      if (name != "limit") turns["score/" + name] += score / static_cast<double>(completions.size());
  }
  tally.tell(turns);
  for (const auto& [name, value] : turns) found["eval/" + name] = value;
}

std::vector<rl::RewardConfig> first_of(const std::vector<rl::RewardConfig>& rewards) {
  rl::RewardConfig first = rewards.empty() ? rl::RewardConfig{.kind = "exact"} : rewards.front();
  first.weight = 1;
  return {first};
}

}  // namespace

HeldOutPrompts::HeldOutPrompts(const data::DataConfig& data, const std::vector<rl::RewardConfig>& rewards,
                               const std::map<std::string, rl::RewardFunction>& custom,
                               const data::Tokenizer& tokenizer, data::Split split, int64_t context,
                               const rl::SamplingConfig& rollouts, const rl::CacheConfig& cache, int64_t loss_rows)
    : tokenizer_(tokenizer),
      score_(first_of(rewards), tokenizer.eos(), custom),
      rollouts_(rollouts),
      cache_(cache),
      learnt_{.tokenizer = &tokenizer, .context = context, .learnt = true, .truncation = data.truncation},
      loss_rows_(loss_rows),
      split_(split) {
  cache_.dtype = "model";  // the policy itself is measured
  const rl::RewardConfig judge = first_of(rewards).front();
  const data::Use use{.tokenizer = &tokenizer,
                      .context = context,
                      .learnt = false,
                      .truncation = data.truncation,
                      .also =
                          [&](const data::Example& example) {
                            if (loss_rows_ > 0 && !example.completion.empty()) data::fits(example, learnt_);
                            return rl::example_problem(judge, example, tokenizer.eos());
                          },
                      .columns = rl::reads_columns({judge}),
                      .chat = renderer_of(data, tokenizer)};
  if (!data.tint) {
    parts_.push_back({"", data::make_source(data, /*seed=*/0, split, &use)});
    return;
  }
  std::vector<int64_t> sizes = data.tint->terms;
  more_ = "; data.tint.held_out is " + std::to_string(data.tint->held_out) + ", and few different problems make fewer";
  std::sort(sizes.begin(), sizes.end());
  sizes.erase(std::unique(sizes.begin(), sizes.end()), sizes.end());
  if (data.tint->mix == "batch") sizes = {sizes.back()};
  for (const int64_t size : sizes) {
    data::DataConfig one = data;
    one.tint->terms = {size};
    parts_.push_back({sizes.size() > 1 ? std::to_string(size) : "", data::make_source(one, /*seed=*/0, split, &use)});
  }
}

HeldOutSize HeldOutPrompts::size() const {
  HeldOutSize sum;
  for (const Part& part : parts_) {
    sum.examples += part.source->size();
    sum.left_out += part.source->left_out();
    sum.skipped += part.source->skipped();
    for (const std::string& note : part.source->notes()) sum.notes.push_back(note);
  }
  return sum;
}

std::vector<std::string> HeldOutPrompts::shortages(const EvaluationConfig& config, const std::string& section) const {
  std::string text;
  for (const auto& [key, asked] : {std::pair{"prompts", config.prompts}, {"sampled_prompts", config.sampled_prompts}}) {
    int64_t used = 0;
    for (size_t part = 0; part < parts_.size(); ++part) used += take_of(part, asked);
    if (used == asked) continue;
    if (!text.empty()) {
      text += "; so are the " + std::to_string(asked) + " of " + key;
      continue;
    }
    text = section + "." + key + ": " + std::to_string(asked) + " are asked for, and the " + data::name_of(split_) +
           " data have " + std::to_string(used) + ", which are all used" + more_;
  }
  if (text.empty()) return {};
  return {text};
}

// As many of each part. A list that is shorter than asked for is used whole, once; a stream of training examples may have no end.
int64_t HeldOutPrompts::take_of(size_t part, int64_t count) const {
  const auto parts = static_cast<int64_t>(parts_.size()), i = static_cast<int64_t>(part);
  const int64_t own = (count + parts - 1 - i) / parts, size = parts_[part].source->size();
  return size > 0 || split_ != data::Split::train ? std::min(own, size) : own;
}

std::vector<data::Example> HeldOutPrompts::take(int64_t count, std::vector<size_t>* part_of) const {
  std::vector<data::Example> examples;
  for (size_t i = 0; i < parts_.size(); ++i) {
    const auto some = parts_[i].source->take(0, take_of(i, count));
    examples.insert(examples.end(), some.begin(), some.end());
    if (part_of) part_of->insert(part_of->end(), some.size(), i);
  }
  return examples;
}

// nullopt where no example has a completion that counts.
std::optional<double> HeldOutPrompts::loss(const model::Decoder& model, const std::vector<data::Example>& examples,
                                           Interval* interval, const rl::Peers& peers) const {
  torch::NoGradGuard no_grad;
  model::Decoder decoder = model;
  std::vector<data::Example> learnt;
  for (const data::Example& example : examples)
    if (!example.completion.empty() && data::fits(example, learnt_)) learnt.push_back(example);
  double tokens = 0;
  std::vector<double> nats;                // of a batch
  std::vector<double> nats_of, tokens_of;  // an example
  for (auto first = learnt.begin(); first != learnt.end();) {
    const auto last = first + std::min<int64_t>(loss_rows_, learnt.end() - first);
    const data::Batch batch =
        data::collate({first, last}, tokenizer_, learnt_.context, learnt_.truncation).to(model->embedding().device());
    const torch::Tensor counts = (batch.target != data::kIgnore).sum(1);  // [B]
    tokens += counts.sum().item<double>();
    first = last;
    const auto number = static_cast<int64_t>(nats.size());
    nats.push_back(0);
    if (number % peers.size() != peers.rank() && !interval) continue;
    const torch::Tensor logprob = judged(decoder, batch).logprob;  // [B, T]
    nats.back() = logprob.sum(torch::kFloat64).item<double>();
    for (int64_t row = 0; interval && row < batch.size(); ++row) {
      nats_of.push_back(-logprob[row].sum(torch::kFloat64).item<double>());
      tokens_of.push_back(counts[row].item<double>());
    }
  }
  const double sum = -peers.sum_of_turns(nats);
  if (tokens == 0) return std::nullopt;
  if (interval) *interval = normal_of_ratio(nats_of, tokens_of, "completions");
  return sum / tokens;
}

void HeldOutPrompts::prefer(const model::Decoder& model, const std::vector<data::Example>& examples, Evaluation& found,
                            const rl::Peers& peers) const {
  const torch::NoGradGuard no_grad;
  model::Decoder own = model, reference = *reference_;
  std::vector<data::Example> pairs;
  for (const data::Example& example : examples)
    if (example.rejected && data::fits(example, learnt_) && data::fits(*example.rejected, learnt_))
      pairs.push_back(example);
  std::vector<double> margins, in_order;  // of a batch
  for (auto first = pairs.begin(); first != pairs.end();) {
    const auto last = first + std::min<int64_t>(loss_rows_, pairs.end() - first);
    const auto number = static_cast<int64_t>(margins.size());
    margins.push_back(0), in_order.push_back(0);
    if (number % peers.size() == peers.rank()) {
      const data::Batch batch =
          data::collate(data::with_rejected({first, last}), tokenizer_, learnt_.context, learnt_.truncation)
              .to(model->embedding().device());
      const auto sums = [&](model::Decoder& of) {  // [P, 2]
        return judged(of, batch).logprob.sum(1, false, torch::kFloat64).view({-1, 2});
      };
      const torch::Tensor ratio = sums(own) - sums(reference), h = ratio.select(1, 0) - ratio.select(1, 1);
      margins.back() = beta_ * h.sum().item<double>();
      in_order.back() = h.gt(0).sum().item<double>();
    }
    first = last;
  }
  if (pairs.empty()) return;
  const auto count = static_cast<double>(pairs.size());
  found["eval/margin"] = peers.sum_of_turns(margins) / count;
  found["eval/preference"] = peers.sum_of_turns(in_order) / count;
}

Evaluation HeldOutPrompts::evaluate(const model::Decoder& model, const EvaluationConfig& config,
                                    std::vector<Sample>* shown, std::vector<Answer>* answers, Intervals* intervals,
                                    const rl::Peers& peers) const {
  const int64_t most = config.max_new_tokens > 0 ? config.max_new_tokens : rollouts_.max_new_tokens;
  rl::SamplingConfig sampling = rl::with_rules({.temperature = 0,
                                                .top_k = config.top_k,
                                                .top_p = config.top_p,
                                                .min_p = config.min_p,
                                                .repetition_penalty = config.repetition_penalty,
                                                .max_new_tokens = most,
                                                .stop = config.stop.empty() ? rollouts_.stop : config.stop,
                                                .bad_words = config.bad_words,
                                                .conversing = rollouts_.conversing,
                                                .prune = config.prune},
                                               tokenizer_);
  const std::vector<data::Example> prompts = take(config.prompts, nullptr);
  const Answers greedy = answer(model, tokenizer_, prompts, score_, sampling, 1, cache_, 0, answers, peers, config);
  sampling.temperature = config.temperature;
  sampling.prune = greedy.prune;
  std::vector<size_t> part_of;
  const auto sampled_prompts = take(config.sampled_prompts, &part_of);
  const int64_t n = config.num_generations;
  std::optional<Probe> probe;
  if (!config.probe.empty()) probe = load_probe(config.probe, model->config().hidden_size);
  const Answers sampled = answer(model, tokenizer_, sampled_prompts, score_, sampling, n, cache_, config.show, answers,
                                 peers, config, probe ? &*probe : nullptr);
  if (shown) *shown = sampled.shown;

  std::map<int64_t, std::vector<double>> passed;  // k → of each prompt
  std::vector<std::vector<double>> right(parts_.size()), lengths(parts_.size());
  for (size_t p = 0; p < sampled_prompts.size(); ++p) {
    const auto first = sampled.right.begin() + p * n;
    const int64_t c = std::count_if(first, first + n, [](double one) { return one > 0; });
    for (const int64_t k : rl::pass_ks(n)) passed[k].push_back(rl::pass_at(n, c, k));
    right[part_of[p]].insert(right[part_of[p]].end(), first, first + n);
    lengths[part_of[p]].insert(lengths[part_of[p]].end(), sampled.lengths.begin() + p * n,
                               sampled.lengths.begin() + (p + 1) * n);
  }
  Evaluation found{{"eval/greedy", mean(greedy.right)},
                   {"eval/sampled", mean(sampled.right)},
                   {"eval/entropy", sampled.entropy},
                   {"eval/length", mean(sampled.lengths)}};
  for (int64_t c = 0; c < 3 && !sampled.classes.empty(); ++c)
    found[std::string("eval/probe/") + kProbeClasses[c]] =
        static_cast<double>(std::count(sampled.classes.begin(), sampled.classes.end(), c)) /
        static_cast<double>(sampled.classes.size());
  if (greedy.unscored + sampled.unscored > 0)
    found["eval/unscored"] =
        (greedy.unscored + sampled.unscored) / static_cast<double>(greedy.right.size() + sampled.right.size());
  if (sampling.conversing) tell_turns(sampled.drawn.completions, found);
  if (reference_ && !config.prune) {
    prefer(model, prompts, found, peers);
    if (!sampled_prompts.empty())
      found["eval/information"] = information(sampled.drawn, {*reference_}, config.temperature, n, peers);
  }
  Interval of_loss;
  if (loss_rows_ > 0 && !config.prune)
    if (const auto nats = loss(model, prompts, intervals ? &of_loss : nullptr, peers)) found["eval/loss"] = *nats;
  for (const auto& [k, chances] : passed) found["eval/pass@" + std::to_string(k)] = mean(chances);
  for (size_t i = 0; i < parts_.size() && parts_.size() > 1; ++i) {
    found["eval/sampled/" + parts_[i].size] = mean(right[i]);
    found["eval/length/" + parts_[i].size] = mean(lengths[i]);
  }
  if (!intervals || prompts.empty() || sampled_prompts.empty()) return found;

  const std::vector<double> tokens = by_prompt(sampled.lengths, n), samples(tokens.size(), static_cast<double>(n));
  *intervals = {{"eval/greedy", of_share(greedy.right, 1)},
                {"eval/sampled", of_share(sampled.right, n)},
                {"eval/entropy", normal_of_ratio(by_prompt(sampled.entropies, n), tokens, "prompts")},
                {"eval/length", normal_of_ratio(tokens, samples, "prompts")}};
  for (const auto& [k, chances] : passed) {
    Interval& interval = (*intervals)["eval/pass@" + std::to_string(k)] = wilson_of_groups(chances, n);
    interval.n = intervals->at("eval/sampled").n;
  }
  for (size_t i = 0; i < parts_.size() && parts_.size() > 1; ++i)
    (*intervals)["eval/sampled/" + parts_[i].size] = of_share(right[i], n);
  if (found.contains("eval/loss")) (*intervals)["eval/loss"] = of_loss;
  return found;
}

}  // namespace isentrope::train
