#include "csrc/train/preference_objective.h"

#include <cmath>

#include "csrc/methods/preference.h"
#include "csrc/train/prefix.h"
#include "csrc/train/update_pass.h"

namespace isentrope::train {
namespace {

// What is added up over the pairs of an update, and over their tokens.
enum Sum {
  kLoss,
  kMargin,
  kAccuracy,
  kInformation,
  kChosen,
  kRejected,
  kLogprobChosen,
  kLogprobRejected,
  kEntropy,
  kEntropySquare,
  kSums
};

}  // namespace

PreferenceObjective::PreferenceObjective(AttentionEntropy attention, const ObjectiveConfig& config,
                                         const BatchConfig& batch, std::optional<model::Decoder> reference,
                                         std::shared_ptr<const Ranks> ranks)
    : Objective(std::move(attention), std::move(ranks)),
      config_(config),
      batch_(batch),
      reference_(std::move(reference).value()) {}

std::map<std::string, double> PreferenceObjective::backward(model::Decoder& model, const Batch& update, uint64_t,
                                                            AttentionWatch* watch, Gradients* gradients) {
  const Tensor counts = update.target != data::kIgnore;
  const double tokens = counts.sum().item<double>(), pairs = static_cast<double>(update.size()) / 2;
  const double better = counts.view({-1, 2, counts.size(1)}).select(1, 0).sum().item<double>();
  const std::vector<Batch> micros = split(share_of_rank(update, ranks_->rank(), ranks_->size()), batch_.micro_tokens);
  const bool together = batch_.micro_tokens == 0;
  const Sent sent{gradients};
  std::vector<double> sums(kSums);
  for (const Batch& micro : micros) {
    Pass pass(attention_, watch, together ? ranks_.get() : nullptr);
    const auto out = pass.tokens(model, micro, /*temperature=*/1.0);
    sums[kLoss] += pass.backward(loss_of(out.logprob, micro, pairs, better, sums),
                                 together ? 1.0 : share_of(micro, update), gradients, &micro == &micros.back());
    const Tensor entropy = out.entropy.detach().to(torch::kFloat64);
    sums[kEntropy] += entropy.sum().item<double>();
    sums[kEntropySquare] += entropy.square().sum().item<double>();
  }
  ranks_->sum(sums);
  if (watch) watch->over(*ranks_);
  const double H = sums[kEntropy] / tokens;
  return {{"loss", sums[kLoss]},
          {"tokens", tokens},
          {"entropy/mean", H},
          {"entropy/std", std::sqrt(std::max(sums[kEntropySquare] / tokens - H * H, 0.0))},
          {"pair/margin", sums[kMargin] / pairs},
          {"pair/accuracy", sums[kAccuracy] / pairs},
          {"pair/information", sums[kInformation] / pairs},
          {"pair/chosen", sums[kChosen] / pairs},
          {"pair/rejected", sums[kRejected] / pairs},
          {"logprob/chosen", sums[kLogprobChosen] / pairs},
          {"logprob/rejected", sums[kLogprobRejected] / pairs}};
}

// Of a micro-batch its part of the update's loss: a sum over its pairs, of `pairs`, and over its better completions' tokens, of `tokens`.
Tensor PreferenceObjective::loss_of(const Tensor& logprob, const Batch& micro, double pairs, double tokens,
                                    std::vector<double>& sums) {
  Tensor reference;
  {
    const torch::NoGradGuard no_grad;
    reference = judged(reference_, micro).logprob;
  }
  const auto by_pair = [](const Tensor& rows) { return rows.view({-1, 2}); };  // [P, 2]
  const Tensor count = by_pair((micro.target != data::kIgnore).sum(1)), real = count.gt(0).all(1);
  const Tensor own = by_pair(logprob.sum(1, false, torch::kFloat64)),
               ratio = own - by_pair(reference.sum(1, false, torch::kFloat64));
  const Tensor taken = methods::preference_by_token(config_.dpo_loss) ? ratio / count.clamp_min(1) : ratio;
  const Tensor each = methods::preference_loss(taken.select(1, 0), taken.select(1, 1), config_.dpo_loss,
                                               config_.dpo_beta, config_.dpo_label_smoothing);
  Tensor loss = torch::where(real, each, 0.0).sum() / pairs;
  if (config_.dpo_sft_coef > 0) loss = loss - config_.dpo_sft_coef * own.select(1, 0).sum() / std::max(tokens, 1.0);

  const Tensor r = config_.dpo_beta * ratio.detach(), l = own.detach();
  const auto add = [&](Sum sum, const Tensor& x) {
    sums[sum] += torch::where(real, x.to(torch::kFloat64), 0.0).sum().item<double>();
  };
  add(kMargin, r.select(1, 0) - r.select(1, 1));
  add(kAccuracy, r.select(1, 0) > r.select(1, 1));
  add(kInformation, methods::differential_information(ratio.detach(), torch::zeros_like(ratio)));
  add(kChosen, r.select(1, 0));
  add(kRejected, r.select(1, 1));
  add(kLogprobChosen, l.select(1, 0));
  add(kLogprobRejected, l.select(1, 1));
  return loss;
}

}  // namespace isentrope::train
