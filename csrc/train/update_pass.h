// How an objective goes over an update: cut into micro-batches, one forward and backward pass each. Of objective.cpp and
// policy_objective.cpp alone.
#pragma once
#include <algorithm>
#include <exception>
#include <vector>

#include "csrc/ops/ops.h"
#include "csrc/train/objective.h"

namespace isentrope::train {

using data::Batch;
using torch::Tensor;

// Rows of an update that are computed together: as many as fit the token budget, at least one.
inline std::vector<Batch> split(const Batch& update, int64_t micro_tokens) {
  const int64_t B = update.tokens.size(0), T = update.tokens.size(1);
  const int64_t rows = micro_tokens > 0 ? std::clamp<int64_t>(micro_tokens / std::max<int64_t>(T, 1), 1, B) : B;
  std::vector<Batch> parts;
  for (int64_t b = 0; b < B; b += rows) parts.push_back(update.rows(b, std::min(b + rows, B)));
  return parts;
}

// One forward pass of a micro-batch, and what its attention has to say. over: the ranks whose rows the penalty speaks of together.
class Pass {
 public:
  Pass(const AttentionEntropy& attention, AttentionWatch* watch, const Ranks* over, bool records = false)
      : attention_(attention), watch_(watch), over_(over), records_(records || watch || attention.regularises()) {
    if (watch_) record_ = watch_->record();
  }

  ops::TokenEntropy tokens(model::Decoder& model, const Batch& micro, double temperature,
                           const std::optional<ops::Keep>& keep = {}, bool moments = false) {
    rows_ = micro.real();
    return model->token_entropy(micro.tokens, micro.target, temperature, records_ ? &record_ : nullptr, micro.position,
                                keep, moments);
  }

  const model::AttentionRecord& record() const { return record_; }

  // Backpropagates loss and, times share (of the update's rows), the penalty on the entropy of attention. Returns their sum.
  // gradients: where this is the last pass of the update.
  double backward(const Tensor& loss, double share, Gradients* gradients) {
    const Tensor whole = attention_.regularises() ? loss + share * attention_.penalty(record_, rows_, over_) : loss;
    if (gradients) gradients->arm();
    whole.backward();
    if (watch_) watch_->add(record_, rows_);
    return whole.item<double>();
  }

 private:
  const AttentionEntropy& attention_;
  AttentionWatch* watch_;
  const Ranks* over_;
  bool records_;  // whether record() is filled
  model::AttentionRecord record_;
  Tensor rows_;  // [B, T] bool: no padding
};

inline double share_of(const Batch& micro, const Batch& update) {
  return static_cast<double>(micro.size()) / static_cast<double>(update.size());
}

// What has not gone on its way when the passes of an update end, by an error too, goes.
struct Sent {
  Gradients* gradients;
  ~Sent() {
    if (gradients) try {
        gradients->finish();
      } catch (const std::exception&) {  // a rank is gone: the next verb says so
      }
  }
};

}  // namespace isentrope::train
