#include "csrc/data/corpus.h"
#include "csrc/train/contrastive_evaluation.h"
#include "csrc/train/data_check.h"
#include "csrc/train/tag_evaluation.h"
#include "csrc/train/trainer.h"

namespace isentrope::train {

std::optional<data::Masking> masking_of_phase(const PhaseConfig& phase, const data::Tokenizer& tokenizer) {
  if (phase.objective.kind != "mlm") return std::nullopt;
  return data::masking_of(phase.objective.masking, tokenizer);
}

std::unique_ptr<HeldOut> held_out_of(const TrainConfig& config, const PhaseConfig& phase,
                                     const data::Tokenizer& tokenizer, data::Split split,
                                     const std::map<std::string, rl::RewardFunction>& rewards) {
  if (phase.data.text())
    return std::make_unique<HeldOutText>(data::open_text(phase.data, tokenizer, split), tokenizer,
                                         config.model.max_position_embeddings, phase.batch.sequences,
                                         split == data::Split::test ? "test" : "validation",
                                         masking_of_phase(phase, tokenizer), phase.data.hmm);
  if (phase.objective.kind == "tag") {
    const data::Use use = use_of(config, phase, tokenizer);
    return std::make_unique<HeldOutTags>(data::make_source(phase.data, /*seed=*/0, split, &use), tokenizer,
                                         config.model.max_position_embeddings, phase.batch.sequences,
                                         phase.objective.tag, split);
  }
  if (phase.objective.of_matches()) {
    const data::Use use = use_of(config, phase, tokenizer);
    const auto training = data::make_source(phase.data, /*seed=*/0, data::Split::train, &use);
    return std::make_unique<HeldOutMatches>(data::make_source(phase.data, /*seed=*/0, split, &use), *training,
                                            tokenizer, config.model.max_position_embeddings, phase.batch.sequences,
                                            phase.objective.contrastive, split);
  }
  const PhaseConfig& last = config.phases.back();
  const PhaseConfig& answers = phase.draws() || phase.environment ? phase : last;
  return std::make_unique<HeldOutPrompts>(phase.data, answers.judging(), rewards, tokenizer, split,
                                          config.model.max_position_embeddings, answers.sampling(tokenizer),
                                          answers.rollout ? answers.rollout->cache
                                          : answers.pairs ? answers.pairs->cache
                                                          : rl::CacheConfig(),
                                          phase.draws() ? 0 : phase.batch.sequences);
}

}  // namespace isentrope::train
