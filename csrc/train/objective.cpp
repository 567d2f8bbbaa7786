#include "csrc/train/objective.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "csrc/ops/ops.h"
#include "csrc/rl/ares.h"

namespace isentrope::train {
namespace {

using data::Batch;
using torch::Tensor;

// Rows of an update that are computed together: as many as fit the token budget, at least one.
std::vector<Batch> split(const Batch& update, int64_t micro_tokens) {
  const int64_t B = update.tokens.size(0), T = update.tokens.size(1);
  const int64_t rows = micro_tokens > 0 ? std::clamp<int64_t>(micro_tokens / std::max<int64_t>(T, 1), 1, B) : B;
  std::vector<Batch> parts;
  for (int64_t b = 0; b < B; b += rows) parts.push_back(update.rows(b, std::min(b + rows, B)));
  return parts;
}

// One forward pass of a micro-batch, and what its attention has to say. over: the ranks whose rows the penalty speaks of together.
class Pass {
 public:
  Pass(const AttentionEntropy& attention, AttentionWatch* watch, const Ranks* over)
      : attention_(attention), watch_(watch), over_(over) {
    if (watch_) record_ = watch_->record();
  }

  ops::TokenEntropy tokens(model::Decoder& model, const Batch& micro, double temperature) {
    rows_ = micro.real();
    return model->token_entropy(micro.tokens, micro.target, temperature,
                                watch_ || attention_.regularises() ? &record_ : nullptr, micro.position);
  }

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
  model::AttentionRecord record_;
  Tensor rows_;  // [B, T] bool: no padding
};

double share_of(const Batch& micro, const Batch& update) {
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

// For each difficulty [kDifficulties, 2]: the sum of k3 (kernels/grpo_loss.h) over its tokens, and how many these are.
Tensor divergence_by_difficulty(const Tensor& logprob, const Tensor& reference, const Batch& batch) {
  const Tensor counts = (batch.target != data::kIgnore).to(torch::kFloat64);
  const Tensor delta = (logprob.detach() - reference).to(torch::kFloat64).clamp(-20, 20);
  const Tensor k3 = ((-delta).exp() + delta - 1).clamp_max(10);
  const Tensor rows = torch::stack({(k3 * counts).sum(1), counts.sum(1)}, 1);  // [B, 2]
  return torch::one_hot(batch.difficulty, rl::kDifficulties).to(torch::kFloat64).t().matmul(rows);
}

// Mean cross-entropy of the targets: every token of a text, or those of completions alone. The source decides.
class CrossEntropy : public Objective {
 public:
  CrossEntropy(AttentionEntropy attention, const BatchConfig& batch, std::shared_ptr<const Ranks> ranks)
      : Objective(std::move(attention), std::move(ranks)), batch_(batch) {}

  std::map<std::string, double> backward(model::Decoder& model, const Batch& update, uint64_t, AttentionWatch* watch,
                                         Gradients* gradients) override {
    const double tokens = (update.target != data::kIgnore).sum().item<double>();
    std::vector<double> sums(3);  // of the loss, of entropies, of their squares
    passes(model, update, tokens, watch, gradients, sums);
    ranks_->sum(sums);
    if (watch) watch->over(*ranks_);
    std::map<std::string, double> values = {{"loss", sums[0]}, {"tokens", tokens}};
    if (tokens == 0) return values;
    const double H = sums[1] / tokens;
    values["entropy/mean"] = H;
    values["entropy/std"] = std::sqrt(std::max(sums[2] / tokens - H * H, 0.0));
    return values;
  }

 private:
  void passes(model::Decoder& model, const Batch& update, double tokens, AttentionWatch* watch, Gradients* gradients,
              std::vector<double>& sums) const {
    const std::vector<Batch> micros = split(share_of_rank(update, ranks_->rank(), ranks_->size()), batch_.micro_tokens);
    const bool together = batch_.micro_tokens == 0;
    const Sent sent{gradients};
    for (const Batch& micro : micros) {
      Pass pass(attention_, watch, together ? ranks_.get() : nullptr);
      const auto out = pass.tokens(model, micro, /*temperature=*/1.0);
      sums[0] += pass.backward(-out.logprob.sum() / std::max(tokens, 1.0), together ? 1.0 : share_of(micro, update),
                               &micro == &micros.back() ? gradients : nullptr);
      // Ignored rows have entropy 0 and leave the sums alone. In double: a spread of 1e-3 around 5 nats is the ninth digit of
      // the mean of squares.
      const Tensor entropy = out.entropy.detach().to(torch::kFloat64);
      sums[1] += entropy.sum().item<double>();
      sums[2] += entropy.square().sum().item<double>();
    }
  }

  BatchConfig batch_;
};

// A policy loss on rollouts.
class Grpo : public Objective {
 public:
  Grpo(AttentionEntropy attention, const ObjectiveConfig& config, const BatchConfig& batch, double temperature,
       std::optional<model::Decoder> reference, std::shared_ptr<const Ranks> ranks)
      : Objective(std::move(attention), std::move(ranks)),
        config_(config),
        batch_(batch),
        temperature_(temperature),
        reference_(std::move(reference)) {
    selects_ = config.loss == "clip_cov" || config.loss == "kl_cov" || config.loss == "random";
    mode_ = config.loss == "random" ? config.random_like : config.loss;
    selection_ = config.loss == "random" ? "random_" + config.random_like : config.loss;
  }

  std::map<std::string, double> backward(model::Decoder& model, const Batch& update, uint64_t seed,
                                         AttentionWatch* watch, Gradients* gradients) override {
    Found found;
    passes(model, update, seed, watch, gradients, found);
    if (watch) watch->over(*ranks_);
    auto values = values_of(ranks_->sum(found.loss), ranks_->rows(torch::stack(found.stats)));
    const Tensor logprob = of_update(torch::cat(found.logprobs), update);
    if (values.at("tokens") > 0) values.merge(covariances(logprob, update));
    if (found.divergence.defined()) {
      Tensor sums = found.divergence.to(torch::kCPU).contiguous();
      ranks_->sum(sums);
      for (int64_t d = 0; d < rl::kDifficulties; ++d)
        if (const double tokens = sums[d][1].item<double>(); tokens > 0)
          values[std::string("ref_kl/") + rl::kDifficultyNames[d]] = sums[d][0].item<double>() / tokens;
    }
    return values;
  }

 private:
  // What the passes of this rank have found.
  struct Found {
    double loss = 0;
    std::vector<Tensor> stats, logprobs;
    Tensor divergence = {};  // [kDifficulties, 2], where the batch tells difficulties
  };

  void passes(model::Decoder& model, const Batch& update, uint64_t seed, AttentionWatch* watch, Gradients* gradients,
              Found& found) const {
    const Batch own = share_of_rank(update, ranks_->rank(), ranks_->size());
    const std::vector<Batch> micros = split(own, batch_.micro_tokens);
    const Tensor normalizer = normalizer_of(update.target != data::kIgnore);
    const bool together = batch_.micro_tokens == 0, global = selects_ && config_.scope == "global";
    const Sent sent{gradients};

    Tensor selected;  // [B, T] of own rows; over the whole update, which takes a pass of its own where that is cut
    if (global && (ranks_->alone() ? micros.size() > 1 : !together)) {
      torch::NoGradGuard no_grad;
      std::vector<Tensor> parts;
      for (const Batch& micro : micros) parts.push_back(tokens_of(model, micro).logprob);
      selected = select_own(torch::cat(parts), update, seed);
    }

    int64_t row = 0;
    for (size_t m = 0; m < micros.size(); ++m) {
      const Batch& micro = micros[m];
      Pass pass(attention_, watch, together ? ranks_.get() : nullptr);
      const auto policy = pass.tokens(model, micro, temperature_);
      Tensor picked;
      if (selected.defined())
        picked = selected.slice(0, row, row + micro.size());
      else if (global)
        picked = select_own(policy.logprob.detach(), update, seed);
      else if (selects_)
        picked = select(policy.logprob.detach(), micro, seed + m);
      const auto out = loss_of(policy, micro, picked, normalizer, found.divergence);
      found.loss += pass.backward(out.loss, together ? 1.0 : share_of(micro, update),
                                  m + 1 == micros.size() ? gradients : nullptr);
      found.stats.push_back(out.stats);
      found.logprobs.push_back(policy.logprob.detach());
      row += micro.size();
    }
  }

  // [own rows, T] of each rank → [B, T], without the rows of which nothing counts.
  Tensor of_update(const Tensor& logprob, const Batch& update) const {
    return ranks_->rows(logprob).slice(0, 0, update.size());
  }

  // The selection over the whole update; of it the rows of this rank.
  Tensor select_own(const Tensor& logprob, const Batch& update, uint64_t seed) const {
    const Tensor selected = select(of_update(logprob, update), update, seed);
    if (ranks_->alone()) return selected;
    Batch marked = update;  // its target tells what is selected
    marked.target = selected.to(torch::kInt64);
    const Batch own = share_of_rank(marked, ranks_->rank(), ranks_->size());
    return own.target == 1;
  }

  std::map<std::string, double> values_of(double loss, const Tensor& micro_stats) const {
    const Tensor stats = ops::grpo_combine_stats(micro_stats).to(torch::kCPU);
    const auto names = ops::grpo_stat_names();
    std::map<std::string, double> all, values = {{"loss", loss}};
    for (size_t i = 0; i < names.size(); ++i) all[names[i]] = stats.const_data_ptr<float>()[i];
    // The others are means and maxima over tokens, and there are none of no token.
    for (const auto& [name, value] : all)
      if (name == "tokens" || name == "sequences" ||
          (all.at("tokens") > 0 && !name.starts_with("cov/") && (reference_ || !name.starts_with("ref_kl/"))))
        values[name] = value;
    return values;
  }

  // About the means of the whole update, however it was cut: what clip_cov and kl_cov with scope global choose by.
  static std::map<std::string, double> covariances(const Tensor& logprob, const Batch& update) {
    const Tensor mask = update.target != data::kIgnore;
    const Tensor l = logprob.masked_select(mask).to(torch::kFloat64);
    const Tensor a = update.advantage.masked_select(mask).to(torch::kFloat64);
    const Tensor c = (a - a.mean()) * (l - l.mean());
    return {{"cov/mean", c.mean().item<double>()}, {"cov/max", c.max().item<double>()}};
  }

  ops::TokenEntropy tokens_of(model::Decoder model, const Batch& batch) const {
    return model->token_entropy(batch.tokens, batch.target, temperature_);
  }

  // What the sums of token losses are divided by, counted over the whole update.
  Tensor normalizer_of(const Tensor& mask) const {
    const auto count = [](const Tensor& x) { return x.sum().to(torch::kFloat64).clamp_min(1); };
    const int64_t length = config_.norm_length > 0 ? config_.norm_length : mask.size(1);
    if (config_.aggregate == "token-mean") return count(mask);
    if (config_.aggregate == "token-sum-norm" || config_.aggregate == "token-sum")
      return torch::full({}, config_.aggregate == "token-sum" ? 1 : length,
                         torch::TensorOptions().dtype(torch::kFloat64).device(mask.device()));
    return config_.aggregate == "seq-mean-token-sum-norm" ? count(mask.any(1)) * length : count(mask.any(1));
  }

  Tensor select(const Tensor& logprob, const Batch& batch, uint64_t seed) const {
    return ops::grpo_select(logprob, batch.old_logprob, batch.advantage, batch.target != data::kIgnore,
                            {.mode = selection_,
                             .seed = static_cast<int64_t>(seed),
                             .cov_ratio = config_.cov_ratio,
                             .cov_lower = config_.cov_lower,
                             .cov_upper = config_.cov_upper,
                             .clip_low = config_.clip_low,
                             .clip_high = clip_high(),
                             .minimum = 1});
  }

  ops::GrpoLoss loss_of(const ops::TokenEntropy& policy, const Batch& batch, const Tensor& selected,
                        const Tensor& normalizer, Tensor& divergence) const {
    std::optional<Tensor> reference;
    if (reference_) {
      torch::NoGradGuard no_grad;
      reference = tokens_of(*reference_, batch).logprob;
    }
    if (reference && batch.difficulty.defined()) {
      const Tensor found = divergence_by_difficulty(policy.logprob, *reference, batch);
      divergence = divergence.defined() ? divergence + found : found;
    }
    ops::GrpoLossOptions options;
    options.mode = mode_;
    options.aggregate = config_.aggregate;
    options.clip_low = config_.clip_low;
    options.clip_high = clip_high();
    if (config_.dual_clip > 0) options.dual_clip = config_.dual_clip;
    options.delta = config_.delta;
    options.tau_pos = config_.tau_pos;
    options.tau_neg = config_.tau_neg;
    options.vespo_k_pos = config_.vespo_k_pos;
    options.vespo_lambda_pos = config_.vespo_lambda_pos;
    options.vespo_k_neg = config_.vespo_k_neg;
    options.vespo_lambda_neg = config_.vespo_lambda_neg;
    options.gppo_beta1 = config_.gppo_beta1;
    options.gppo_beta2 = config_.gppo_beta2;
    options.dro_beta = config_.dro_beta;
    options.kl_cov_coef = config_.kl_cov_coef;
    options.ref_kl = config_.ref_kl;
    options.ref_kl_coef = config_.ref_kl_coef;
    options.entropy_coef = config_.entropy_coef;
    if (selected.defined()) options.selected = selected;
    options.ref_logprob = reference;
    if (batch.ref_kl_weight.defined()) options.ref_kl_weight = batch.ref_kl_weight;
    // Entropy that only statistics want carries no gradient memory.
    options.entropy = config_.entropy_coef > 0 ? policy.entropy : policy.entropy.detach();
    options.normalizer = normalizer;
    return ops::grpo_loss(policy.logprob, batch.old_logprob, batch.advantage, batch.target != data::kIgnore, options);
  }

  double clip_high() const {
    return config_.clip_high.value_or(config_.loss == "clip_higher" ? 0.28 : config_.clip_low);
  }

  ObjectiveConfig config_;
  BatchConfig batch_;
  double temperature_;
  std::optional<model::Decoder> reference_;
  bool selects_;
  std::string mode_, selection_;
};

}  // namespace

Batch share_of_rank(const Batch& update, int64_t rank, int64_t ranks) {
  if (ranks == 1) return update;
  const int64_t B = update.size(), T = update.tokens.size(1);
  if (rank >= B) {
    Batch none = update.rows(B - 1, B);
    none.target = torch::full_like(none.target, data::kIgnore);
    for (Tensor* of : {&none.old_logprob, &none.advantage})
      if (of->defined()) *of = torch::zeros_like(*of);
    none.lengths = torch::zeros({1}, none.tokens.options());
    return none;
  }
  if (B <= ranks) return update.rows(rank, rank + 1);
  const Tensor tokens = update.lengths.defined() ? update.lengths.to(torch::kCPU) : torch::full({B}, T, torch::kInt64);
  const int64_t *length = tokens.const_data_ptr<int64_t>(), all = std::accumulate(length, length + B, int64_t{0});
  // Rank r ends where r + 1 shares of the tokens are reached, and leaves a row to each rank behind it.
  int64_t begin = 0, end = 0, sum = 0;
  for (int64_t r = 0; r <= rank; ++r) {
    begin = end;
    do sum += length[end++];
    while (end < B - (ranks - 1 - r) && (2 * sum + length[end]) * ranks <= 2 * all * (r + 1));
    if (r == ranks - 1) end = B;
  }
  return update.rows(begin, end);
}

std::unique_ptr<Objective> make_objective(const ObjectiveConfig& config, const BatchConfig& batch,
                                          const model::Decoder& model, double temperature,
                                          std::optional<model::Decoder> reference, std::shared_ptr<const Ranks> ranks) {
  const model::DecoderConfig& c = model->config();
  AttentionEntropy attention(config.attention_entropy, c.num_hidden_layers, c.num_attention_heads,
                             model->embedding().device());
  if (config.kind == "grpo")
    return std::make_unique<Grpo>(std::move(attention), config, batch, temperature, std::move(reference),
                                  std::move(ranks));
  return std::make_unique<CrossEntropy>(std::move(attention), batch, std::move(ranks));
}

}  // namespace isentrope::train
