// The pairs of a dpo phase that draws them itself: as it begins, by the policy as it stands then, and from their file where they were drawn
// before.
#include <algorithm>
#include <cmath>

#include "csrc/data/example_list.h"
#include "csrc/data/sft_source.h"
#include "csrc/data/token_shard.h"
#include "csrc/train/data_check.h"
#include "csrc/train/pairs_file.h"
#include "csrc/train/phase.h"
#include "csrc/train/rank_check.h"
#include "csrc/train/weights.h"

namespace isentrope::train {
namespace {

// Of what the pairs of a phase are a function of: the weights, its keys, the prompts.
int64_t made_of(const TrainConfig& config, const PhaseConfig& phase, const model::Decoder& model,
                const std::vector<data::Example>& examples, uint64_t seed) {
  std::vector<std::pair<std::string, torch::Tensor>> weights;
  for (const auto& one : model->named_parameters()) weights.emplace_back(one.key(), one.value());
  for (const auto& one : model->named_buffers()) weights.emplace_back(one.key(), one.value());
  TrainConfig keys = config;  // without what does not touch them
  keys.run = {}, keys.metrics = {}, keys.test = {};
  keys.run.seed = config.run.seed;
  PhaseConfig own = phase;
  own.objective = {}, own.batch = {}, own.optimizer = {}, own.schedule = {}, own.evaluation = {}, own.stop.reset();
  own.steps = 1;
  keys.phases = {own};
  data::Hash hash;
  hash.add(static_cast<uint64_t>(weights_digest(weights)));
  hash.add(print_config(keys));
  hash.add(seed);
  for (const data::Example& example : examples)
    for (const std::string* text : {&example.prompt, &example.answer, &example.columns}) hash.add(*text);
  return static_cast<int64_t>(hash.value);
}

}  // namespace

std::unique_ptr<data::BatchSource> Trainer::source_of_pairs(const PhaseConfig& phase, const std::string& text,
                                                            std::optional<int64_t>& digest) const {
  const auto pairs = std::make_shared<data::ExampleList>(
      pairs_of_text(text, folder_.pairs(phase.name), tokenizer_.size()), seed_of(phase.name, data::Purpose::example));
  digest = static_cast<int64_t>(data::stream_digest(*pairs));
  return std::make_unique<data::SftSource>(pairs, tokenizer_, phase.batch.sequences,
                                           config_.model.max_position_embeddings, "error", /*packed=*/0,
                                           /*pairs=*/true);
}

void Trainer::make_pairs() {
  const PhaseConfig& phase = open_->config;
  const std::string file = folder_.pairs(phase.name);
  const data::Use use = use_of(config_, phase, tokenizer_);
  const auto source =
      data::make_source(phase.data, seed_of(phase.name, data::Purpose::example), data::Split::train, &use);
  const int64_t prompts = phase.pairs->prompts;
  const std::vector<data::Example> examples =
      source->take(0, source->size() > 0 ? std::min(source->size(), prompts) : prompts);
  const uint64_t seed = seed_of(phase.name, data::Purpose::rollout);
  std::optional<PairsFile> pairs;
  int64_t origin = 0;
  if (ranks_->first()) {
    origin = made_of(config_, phase, model_, examples, seed);
    pairs = read_pairs(file, origin);
  }
  if (ranks_->max(pairs.has_value()) == 0) {
    rl::PairsConfig config = *phase.pairs;
    config.sampling = phase.sampling(tokenizer_);
    rl::MinedPairs mined = rl::mine_pairs(config, model_, tokenizer_, examples,
                                          rl::RewardSum(phase.judging(), tokenizer_.eos(), rewards_), seed, *ranks_);
    if (mined.pairs.empty())
      throw std::runtime_error(
          "none of " + std::to_string(examples.size()) + " prompts has a pair by the rule " + config.rule + ", and " +
          std::to_string(std::llround(100 * mined.stats.at("pairs/right"))) + " % of " +
          std::to_string(std::llround(mined.stats.at("pairs/completions"))) +
          " completions are right; draw more (pairs.prompts, samples, steps, branches), or take another pairs.rule");
    if (ranks_->first()) {
      pairs = PairsFile{.text = pairs_text(mined, examples, tokenizer_), .stats = std::move(mined.stats)};
      write_pairs(file, *pairs, origin);
    }
  }
  // One rank's for all: what was read may be another's work.
  const std::string text = ranks_->from_first(pairs ? pairs->text : "");
  open_->source = source_of_pairs(phase, text, open_->data_digest);
  if (pairs) open_->mined = std::move(pairs->stats);
}

}  // namespace isentrope::train
