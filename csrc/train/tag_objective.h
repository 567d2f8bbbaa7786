// Token classification: mean cross-entropy of the label of each token that has one (csrc/data/tag_source.h).
#pragma once
#include <map>
#include <memory>
#include <string>
#include <utility>

#include "csrc/train/objective.h"

namespace isentrope::train {

class TagObjective : public Objective {
 public:
  TagObjective(AttentionEntropy attention, const BatchConfig& batch, std::shared_ptr<const Ranks> ranks)
      : Objective(std::move(attention), std::move(ranks)), batch_(batch) {}
  std::map<std::string, double> backward(model::Decoder& model, const data::Batch& update, uint64_t seed,
                                         AttentionWatch* watch, Gradients* gradients) override;

 private:
  BatchConfig batch_;
};

}  // namespace isentrope::train
