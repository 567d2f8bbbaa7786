#include "csrc/train/contrastive_objective.h"

#include <algorithm>
#include <stdexcept>
#include <vector>

#include "csrc/train/match_scores.h"
#include "csrc/train/update_pass.h"

namespace isentrope::train {

Tensor vectors_of(model::Decoder& model, const Batch& rows, model::AttentionRecord* record) {
  if (model->config().num_labels > 0) return model->label_logits(rows.tokens, record, rows.lengths);
  return model->hidden(rows.tokens, record, {{}, {}, rows.lengths});
}

Tensor matches_of(const Batch& update) {
  const Tensor given = update.target != data::kIgnore;
  const int64_t Q = given.any(1).sum().item<int64_t>(), N = update.size() - Q;
  const Tensor column = (update.target.slice(0, 0, Q) - Q).clamp_min(0);
  return torch::zeros({Q, N}, given.options().dtype(torch::kInt64))
             .scatter_add(1, column, given.slice(0, 0, Q).to(torch::kInt64)) > 0;
}

std::map<std::string, double> ContrastiveObjective::backward(model::Decoder& model, const Batch& update, uint64_t,
                                                             AttentionWatch* watch, Gradients* gradients) {
  const Batch own = share_of_rank(update, ranks_->rank(), ranks_->size());
  const std::vector<Batch> micros = split(own, batch_.micro_tokens);
  const bool together = batch_.micro_tokens == 0, one_pass = ranks_->alone() && micros.size() == 1;
  const Tensor matches = matches_of(update);
  const int64_t Q = matches.size(0), B = update.size();
  Tensor scores;
  const auto loss_of = [&](const Tensor& vectors) {
    if (!vectors.detach().any().item<bool>())
      throw std::runtime_error(
          "contrastive: the vectors of all tokens are 0, which has no direction to learn; where model.pretrained has "
          "no "
          "labels, those of model.num_labels begin at 0: write model.num_labels: 0");
    scores = match_scores(config_, vectors.slice(0, 0, Q), update.lengths.slice(0, 0, Q), vectors.slice(0, Q, B),
                          update.lengths.slice(0, Q, B));
    return contrastive_loss(config_, scores, matches);
  };
  double loss = 0;
  Tensor gradient;  // [own rows, T, D], of the vectors
  if (!one_pass) {
    std::vector<Tensor> parts;
    {
      const torch::NoGradGuard no_grad;
      for (const Batch& micro : micros) parts.push_back(vectors_of(model, micro));
    }
    const Tensor vectors =
        of_update(*ranks_, torch::cat(parts), update).to(update.tokens.device()).requires_grad_(true);
    const Tensor whole = loss_of(vectors);
    whole.backward();
    loss = whole.item<double>();
    gradient = of_rank(*ranks_, vectors.grad(), update);
  }
  std::vector<double> penalty(1);  // on the entropy of attention
  int64_t row = 0;
  const Sent sent{gradients};
  for (const Batch& micro : micros) {
    Pass pass(attention_, watch, together ? ranks_.get() : nullptr);
    const Tensor vectors = pass.vectors(model, micro);
    const Tensor part = one_pass ? loss_of(vectors) : (vectors * gradient.slice(0, row, row + micro.size())).sum();
    row += micro.size();
    if (one_pass) loss = part.item<double>();
    const double value = part.item<double>();
    penalty[0] +=
        pass.backward(part, together ? 1.0 : share_of(micro, update), gradients, &micro == &micros.back()) - value;
  }
  ranks_->sum(penalty);
  if (watch) watch->over(*ranks_);
  const Tensor best = scores.detach().argmax(1, true);  // [Q, 1]
  return {{"loss", loss + penalty[0]},
          {"tokens", static_cast<double>(Q)},
          {"match/first", matches.gather(1, best).to(torch::kFloat64).mean().item<double>()},
          {"match/texts", static_cast<double>(B - Q)},
          {"match/positives", static_cast<double>(matches.sum().item<int64_t>()) / static_cast<double>(Q)}};
}

}  // namespace isentrope::train
