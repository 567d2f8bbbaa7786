// Which texts match a prompt: many-to-many InfoNCE over the prompts and texts of an update (csrc/train/match_scores.h).
//
// Every prompt is compared with every text of the update, so the loss is no sum over rows. Where an update is cut, into micro-batches or
// over ranks, the vectors of all tokens are made first, without gradient; the loss gives the gradient of each; and a second pass of each
// piece takes it back to the weights (arXiv 2101.06983). Loss and gradient are those of the whole update, for one more forward pass.
#pragma once
#include <map>
#include <memory>
#include <string>

#include "csrc/train/objective.h"

namespace isentrope::train {

// The vectors of the tokens of rows, [B, T, D] float32: the classes of model.num_labels, or without such the hidden state of the last layer.
torch::Tensor vectors_of(model::Decoder& model, const data::Batch& rows, model::AttentionRecord* record = nullptr);

// Of a batch as contrastive_batch() makes it, [Q, N] bool.
torch::Tensor matches_of(const data::Batch& update);

class ContrastiveObjective : public Objective {
 public:
  ContrastiveObjective(AttentionEntropy attention, const data::ContrastiveConfig& config, const BatchConfig& batch,
                       std::shared_ptr<const Ranks> ranks)
      : Objective(std::move(attention), std::move(ranks)), config_(config), batch_(batch) {}
  std::map<std::string, double> backward(model::Decoder& model, const data::Batch& update, uint64_t seed,
                                         AttentionWatch* watch, Gradients* gradients) override;

 private:
  data::ContrastiveConfig config_;
  BatchConfig batch_;
};

}  // namespace isentrope::train
