// A loss on pairs of completions (csrc/methods/preference.h): DPO and its kin. An update has two rows a pair, the better completion before
// the worse (data::Batch::together).
#pragma once
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "csrc/train/objective.h"

namespace isentrope::train {

class PreferenceObjective : public Objective {
 public:
  // reference: which log-ratios are taken to; must be there.
  PreferenceObjective(AttentionEntropy attention, const ObjectiveConfig& config, const BatchConfig& batch,
                      std::optional<model::Decoder> reference, std::shared_ptr<const Ranks> ranks);

  std::map<std::string, double> backward(model::Decoder& model, const data::Batch& update, uint64_t seed,
                                         AttentionWatch* watch, Gradients* gradients) override;

 private:
  torch::Tensor loss_of(const torch::Tensor& logprob, const data::Batch& micro, double pairs, double tokens,
                        std::vector<double>& sums);

  ObjectiveConfig config_;
  BatchConfig batch_;
  model::Decoder reference_;
};

}  // namespace isentrope::train
