#include "csrc/train/tag_objective.h"

#include <algorithm>
#include <vector>

#include "csrc/train/update_pass.h"

namespace isentrope::train {

std::map<std::string, double> TagObjective::backward(model::Decoder& model, const Batch& update, uint64_t,
                                                     AttentionWatch* watch, Gradients* gradients) {
  const double tokens = (update.target != data::kIgnore).sum().item<double>();
  std::vector<double> sums(4);  // of the loss, of entropies, of right labels, of labels 1
  const std::vector<Batch> micros = split(share_of_rank(update, ranks_->rank(), ranks_->size()), batch_.micro_tokens);
  const bool together = batch_.micro_tokens == 0;
  const Sent sent{gradients};
  for (const Batch& micro : micros) {
    Pass pass(attention_, watch, together ? ranks_.get() : nullptr);
    const Tensor logits = pass.labels(model, micro);  // [rows, T, 2]
    const ops::TokenEntropy out = ops::token_entropy(logits, micro.target);
    sums[0] += pass.backward(-out.logprob.sum() / std::max(tokens, 1.0), together ? 1.0 : share_of(micro, update),
                             gradients, &micro == &micros.back());
    sums[1] += out.entropy.detach().sum(torch::kFloat64).item<double>();
    sums[2] += (logits.detach().argmax(-1) == micro.target).sum().item<double>();
    sums[3] += (micro.target == 1).sum().item<double>();
  }
  ranks_->sum(sums);
  if (watch) watch->over(*ranks_);
  std::map<std::string, double> values{{"loss", sums[0]}, {"tokens", tokens}};
  if (tokens == 0) return values;
  values["entropy/mean"] = sums[1] / tokens;
  values["tag/accuracy"] = sums[2] / tokens;
  values["tag/kept"] = sums[3] / tokens;
  return values;
}

}  // namespace isentrope::train
