#include "csrc/train/objective.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "csrc/train/contrastive_objective.h"
#include "csrc/train/distill_objective.h"
#include "csrc/train/policy_objective.h"
#include "csrc/train/preference_objective.h"
#include "csrc/train/prefix.h"
#include "csrc/train/tag_objective.h"
#include "csrc/train/update_pass.h"

namespace isentrope::train {
namespace {

// Mean cross-entropy of the targets: every token of a text, or those of completions alone. The source decides; weights (csrc/methods)
// choose among them. Beside it, where layers read a prefix, that of the tokens which are hidden there (csrc/train/prefix.h).
class CrossEntropy : public Objective {
 public:
  CrossEntropy(AttentionEntropy attention, const BatchConfig& batch, std::shared_ptr<const Ranks> ranks,
               std::vector<methods::Weight> weight)
      : Objective(std::move(attention), std::move(ranks)), batch_(batch), weight_(std::move(weight)) {}

  std::map<std::string, double> backward(model::Decoder& model, const Batch& given, uint64_t seed,
                                         AttentionWatch* watch, Gradients* gradients) override {
    const Batch update = with_hidden(given, model->config(), seed);
    const double tokens = next_tokens(update).sum().item<double>(), hidden = update.tokens.lt(0).sum().item<double>();
    std::vector<double> sums(
        5);  // of the loss, of entropies, of their squares, of cross-entropies, of those of hidden tokens
    std::map<std::string, double> values;
    passes(model, update, watch, gradients, sums, values);
    ranks_->sum(sums);
    if (watch) watch->over(*ranks_);
    if (tokens == 0) values.clear();
    if (hidden > 0) values["prefix/loss"] = sums[4] / hidden;
    values["loss"] = sums[0];
    values["tokens"] = tokens;
    if (tokens == 0) return values;
    if (!weight_.empty()) values["loss/all"] = sums[3] / tokens;
    const double H = sums[1] / tokens;
    values["entropy/mean"] = H;
    values["entropy/std"] = std::sqrt(std::max(sums[2] / tokens - H * H, 0.0));
    return values;
  }

 private:
  void passes(model::Decoder& model, const Batch& update, AttentionWatch* watch, Gradients* gradients,
              std::vector<double>& sums, std::map<std::string, double>& values) {
    const std::vector<Batch> micros = split(share_of_rank(update, ranks_->rank(), ranks_->size()), batch_.micro_tokens);
    const bool together = batch_.micro_tokens == 0;
    const bool one_pass = ranks_->alone() ? micros.size() == 1 : together;
    const Sent sent{gradients};
    double counted = next_tokens(update).sum().item<double>();
    const double hidden = update.tokens.lt(0).sum().item<double>(),
                 of_hidden = model->config().prefix_linear.mask_weight / std::max(hidden, 1.0);
    Tensor factor;  // of own rows
    if (!weight_.empty() && !one_pass) factor = choose(look(model, micros), update, counted, values);
    int64_t row = 0;
    for (const Batch& micro : micros) {
      Pass pass(attention_, watch, together ? ranks_.get() : nullptr);
      const auto out = pass.tokens(model, micro, /*temperature=*/1.0);
      if (!weight_.empty() && one_pass)
        factor = choose({out.logprob.detach(), out.entropy.detach()}, update, counted, values);
      Tensor next = out.logprob, entropy = out.entropy.detach().to(torch::kFloat64), guess;
      if (hidden > 0) {
        const Tensor there = micro.tokens.lt(0);
        guess = next.masked_fill(there.logical_not(), 0);
        next = next.masked_fill(there, 0);
        entropy = entropy.masked_fill(there, 0);
        sums[4] -= guess.detach().sum(torch::kFloat64).item<double>();
      }
      const Tensor learnt = factor.defined() ? next * factor.slice(0, row, row + micro.size()) : next;
      row += micro.size();
      Tensor loss = -learnt.sum() / std::max(counted, 1.0);
      if (hidden > 0) loss = loss - of_hidden * guess.sum();
      sums[0] += pass.backward(loss, together ? 1.0 : share_of(micro, update), gradients, &micro == &micros.back());
      if (factor.defined()) sums[3] -= next.detach().sum(torch::kFloat64).item<double>();
      // Ignored rows have entropy 0 and leave the sums alone. In double: a spread of 1e-3 around 5 nats is the ninth digit of
      // the mean of squares.
      sums[1] += entropy.sum().item<double>();
      sums[2] += entropy.square().sum().item<double>();
    }
  }

