// How an objective goes over an update: cut into micro-batches, one forward and backward pass each, of which weights make their choice.
// Of objective.cpp, policy_objective.cpp and preference_objective.cpp alone.
#pragma once
#include <algorithm>
#include <exception>
#include <map>
#include <string>
#include <vector>

#include "csrc/methods/chain.h"
#include "csrc/ops/ops.h"
#include "csrc/train/contrastive_objective.h"
#include "csrc/train/objective.h"

namespace isentrope::train {

using data::Batch;
using torch::Tensor;

// Rows of an update that are computed together: as many as fit the token budget, at least one, or those that stand together.
inline std::vector<Batch> split(const Batch& update, int64_t micro_tokens) {
  const int64_t B = update.tokens.size(0), T = update.tokens.size(1);
  const int64_t fit = micro_tokens / std::max<int64_t>(T, 1) / update.together * update.together;
  const int64_t rows = micro_tokens > 0 ? std::clamp<int64_t>(fit, update.together, B) : B;
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
                           const std::optional<ops::Keep>& keep = {}, bool moments = false,
                           std::optional<int64_t> inner = {}) {
    look(model, micro);
    return model->token_entropy(micro.tokens, micro.target, temperature, records_ ? &record_ : nullptr,
                                {micro.position, micro.prefix}, keep, moments, inner);
  }

  // Logits of the classes of each token, [rows, T, num_labels].
  Tensor labels(model::Decoder& model, const Batch& micro) {
    look(model, micro);
    return model->label_logits(micro.tokens, records_ ? &record_ : nullptr, micro.lengths);
  }

  // Logits of the next token, [rows, T, V]. teacher: of each layer its attention, which layers tell of beside their own; or null.
  Tensor logits(model::Decoder& model, const Batch& micro, const std::vector<model::AttentionMap>* teacher) {
    look(model, micro);
    if (teacher) records_ = record_.with_losses = true, record_.teacher = teacher, self_weight_ = 0;
    return model->forward(micro.tokens, records_ ? &record_ : nullptr, {micro.position, micro.prefix});
  }

  // Vectors of the tokens, [rows, T, D], of which vectors_of (csrc/train/contrastive_objective.h) tells.
  Tensor vectors(model::Decoder& model, const Batch& micro) {
    rows_ = micro.real();
    target_ = micro.target;
    ask(model);
    return vectors_of(model, micro, records_ ? &record_ : nullptr);
  }

  const model::AttentionRecord& record() const { return record_; }

  // Backpropagates loss and, times share (of the update's rows), the penalty on the entropy of attention and what estimates of it learn from.
  // Returns their sum.
  // last: this is the last pass of the update. gradients may be null.
  double backward(const Tensor& loss, double share, Gradients* gradients, bool last) {
    Tensor whole = attention_.regularises() ? loss + share * attention_.penalty(record_, rows_, over_) : loss;
    if (self_weight_ > 0) whole = whole + share * self_weight_ * divergence();
    if (gradients && last) gradients->arm();
    whole.backward();
    if (gradients) gradients->passed(target_);
    if (watch_) watch_->add(record_, rows_);
    return whole.item<double>();
  }

 private:
  void look(const model::Decoder& model, const Batch& micro) {
    rows_ = record_.real = micro.real();
    target_ = micro.target;
    ask(model);
  }
  void ask(const model::Decoder& model) {
    if (!model::any_mixer(model->config(), &model::MixerShape::estimates)) return;
    self_weight_ = model->config().estimated.self_weight;
    records_ = record_.with_losses = true;
  }
  // Of estimates from the attention that they are of, the mean over rows, sum over layers.
  Tensor divergence() const {
    Tensor sum;
    for (const Tensor& layer : record_.losses) {
      const Tensor one = layer.select(2, model::kEstimateKl).masked_select(rows_).sum();
      sum = sum.defined() ? sum + one : one;
    }
    return sum / rows_.sum().clamp_min(1);
  }

  const AttentionEntropy& attention_;
  AttentionWatch* watch_;
  const Ranks* over_;
  bool records_;            // whether record() is filled
  double self_weight_ = 0;  // of divergence()
  model::AttentionRecord record_;
  Tensor rows_;    // [B, T] bool: no padding
  Tensor target_;  // [B, T]
};

inline double share_of(const Batch& micro, const Batch& update) {
  return static_cast<double>(micro.size()) / static_cast<double>(update.size());
}

// [own rows, T] of each rank → [B, T], without the rows of which nothing counts.
inline Tensor of_update(const Ranks& ranks, const Tensor& own, const Batch& update) {
  return ranks.rows(own).slice(0, 0, update.size());
}
// [B, T] of an update → the rows of this rank.
inline Tensor of_rank(const Ranks& ranks, const Tensor& all, const Batch& update) {
  if (ranks.alone() || !all.defined()) return all;
  Batch marked = update;  // cut as its advantages are
  marked.advantage = all.to(torch::kFloat32);
  return share_of_rank(marked, ranks.rank(), ranks.size()).advantage.to(all.scalar_type());
}

// What a list of weights makes of an update, all ranks included: the product of their factors [B, T]; seen.mask becomes what still
// counts. values: weight/… of csrc/train/metrics.h.
inline Tensor weigh(methods::Chain<methods::Weight>& weights, methods::Update& seen, const Batch& update,
                    int64_t micro_tokens, std::map<std::string, double>& values) {
  const Tensor counts = seen.mask;
  methods::Groups micros{0};  // of scope micro, which is one rank's (csrc/train/rank_check.cpp)
  for (const Batch& micro : split(update, micro_tokens)) micros.push_back(micros.back() + micro.size());
  Tensor product;
  weights.each(values, [&](const auto& method, methods::Context context) {
    if constexpr (requires { method.apply(seen, context); }) {
      const methods::Weighted one = methods::weigh(method, seen, context, micros);
      product = product.defined() ? product * one.factor : one.factor;
      if (one.removed.defined()) seen.mask = seen.mask & one.removed.logical_not();
    }
  });
  const double tokens = std::max(counts.sum().item<double>(), 1.0);
  const Tensor factor = product.masked_select(counts);
  const double sum = factor.sum(torch::kFloat64).item<double>();
  values["weight/mean"] = sum / tokens;
  values["weight/zero"] = (factor == 0).sum().item<double>() / tokens;
  values["weight/removed"] = 1 - seen.mask.sum().item<double>() / tokens;
  if (sum > 0)
    values["weight/entropy"] = (factor * seen.entropy.masked_select(counts)).sum(torch::kFloat64).item<double>() / sum;
  return product;
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
