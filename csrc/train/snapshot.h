// Tensors as they were, to go back to: what lets a step that is broken off leave no trace. AdamW's update cannot be undone in
// floating point, so weights and moments are copied once a step, before its first update: where the activations of its loss stood, whose
// memory is free then, and the copies' is free again for those of the next step.
#pragma once
#include <torch/types.h>

#include <utility>
#include <vector>

namespace isentrope::train {

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
