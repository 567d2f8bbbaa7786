#include "csrc/train/data_check.h"

#include <torch/cuda.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <stdexcept>

#include "csrc/data/corpus.h"
#include "csrc/data/packed_source.h"
#include "csrc/message.h"
#include "csrc/model/page_table.h"
#include "csrc/train/evaluation.h"
#include "csrc/train/trainer.h"

namespace isentrope::train {
namespace {

double number(int64_t value) { return static_cast<double>(value); }

double weights_of(const model::DecoderConfig& m, int64_t vocabulary) {
  const double C = number(m.hidden_size), D = number(m.head_size());
  const double attention = C * D * number(2 * m.num_attention_heads + 2 * m.num_key_value_heads),
               mlp = 3 * C * number(m.intermediate_size);
  return number(m.num_hidden_layers) * (attention + mlp + 2 * C) +
         (m.tie_word_embeddings ? 1 : 2) * number(vocabulary) * C;
}

std::string size(double bytes) {
  char text[32];
  constexpr double kGiB = 1 << 30;
  std::snprintf(text, sizeof(text), bytes < 1e15 ? "%.1f GiB" : "%.2g GiB", bytes / kGiB);
  return text;
}

// What the prompts leave for completions, and what rollout() asks of the cache for the longest of them.
void check_room(const rl::RolloutConfig& rollout, const data::ExampleSource& source, int64_t context,
                const data::Tokenizer& tokenizer) {
  const rl::SamplingConfig& sampling = rollout.sampling;
  const int64_t cache = rollout.cache.cache_tokens;
  if (cache == 0 && sampling.min_new_tokens == 0) return;
  constexpr int64_t kLooked = 1024;  // of a stream without end
  int64_t longest = 0, room = 0;     // of a whole sequence; of a completion, at most
  for (const data::Example& example : source.take(0, source.size() > 0 ? source.size() : kLooked)) {
    const auto prompt = static_cast<int64_t>(tokenizer.encode(example.prompt).size());
    const int64_t left = context - prompt;
    room = std::max(room, left);
    longest =
        std::max(longest, prompt + (sampling.max_new_tokens > 0 ? std::min(sampling.max_new_tokens, left) : left));
  }
  if (sampling.min_new_tokens >= room)
    throw std::runtime_error("rollout.min_new_tokens: " + std::to_string(sampling.min_new_tokens) +
                             ", and the shortest prompt leaves " + std::to_string(room) +
                             " tokens of model.max_position_embeddings: no completion could ever end");
  const int64_t least = (model::pages_of(longest) + 2) * model::kPagePositions;
  if (cache > 0 && cache < least)
    throw std::runtime_error("rollout.cache_tokens: " + std::to_string(cache) + " cannot hold a sequence of " +
                             std::to_string(longest) + " tokens; wanted at least " + std::to_string(least) +
                             ", or 0 for as many as are generated at a time");
}

// The examples of the phase as its use of them wants them.
void check_training(const TrainConfig& config, const PhaseConfig& phase, const data::Tokenizer& tokenizer,
                    std::vector<std::string>& notes) {
  if (phase.data.corpus) {
    std::vector<std::string> left_out;
    data::find_files(*phase.data.corpus, &left_out);
    if (!left_out.empty())
      notes.push_back("phase " + phase.name + ": " + std::to_string(left_out.size()) +
                      " entries of the corpus are no regular files and are left out, such as " +
                      excerpt(left_out.front()));
    data::PackedSource(data::open_corpus(*phase.data.corpus, tokenizer, data::Split::train), phase.batch.sequences,
                       config.model.max_position_embeddings, /*seed=*/0);
    return;
  }
  const data::Use use = use_of(config, phase, tokenizer);
  const auto source = data::make_source(phase.data, /*seed=*/0, data::Split::train, &use);
  if (source->left_out() > 0)
    notes.push_back("phase " + phase.name + ": " + std::to_string(source->left_out()) + " of " +
                    std::to_string(source->left_out() + source->size()) +
                    " training examples are too long for model.max_position_embeddings (" +
                    std::to_string(config.model.max_position_embeddings) +
                    ") and are left out (data.truncation: drop)");
  if (phase.rollout) check_room(*phase.rollout, *source, config.model.max_position_embeddings, tokenizer);
}

void check_held_out(const TrainConfig& config, const PhaseConfig& phase, const data::Tokenizer& tokenizer,
                    const std::map<std::string, rl::RewardFunction>& rewards, data::Split split,
                    std::vector<std::string>& notes) {
  const auto held_out = held_out_of(config, phase, tokenizer, split, rewards);
  const auto* prompts = dynamic_cast<const HeldOutPrompts*>(held_out.get());
  if (!prompts || prompts->left_out() == 0) return;
  notes.push_back("phase " + phase.name + ": " + std::to_string(prompts->left_out()) + " of " +
                  std::to_string(prompts->left_out() + prompts->size()) +
                  (split == data::Split::test ? " test" : " validation") +
                  " prompts are too long for model.max_position_embeddings (" +
                  std::to_string(config.model.max_position_embeddings) + ") and are left out (data.truncation: drop)");
}

}  // namespace

data::Use use_of(const TrainConfig& config, const PhaseConfig& phase, const data::Tokenizer& tokenizer) {
  data::Use use{.tokenizer = &tokenizer,
                .context = config.model.max_position_embeddings,
                .learnt = !phase.rollout.has_value(),
                .truncation = phase.data.truncation};
  if (phase.rollout)
    use.also = [rewards = phase.reward, stop = tokenizer.eos()](const data::Example& example) {
      for (const rl::RewardConfig& reward : rewards)
        if (const std::string wrong = rl::example_problem(reward, example, stop); !wrong.empty()) return wrong;
      return std::string();
    };
  return use;
}

bool evaluates(const TrainConfig& config, const PhaseConfig& phase, data::Split split) {
  if (split == data::Split::validation) return phase.evaluates();
  return !config.test.skip && config.phases.back().data.has(data::Split::test);
}

double least_memory(const TrainConfig& config) {
  const int64_t vocabulary = data::Tokenizer(config.tokenizer).size();
  const double weights = weights_of(config.model, vocabulary);
  constexpr double kFloat = 4;
  double most = 0;
  for (const PhaseConfig& phase : config.phases) {
    // Weights, their gradients, the moments; the reference.
    const double copies = 2 + (phase.optimizer.kind == "adamw" ? 2 : 1) + (phase.objective.ref_kl_coef > 0 ? 1 : 0);
    // A sequence of text has the whole context; of others no more is known than a prompt and an answer of one token each.
    const double length = phase.data.corpus ? number(config.model.max_position_embeddings) : 2;
    const double rows = phase.rollout ? number(phase.rollout->prompts) * number(phase.rollout->num_generations) /
                                            number(phase.rollout->mini_batches)
                                      : number(phase.batch.sequences);
    const double batch = rows * length, micro = number(phase.batch.micro_tokens);
    const double tokens = micro > 0 ? std::min(batch, std::max(micro, length)) : batch;
    // Backward keeps of each layer at least its input, what attention and MLP read, and both halves of the MLP.
    const double layer = 3 * number(config.model.hidden_size) + 2 * number(config.model.intermediate_size);
    double bytes =
        kFloat * (copies * weights + tokens * number(config.model.num_hidden_layers) * layer) + 8 * 2 * batch;
    if (phase.rollout)
      bytes += number(phase.rollout->cache.cache_tokens) * 2 * number(config.model.num_hidden_layers) *
               number(config.model.num_key_value_heads * config.model.head_size()) *
               (phase.rollout->cache.dtype == "bfloat16" ? 2 : kFloat);
    most = std::max(most, bytes);
  }
  return most;
}

void check_machine(const TrainConfig& config) {
  if (config.run.device == "cuda" && !torch::cuda::is_available())
    throw std::runtime_error(
        "run.device: cuda is asked for, and this machine has no GPU that PyTorch can use (see `isentrope "
        "version`); write run.device=cpu, or auto for a GPU where there is one");
  const bool gpu = config.run.device != "cpu" && torch::cuda::is_available();
  if (gpu) return;  // its memory is another, and what overflows it is told by PyTorch
  const double has = number(::sysconf(_SC_PHYS_PAGES)) * number(::sysconf(_SC_PAGESIZE)), needs = least_memory(config);
  if (needs > has)
    throw std::runtime_error("the run needs at least " + size(needs) +
                             " of memory for weights, optimiser and a batch (model: " +
                             size(4 * weights_of(config.model, data::Tokenizer(config.tokenizer).size())) +
                             " of weights), and the machine has " + size(has) +
                             "; make model, batch.sequences, batch.micro_tokens or rollout.cache_tokens smaller");
}

std::vector<std::string> check_data(const TrainConfig& config, const data::Tokenizer& tokenizer,
                                    const std::map<std::string, rl::RewardFunction>& rewards, size_t first) {
  std::vector<std::string> notes;
  for (size_t i = first; i < config.phases.size(); ++i) {
    const PhaseConfig& phase = config.phases[i];
    try {
      if (phase.rollout) rl::RewardSum(phase.reward, tokenizer.eos(), rewards);
      check_training(config, phase, tokenizer, notes);
      if (evaluates(config, phase, data::Split::validation))
        check_held_out(config, phase, tokenizer, rewards, data::Split::validation, notes);
      if (i + 1 == config.phases.size() && evaluates(config, phase, data::Split::test))
        check_held_out(config, phase, tokenizer, rewards, data::Split::test, notes);
    } catch (const std::exception&) {
      throw std::runtime_error("phase " + phase.name + ": " + message_of());
    }
  }
  if (first < config.phases.size() && !evaluates(config, config.phases.back(), data::Split::test))
    notes.push_back(config.test.skip ? "no evaluation on test data (test.skip)"
                                     : "no evaluation on test data: the data of the last phase have none");
  return notes;
}

}  // namespace isentrope::train
