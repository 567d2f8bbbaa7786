// A policy loss on rollouts (kernels/grpo_loss.h). Which tokens learn, and how much, methods say (csrc/methods): `weight` factors of
// each token's policy term, `objective.entropy` and other keys of the objective what a step sets.
#pragma once
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "csrc/methods/chain.h"
#include "csrc/methods/objective_control.h"
#include "csrc/ops/ops.h"
#include "csrc/train/objective.h"

namespace isentrope::train {

class PolicyObjective : public Objective {
 public:
  PolicyObjective(AttentionEntropy attention, const ObjectiveConfig& config, const BatchConfig& batch,
                  double temperature, std::optional<model::Decoder> reference, std::shared_ptr<const Ranks> ranks,
                  std::vector<methods::Weight> weight);

  void begin(int64_t step, model::Decoder& model, std::vector<data::Batch>& updates) override;
  std::map<std::string, double> backward(model::Decoder& model, const data::Batch& update, uint64_t seed,
                                         AttentionWatch* watch, Gradients* gradients) override;
  torch::Tensor weighed() const override { return weighed_; }
  std::map<std::string, torch::Tensor> state() const override;
  void restore(const std::map<std::string, torch::Tensor>& state) override;

 private:
  // What is decided over a whole update, all ranks included: [B, T] of it, or of the rows of this rank.
  struct Decided {
    torch::Tensor
        selected;  // bool, of clip_cov and kl_cov; undefined: the loss selects none, or each micro-batch by itself
    torch::Tensor factor;      // float, of the policy term; undefined: 1
    torch::Tensor counts;      // bool: what the update learns from
    torch::Tensor normalizer;  // of the sum of token losses
    torch::Tensor bonus = {};  // float, of a token's entropy in the bonus; undefined: 1
    Decided each(const std::function<torch::Tensor(const torch::Tensor&)>& function) const;  // of what is [B, T]
  };
  // What the policy that learns says of the tokens of rows, without gradient: [rows, T].
  struct Seen {
    torch::Tensor logprob, entropy;
    torch::Tensor attention = {};                 // of layer attention_layer_, where methods ask for it
    torch::Tensor sum_p2 = {}, sum_p2_logp = {};  // likewise
    torch::Tensor kept = {};                      // entropy of what keep() keeps, where the controller asks for it
  };
  // What the passes of this rank have found.
  struct Found {
    double loss = 0;
    std::vector<torch::Tensor> stats, logprobs;
    torch::Tensor divergence = {};  // [parts, 2], where the batch tells parts of it
    torch::Tensor kept = {};        // [2]: Σ kept entropy, tokens; where the bonus is about a part of the vocabulary
  };

  void passes(model::Decoder& model, const data::Batch& update, uint64_t seed, AttentionWatch* watch,
              Gradients* gradients, Found& found, std::map<std::string, double>& values);
  bool decides_by_policy() const;  // by what the policy that learns says of the tokens
  Seen look(model::Decoder& model, const std::vector<data::Batch>& micros) const;  // passes of their own
  torch::Tensor attention_in(const model::AttentionRecord& record) const;
  Decided decide(const data::Batch& update, const Seen& own, uint64_t seed, std::map<std::string, double>& values);
  Decided own(const Decided& decided, const data::Batch& update) const;  // the rows of this rank
  torch::Tensor normalizer_of(const torch::Tensor& mask) const;
  torch::Tensor select(const torch::Tensor& logprob, const data::Batch& batch, const torch::Tensor& counts,
                       uint64_t seed) const;
  double reinforce(model::Decoder& model, const data::Batch& second) const;  // Batch::second
  ops::GrpoLoss loss_of(const ops::TokenEntropy& policy, const data::Batch& batch, const Decided& decided,
                        Found& found) const;
  torch::Tensor advantage_of(const data::Batch& batch, const torch::Tensor& factor) const;
  std::map<std::string, double> values_of(double loss, const torch::Tensor& micro_stats) const;
  // What was summed by passes, as metrics over all ranks.
  void tell(const Found& found, const data::Batch& update, std::map<std::string, double>& values) const;
  methods::Control set();                 // of this step
  std::optional<ops::Keep> keep() const;  // of this update's bonus
  double clip_high() const;

  ObjectiveConfig config_;
  BatchConfig batch_;
  double temperature_;
  std::optional<model::Decoder> reference_;
  methods::Chain<methods::Weight> weight_;
  methods::Chain<methods::EntropyControl> entropy_;
  methods::Chain<methods::ObjectiveControl> others_;  // of other keys of the objective
  std::optional<int64_t> attention_layer_;            // whose attention the weights look at
  bool weighs_ = false;                               // whether one of them has a factor
  bool rescores_ = false, first_ = true;  // whether they ask for it; the next update is the first of its step
  bool moments_ = false;                  // whether they ask for Σ p² and Σ p² log p
  methods::Control control_;              // of the update
  torch::Tensor weighed_;                 // likewise
};

}  // namespace isentrope::train
