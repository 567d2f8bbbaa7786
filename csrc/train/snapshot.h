// Tensors as they were, to go back to: what lets a step that is broken off leave no trace. AdamW's update cannot be undone in
// floating point, so where something can refuse behind the first update of a step (keeps_copies), weights and moments are copied
// before it: where the activations of its loss stood, whose memory is free then (csrc/train/block_cache.h), and the copies' is free
// again for those of the next step.
#pragma once
#include <torch/types.h>

#include <utility>
#include <vector>

#include "csrc/train/config.h"

namespace isentrope::train {

// Whether something can refuse behind the first of a step's updates: the loss of the next one; what changes weights behind an update,
// learned spectral norms and attention.qk_clip; Muon, whose iteration shows its end at the end; another rank. All other steps have one
// update, and all that can refuse is asked before it.
inline bool keeps_copies(const TrainConfig& config, const PhaseConfig& phase, int64_t updates, int64_t ranks) {
  return updates > 1 || config.model.sigma_reparam.any() || config.model.attention.qk_clip > 0 ||
         phase.optimizer.kind == "muon" || ranks > 1;
}

class Snapshot {
 public:
  explicit Snapshot(std::vector<torch::Tensor> live) : live_(std::move(live)) {}

  void take() {
    const torch::NoGradGuard no_grad;
    std::vector<torch::Tensor> copies;  // all of them or, where memory does not suffice, none
    for (const torch::Tensor& tensor : live_) copies.push_back(tensor.detach().clone());
    copies_ = std::move(copies);
  }
  // Puts the tensors back as they were at take(); nothing where none was taken since the last drop().
  void restore() {
    const torch::NoGradGuard no_grad;
    if (!copies_.empty()) at::_foreach_copy_(live_, copies_);
    drop();
  }
  void drop() { copies_.clear(); }

 private:
  std::vector<torch::Tensor> live_, copies_;
};

}  // namespace isentrope::train
