#include "csrc/train/tag_evaluation.h"

#include <algorithm>

#include "csrc/data/tag_source.h"
#include "csrc/ops/ops.h"

namespace isentrope::train {

HeldOutSize HeldOutTags::size() const {
  return {.examples = source_->size(),
          .left_out = source_->left_out(),
          .skipped = source_->skipped(),
          .notes = source_->notes()};
}

std::vector<std::string> HeldOutTags::shortages(const EvaluationConfig& config, const std::string& section) const {
  if (config.prompts <= source_->size()) return {};
  return {section + ".prompts: " + std::to_string(config.prompts) + " are asked for, and the " + data::name_of(split_) +
          " data have " + std::to_string(source_->size()) + ", which are all used"};
}

// Every rank computes all: texts are few beside those of a step, and the sums are the same bit for bit.
Evaluation HeldOutTags::evaluate(const model::Decoder& model, const EvaluationConfig& config, std::vector<Sample>*,
                                 std::vector<Answer>*, Intervals*, const rl::Peers&) const {
  const torch::NoGradGuard no_grad;
  model::Decoder decoder = model;
  const int64_t count = std::min(config.prompts, source_->size());
  double nats = 0, tokens = 0, right = 0, kept_right = 0, kept = 0;  // kept: foretold and true together
  for (int64_t first = 0; first < count; first += rows_) {
    const data::Batch batch =
        data::tag_batch(source_->take(first, std::min(rows_, count - first)), tokenizer_, context_, config_)
            .to(model->embedding().device());
    const torch::Tensor logits = decoder->label_logits(batch.tokens, nullptr, batch.lengths),
                        counts = batch.target != data::kIgnore, told = logits.argmax(-1);
    nats -= ops::token_entropy(logits, batch.target).logprob.sum(torch::kFloat64).item<double>();
    tokens += counts.sum().item<double>();
    right += (told == batch.target).sum().item<double>();
    kept_right += ((told == 1) & (batch.target == 1)).sum().item<double>();
    kept += ((told == 1) & counts).sum().item<double>() + (batch.target == 1).sum().item<double>();
  }
  tokens = std::max(tokens, 1.0);
  return {{"eval/loss", nats / tokens},
          {"eval/accuracy", right / tokens},
          {"eval/f1", kept > 0 ? 2 * kept_right / kept : 1}};
}

}  // namespace isentrope::train
