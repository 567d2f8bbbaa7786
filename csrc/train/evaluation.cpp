#include "csrc/train/evaluation.h"

#include <algorithm>
#include <cmath>

#include "csrc/rl/prompt.h"

namespace isentrope::train {
namespace {

constexpr int64_t kShownTokens = 256;  // of a window of text

struct Answers {
  std::vector<double> right;    // [prompts · samples], 1 or 0
  std::vector<double> lengths;  // [prompts · samples], tokens
  double entropy = 0;           // mean over tokens
  std::vector<Sample> shown;    // the first to each of the first prompts
};

std::vector<std::string> token_texts(const data::Tokenizer& tokenizer, const std::vector<int64_t>& ids) {
  std::vector<std::string> texts;
  for (const int64_t id : ids) texts.push_back(tokenizer.decode({id}));
  return texts;
}

Answers answer(const model::Decoder& model, const data::Tokenizer& tokenizer,
               const std::vector<data::Example>& examples, const rl::RewardSum& score,
               const rl::SamplingConfig& sampling, int64_t samples, const rl::CacheConfig& cache, int64_t show) {
  std::vector<std::vector<int64_t>> prompts;
  for (const data::Example& example : examples)
    prompts.push_back(rl::encode_prompt(example.prompt, tokenizer, model->config().max_position_embeddings));
  const auto completions =
      rl::rollout(model, prompts, samples, sampling, {tokenizer.eos_id()}, {.evaluation = true}, cache);

  Answers answers;
  std::vector<std::string> prompt_text, text;
  std::vector<data::Example> example_of;
  double tokens = 0;
  for (const rl::Completion& completion : completions) {
    example_of.push_back(examples[completion.prompt]);
    prompt_text.push_back(example_of.back().prompt);
    text.push_back(tokenizer.decode(completion.tokens));
    answers.lengths.push_back(static_cast<double>(completion.tokens.size()));
    tokens += answers.lengths.back();
    for (float H : completion.entropy) answers.entropy += H;
  }
  for (double s : score(prompt_text, text, example_of).total) answers.right.push_back(s >= 0.5);
  for (size_t i = 0; i < completions.size() && completions[i].prompt < show; i += static_cast<size_t>(samples)) {
    const rl::Completion& completion = completions[i];
    answers.shown.push_back({.prompt = prompt_text[i],
                             .tokens = token_texts(tokenizer, completion.tokens),
                             .entropy = {completion.entropy.begin(), completion.entropy.end()},
                             .right = answers.right[i] > 0});
  }
  answers.entropy /= std::max(tokens, 1.0);
  return answers;
}

double mean(const std::vector<double>& x) {
  double sum = 0;
  for (double value : x) sum += value;
  return x.empty() ? 0.0 : sum / static_cast<double>(x.size());
}

std::vector<rl::RewardConfig> first_of(const std::vector<rl::RewardConfig>& rewards) {
  rl::RewardConfig first = rewards.empty() ? rl::RewardConfig{.kind = "exact"} : rewards.front();
  first.weight = 1;
  return {first};
}

}  // namespace

HeldOutText::HeldOutText(std::shared_ptr<const data::TokenShard> tokens, const data::Tokenizer& tokenizer,
                         int64_t context, int64_t rows, const std::string& name)
    : tokenizer_(tokenizer),
      windows_(std::move(tokens), context, /*seed=*/0, name),
      bytes_of_(torch::empty({tokenizer.size()}, torch::kInt64)),
      rows_(rows) {
  int64_t* bytes = bytes_of_.data_ptr<int64_t>();  // [V]
  for (int64_t id = 0; id < tokenizer.size(); ++id) bytes[id] = tokenizer.bytes_of(id);
}

Evaluation HeldOutText::evaluate(const model::Decoder& model, const EvaluationConfig& config,
                                 std::vector<Sample>* shown) const {
  torch::NoGradGuard no_grad;
  model::Decoder decoder = model;
  // The first windows of one order: spread over the text, and always the same.
  const int64_t count = std::min(config.windows, windows_.size());
  double nats = 0, tokens = 0, bytes = 0;
  for (int64_t first = 0; first < count; first += rows_) {
    const data::Batch batch = windows_.take(first, std::min(rows_, count - first));
    const torch::Tensor learnt = batch.target.masked_select(batch.target != data::kIgnore);
    tokens += static_cast<double>(learnt.numel());
    bytes += bytes_of_.index_select(0, learnt).sum().item<double>();
    const data::Batch moved = batch.to(model->embedding().device());
    const ops::TokenEntropy judged = decoder->token_entropy(moved.tokens, moved.target);
    nats -= judged.logprob.sum(torch::kFloat64).item<double>();
    for (int64_t row = 0; shown && row < batch.size() && first + row < config.show; ++row) {
      const auto counts = (batch.target[row] != data::kIgnore).nonzero().flatten().slice(0, 0, kShownTokens);
      const auto ids = batch.target[row].index_select(0, counts);                                  // [n]
      const auto entropy = judged.entropy[row].cpu().index_select(0, counts).to(torch::kFloat64);  // [n]
      const int64_t* id = ids.const_data_ptr<int64_t>();
      const double* H = entropy.const_data_ptr<double>();
      shown->push_back(
          {.prompt = "", .tokens = token_texts(tokenizer_, {id, id + ids.numel()}), .entropy = {H, H + ids.numel()}});
    }
  }
  return {{"eval/loss", nats / tokens}, {"eval/bits_per_byte", nats / (std::max(bytes, 1.0) * std::log(2.0))}};
}

HeldOutPrompts::HeldOutPrompts(const data::DataConfig& data, const std::vector<rl::RewardConfig>& rewards,
                               const std::map<std::string, rl::RewardFunction>& custom,
                               const data::Tokenizer& tokenizer, data::Split split, int64_t context,
                               int64_t max_new_tokens, const rl::CacheConfig& cache)
    : tokenizer_(tokenizer),
      score_(first_of(rewards), tokenizer.eos(), custom),
      max_new_tokens_(max_new_tokens),
      cache_(cache) {
  cache_.dtype = "model";  // the policy itself is measured
  const rl::RewardConfig judge = first_of(rewards).front();
  const data::Use use{
      .tokenizer = &tokenizer,
      .context = context,
      .learnt = false,
      .truncation = data.truncation,
      .also = [&](const data::Example& example) { return rl::example_problem(judge, example, tokenizer.eos()); }};
  if (!data.tint) {
    parts_.push_back({"", data::make_source(data, /*seed=*/0, split, &use)});
    return;
  }
  std::vector<int64_t> sizes = data.tint->terms;
  std::sort(sizes.begin(), sizes.end());
  sizes.erase(std::unique(sizes.begin(), sizes.end()), sizes.end());
  if (data.tint->mix == "batch") sizes = {sizes.back()};
  for (const int64_t size : sizes) {
    data::DataConfig one = data;
    one.tint->terms = {size};
    parts_.push_back({sizes.size() > 1 ? std::to_string(size) : "", data::make_source(one, /*seed=*/0, split, &use)});
  }
}

int64_t HeldOutPrompts::size() const {
  int64_t sum = 0;
  for (const Part& part : parts_) sum += part.source->size();
  return sum;
}

int64_t HeldOutPrompts::left_out() const {
  int64_t sum = 0;
  for (const Part& part : parts_) sum += part.source->left_out();
  return sum;
}

// As many of each part. A list that is shorter than asked for is used whole, once.
std::vector<data::Example> HeldOutPrompts::take(int64_t count, std::vector<size_t>* part_of) const {
  std::vector<data::Example> examples;
  const auto parts = static_cast<int64_t>(parts_.size());
  for (int64_t i = 0; i < parts; ++i) {
    const data::ExampleSource& source = *parts_[i].source;
    const auto some = source.take(0, std::min((count + parts - 1 - i) / parts, source.size()));
    examples.insert(examples.end(), some.begin(), some.end());
    if (part_of) part_of->insert(part_of->end(), some.size(), static_cast<size_t>(i));
  }
  return examples;
}

Evaluation HeldOutPrompts::evaluate(const model::Decoder& model, const EvaluationConfig& config,
                                    std::vector<Sample>* shown) const {
  rl::SamplingConfig sampling;
  sampling.max_new_tokens = config.max_new_tokens > 0 ? config.max_new_tokens : max_new_tokens_;

  sampling.temperature = 0;
  const Answers greedy = answer(model, tokenizer_, take(config.prompts, nullptr), score_, sampling, 1, cache_, 0);
  sampling.temperature = config.temperature;
  std::vector<size_t> part_of;
  const auto sampled_prompts = take(config.sampled_prompts, &part_of);
  const int64_t k = config.num_generations;
  const Answers sampled = answer(model, tokenizer_, sampled_prompts, score_, sampling, k, cache_, config.show);
  if (shown) *shown = sampled.shown;

  double solved = 0;
  std::vector<std::vector<double>> right(parts_.size()), lengths(parts_.size());
  for (size_t p = 0; p < sampled_prompts.size(); ++p) {
    const auto first = sampled.right.begin() + p * k;
    solved += *std::max_element(first, first + k);
    right[part_of[p]].insert(right[part_of[p]].end(), first, first + k);
    lengths[part_of[p]].insert(lengths[part_of[p]].end(), sampled.lengths.begin() + p * k,
                               sampled.lengths.begin() + (p + 1) * k);
  }
  Evaluation found{{"eval/greedy", mean(greedy.right)},
                   {"eval/sampled", mean(sampled.right)},
                   {"eval/pass@k", solved / static_cast<double>(std::max<size_t>(sampled_prompts.size(), 1))},
                   {"eval/k", static_cast<double>(k)},
                   {"eval/entropy", sampled.entropy},
                   {"eval/length", mean(sampled.lengths)}};
  for (size_t i = 0; i < parts_.size() && parts_.size() > 1; ++i) {
    found["eval/sampled/" + parts_[i].size] = mean(right[i]);
    found["eval/length/" + parts_[i].size] = mean(lengths[i]);
  }
  return found;
}

}  // namespace isentrope::train
