// Gradients of several ranks: each parameter has an owner, which alone gets the sum of its gradient over the ranks, keeps its
// moments and updates it; then all get its new weights. So a rank sends, of G bytes of gradients and of weights on n ranks,
// G (n-1)/n of each a step, the least that there is, and holds a share of the optimiser's state.
//
// Parameters lie in buckets, in the order in which a backward pass comes to them, the last first. A bucket goes on its way as soon as
// the pass that arm() announced has made all its gradients and the buckets before it have gone, beside the rest of that pass: each rank
// sends every other rank what that one owns of it (c10d's all-to-all, since Gloo's own reduction to one rank sends half as
// much again on two ranks), and the owner adds up in the order of ranks, so that the same number of ranks makes the same bits. Passes before sum up where they are.
//
// On one rank nothing of this happens.
#pragma once
#include <torch/types.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "csrc/train/distributed.h"
#include "csrc/train/gradient_noise.h"

namespace isentrope::train {

class Gradients {
 public:
  // parameters: float32, on one device.
  Gradients(std::shared_ptr<const Ranks> ranks, std::vector<torch::Tensor> parameters);
  ~Gradients();
  Gradients(Gradients&&) noexcept;

  bool owns(size_t parameter) const { return owner_[parameter] == ranks_->rank(); }
  const std::vector<int64_t>& owners() const { return owner_; }
  const Ranks& ranks() const { return *ranks_; }

  void measure();  // the next backward pass is the first of an update whose gradient noise is wanted
  void passed(const torch::Tensor& target);  // after each backward pass, with the targets of its rows [b, T]
  // What measure() asked for of this rank's first pass, once; none where nobody did, or there was no pass.
  std::optional<GradientNoise::Part> measured() { return std::exchange(part_, std::nullopt); }

  void arm();             // before the last backward pass of an update; a verb of Ranks
  void finish();          // after it, also where it has failed: what has not gone yet goes
  void collect();         // the gradients of own parameters are sums over the ranks; those of others are gone
  void drop();            // what is on its way, and all gradients: as before an update
  void gather_weights();  // own weights to all

 private:
  struct State;
  std::shared_ptr<const Ranks> ranks_;
  std::vector<torch::Tensor> parameters_;
  std::vector<int64_t> owner_;
  std::unique_ptr<State> state_;  // null on one rank
  bool measures_ = false;
  std::optional<GradientNoise::Part> part_;
};

// The rows of targets [B, T] that have one.
double sequences_of(const torch::Tensor& target);

// The rank of each of sizes, so that what ranks have of them differs little: the largest first, to the one that has least.
std::vector<int64_t> owners_of(const std::vector<int64_t>& sizes, int64_t ranks);

}  // namespace isentrope::train