  // [B, T] bool: of targets those that are no hidden tokens of a prefix.
  static Tensor next_tokens(const Batch& update) {
    return (update.target != data::kIgnore).logical_and(update.tokens.ge(0));
  }

  struct Seen {
    Tensor logprob, entropy;  // [own rows, T], without gradient
  };
  // Where the update is cut, what its weights look at takes passes of its own.
  static Seen look(model::Decoder& model, const std::vector<Batch>& micros) {
    const torch::NoGradGuard no_grad;
    std::vector<Tensor> logprobs, entropies;
    for (const Batch& micro : micros) {
      const auto out = model->token_entropy(micro.tokens, micro.target, 1.0, nullptr, {micro.position, micro.prefix});
      logprobs.push_back(out.logprob), entropies.push_back(out.entropy);
    }
    return {torch::cat(logprobs), torch::cat(entropies)};
  }
  // The factor of each of own rows' tokens; counted: of the update's tokens those that are still learnt.
  Tensor choose(const Seen& own, const Batch& update, double& counted, std::map<std::string, double>& values) {
    methods::Update seen;
    seen.mask = next_tokens(update);
    seen.logprob = of_update(*ranks_, own.logprob, update);
    seen.entropy = of_update(*ranks_, own.entropy, update);
    const Tensor factor = weigh(weight_, seen, update, batch_.micro_tokens, values);
    counted = seen.mask.sum().item<double>();
    return of_rank(*ranks_, factor, update);
  }

  BatchConfig batch_;
  methods::Chain<methods::Weight> weight_;
};

}  // namespace

Batch share_of_rank(const Batch& update, int64_t rank, int64_t ranks) {
  if (ranks == 1) return update;
  const int64_t together = update.together, B = update.size() / together, T = update.tokens.size(1);
  const auto rows = [&](int64_t begin, int64_t end) { return update.rows(begin * together, end * together); };
  if (rank >= B) {
    Batch none = rows(B - 1, B);
    none.target = torch::full_like(none.target, data::kIgnore);
    for (Tensor* of : {&none.old_logprob, &none.advantage})
      if (of->defined()) *of = torch::zeros_like(*of);
    none.lengths = torch::zeros({together}, none.tokens.options());
    return none;
  }
  if (B <= ranks) return rows(rank, rank + 1);
  const Tensor tokens = update.lengths.defined() ? update.lengths.to(torch::kCPU).view({B, together}).sum(1)
                                                 : torch::full({B}, T * together, torch::kInt64);
  const int64_t *length = tokens.const_data_ptr<int64_t>(), all = std::accumulate(length, length + B, int64_t{0});
  // Rank r ends where r + 1 shares of the tokens are reached, and leaves a row to each rank behind it.
  int64_t begin = 0, end = 0, sum = 0;
  for (int64_t r = 0; r <= rank; ++r) {
    begin = end;
    do sum += length[end++];
    while (end < B - (ranks - 1 - r) && (2 * sum + length[end]) * ranks <= 2 * all * (r + 1));
    if (r == ranks - 1) end = B;
  }
  return rows(begin, end);
}

std::unique_ptr<Objective> make_objective(const ObjectiveConfig& config, const BatchConfig& batch,
                                          const model::Decoder& model, double temperature,
                                          std::optional<model::Decoder> reference, std::shared_ptr<const Ranks> ranks,
                                          std::vector<methods::Weight> weight) {
  const model::DecoderConfig& c = model->config();
  AttentionEntropy attention(config.attention_entropy, model::attending_layers(c), c.num_attention_heads,
                             model->embedding().device());
  if (config.kind == "grpo")
    return std::make_unique<PolicyObjective>(std::move(attention), config, batch, temperature, std::move(reference),
                                             std::move(ranks), std::move(weight));
  if (config.kind == "dpo")
    return std::make_unique<PreferenceObjective>(std::move(attention), config, batch, std::move(reference),
                                                 std::move(ranks));
  if (config.kind == "distill")
    return std::make_unique<DistillObjective>(std::move(attention), config.distill, batch, model, std::move(reference),
                                              std::move(ranks));
  if (config.kind == "tag") return std::make_unique<TagObjective>(std::move(attention), batch, std::move(ranks));
  if (config.kind == "contrastive")
    return std::make_unique<ContrastiveObjective>(std::move(attention), config.contrastive, batch, std::move(ranks));
  return std::make_unique<CrossEntropy>(std::move(attention), batch, std::move(ranks), std::move(weight));
}

}  // namespace isentrope::train
