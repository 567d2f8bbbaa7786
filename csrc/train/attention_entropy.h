// The entropy-guided regulariser of attention (arXiv 2501.03489): a penalty on heads whose entropy leaves a band around a learnt
// share of the most that it can be.
//
// L layers, H heads. A row i of n_i keys in sight has the entropy E_i and the bound M_i, which is log n_i (rows of one key are
// left out) or log T. With θ the head's threshold and γ the tolerance, λ = coef:
//
//   mean   δ = mean E - θ · mean M      penalty of a head  δ² where |δ| > γ · mean M, else 0       means over rows (the paper)
//   sum    δ_i = E_i - θ · M_i          penalty of a head  Σ_i δ_i² where |δ_i| > γ · M_i          over rows and batch (its code)
//   loss += λ · mean over layers and heads of the penalty
#pragma once
#include <torch/types.h>

#include <cstdint>
#include <string>

#include "csrc/field.h"
#include "csrc/model/decoder.h"
#include "csrc/train/distributed.h"

namespace isentrope::train {

struct AttentionEntropyConfig {
  int64_t every = 10;
  bool bound = false;
  double coef = 0.0;
  double threshold = 0.5;
  bool learn_threshold = true;
  double tolerance = 0.2;
  std::string reduction = "mean";
  std::string maximum = "log_n";

  template <class Visitor>
  void visit(Visitor& v) {
    v("every", every, "Steps between two measurements of the entropy of attention in metrics.jsonl; 0 for none.",
      at_least(0));
    v("bound", bound,
      "Whether a measurement also tells what the spread of the logits alone promises of the entropy "
      "(csrc/model/entropy_bound.h).");
    v("coef", coef, "Weight of the penalty on the entropy of attention; 0 for none.", at_least(0));
    v("threshold", threshold, "Where the thresholds of all heads start, as a share of the largest entropy.",
      between(0, 1));
    v("learn_threshold", learn_threshold, "Whether each layer and head learns its own threshold.");
    v("tolerance", tolerance, "Half the width of the band that is not punished, as a share of the largest entropy.",
      at_least(0));
    v("reduction", reduction,
      "mean: of the head's mean entropy over rows; sum: over the rows and the batch, each row alone.",
      one_of({"mean", "sum"}));
    v("maximum", maximum, "The largest entropy of a row: log_n of the keys it sees, or log_t of the length for all.",
      one_of({"log_n", "log_t"}));
  }
};

class AttentionEntropy {
 public:
  AttentionEntropy(const AttentionEntropyConfig& config, int64_t layers, int64_t heads, torch::Device device);
  bool regularises() const { return config_.coef > 0; }
  const AttentionEntropyConfig& config() const { return config_; }

  // λ · penalty [] of a forward pass. rows [B, T] bool: the tokens that are no padding. reduction mean speaks of the
  // micro-batch at hand. over: of the rows that all of these ranks have at hand, each of which is given its part: the values that
  // they return add up to the penalty, and so do their gradients.
  torch::Tensor penalty(const model::AttentionRecord& record, const torch::Tensor& rows,
                        const Ranks* over = nullptr) const;

  // θ [L · H] float; learnt where it requires a gradient, undefined where nothing is punished.
  const torch::Tensor& threshold() const { return threshold_; }

 private:
  AttentionEntropyConfig config_;
  torch::Tensor threshold_;
};

}  // namespace isentrope::train
