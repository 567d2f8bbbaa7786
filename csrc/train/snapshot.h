// Tensors as they were, to go back to: what lets a step that is broken off leave no trace. AdamW's update cannot be undone in
// floating point, so weights and moments are copied once a step, which takes as much memory again as they do.
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
    if (copies_.empty())
      for (const torch::Tensor& tensor : live_) copies_.push_back(tensor.detach().clone());
    else
      at::_foreach_copy_(copies_, live_);
    taken_ = true;
  }
  // Puts the tensors back as they were at take(); nothing where none was taken since the last drop().
  void restore() {
    const torch::NoGradGuard no_grad;
    if (taken_) at::_foreach_copy_(live_, copies_);
    taken_ = false;
  }
  void drop() { taken_ = false; }

 private:
  std::vector<torch::Tensor> live_, copies_;
  bool taken_ = false;
};

}  // namespace isentrope::train
