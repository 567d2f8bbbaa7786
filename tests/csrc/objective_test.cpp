// Gradient and statistics of an update: however it is cut, and where nothing counts.
#include "csrc/train/objective.h"

#include <gtest/gtest.h>

#include <cmath>

namespace isentrope::train {
namespace {

using torch::Tensor;

model::Decoder small_model() {
  model::DecoderConfig config;
  config.num_hidden_layers = 1;
  config.hidden_size = 16;
  config.num_attention_heads = 2;
  config.num_key_value_heads = 1;
  config.intermediate_size = 24;
  config.max_position_embeddings = 32;
  config.vocabulary = 23;
  model::Decoder model(config, 3);
  torch::NoGradGuard no_grad;
  torch::manual_seed(3);
  for (Tensor& parameter : model->parameters()) parameter.normal_(0.0, 0.5);
  return model;
}

// Six rows of different lengths, one without a token that counts.
data::Batch update_of(bool counts = true) {
  const int64_t B = 6, T = 11;
  torch::manual_seed(7);
  const Tensor tokens = torch::randint(1, 23, {B, T}, torch::kInt64);
  const Tensor ends = torch::tensor({11, 3, 7, 0, 9, 5}, torch::kInt64).unsqueeze(1), t = torch::arange(T);
  const Tensor mask = (t >= 2).logical_and(t < ends).logical_and(torch::tensor(counts));
  const Tensor target = torch::where(mask, torch::randint(1, 23, {B, T}, torch::kInt64), data::kIgnore);
  return {tokens, target, torch::where(mask, -3 + torch::rand({B, T}), 0.0f),
          torch::where(mask, torch::randn({B, 1}).expand({B, T}), 0.0f)};
}

struct Outcome {
  std::map<std::string, double> stats;
  std::vector<Tensor> gradient;
};

Outcome run(ObjectiveConfig config, int64_t micro_tokens, const data::Batch& update) {
  model::Decoder model = small_model();
  const auto objective = make_objective(config, {.micro_tokens = micro_tokens}, model);
  Outcome out{objective->backward(model, update, 5, nullptr), {}};
  for (const Tensor& parameter : model->parameters()) out.gradient.push_back(parameter.grad().clone());
  return out;
}

ObjectiveConfig grpo(const std::string& loss, const std::string& aggregate = "token-mean") {
  ObjectiveConfig config;
  config.kind = "grpo";
  config.loss = loss;
  config.aggregate = aggregate;
  config.cov_ratio = 0.2;
  config.cov_lower = 0.01;
  config.entropy_coef = 0.1;
  return config;
}

void expect_same(const Outcome& whole, const Outcome& cut, const std::string& what) {
  ASSERT_EQ(whole.stats.size(), cut.stats.size()) << what;
  // Sums of some hundred float32 terms in another order: 1e-6 of what they add up.
  for (const auto& [name, value] : whole.stats)
    EXPECT_NEAR(cut.stats.at(name), value, 1e-5 * std::max(1.0, std::abs(value))) << what << " " << name;
  for (size_t i = 0; i < whole.gradient.size(); ++i)
    EXPECT_TRUE(torch::allclose(cut.gradient[i], whole.gradient[i], 1e-4, 1e-6)) << what << " parameter " << i;
}

TEST(Objective, DoesNotDependOnHowAnUpdateIsCut) {
  const data::Batch update = update_of();
  for (const char* loss : {"clip", "clip_cov", "kl_cov", "gspo"})
    for (const int64_t micro_tokens : {11, 25})
      expect_same(run(grpo(loss), 0, update), run(grpo(loss), micro_tokens, update), loss);
  for (const char* aggregate :
       {"seq-mean-token-sum", "seq-mean-token-mean", "seq-mean-token-sum-norm", "token-sum-norm"})
    for (const int64_t norm_length : {0, 40}) {
      ObjectiveConfig config = grpo("clip", aggregate);
      config.norm_length = norm_length;
      expect_same(run(config, 0, update), run(config, 11, update), aggregate);
    }
  for (const char* kind : {"sft", "pretrain"}) {
    ObjectiveConfig config;
    config.kind = kind;
    expect_same(run(config, 0, update), run(config, 11, update), kind);
  }
}

TEST(Objective, NormOfDrGrpoIsSequencesTimesLength) {
  const data::Batch update = update_of();
  ObjectiveConfig sum = grpo("clip", "token-sum-norm"), mean = grpo("clip", "seq-mean-token-sum-norm");
  sum.norm_length = mean.norm_length = 40;
  // Five of the six sequences have a token.
  EXPECT_NEAR(run(mean, 0, update).stats.at("loss") * 5, run(sum, 0, update).stats.at("loss"), 1e-6);
}

TEST(Objective, CovariancesAreAboutTheWholeUpdate) {
  const data::Batch update = update_of();
  model::Decoder model = small_model();
  const Tensor mask = update.target != data::kIgnore;
  const Tensor l = model->token_entropy(update.tokens, update.target).logprob.masked_select(mask).to(torch::kFloat64);
  const Tensor a = update.advantage.masked_select(mask).to(torch::kFloat64);
  const Tensor c = (a - a.mean()) * (l - l.mean());
  for (const int64_t micro_tokens : {0, 11}) {
    const auto stats = run(grpo("clip"), micro_tokens, update).stats;
    EXPECT_NEAR(stats.at("cov/max"), c.max().item<double>(), 1e-5) << micro_tokens;
    EXPECT_NEAR(stats.at("cov/mean"), c.mean().item<double>(), 1e-5) << micro_tokens;
  }
}

TEST(Objective, AMeanOverNoTokenIsNotThere) {
  for (const int64_t micro_tokens : {0, 11}) {
    using Stats = std::map<std::string, double>;
    for (const char* loss : {"clip", "kl_cov", "clip_cov"})
      EXPECT_EQ(run(grpo(loss), micro_tokens, update_of(false)).stats,
                (Stats{{"loss", 0}, {"sequences", 0}, {"tokens", 0}}))
          << loss;
    EXPECT_EQ(run({}, micro_tokens, update_of(false)).stats, (Stats{{"loss", 0}, {"tokens", 0}}));
  }
  const double tokens = (update_of().target != data::kIgnore).sum().item<double>();
  for (const int64_t micro_tokens : {0, 11}) {
    EXPECT_EQ(run(grpo("clip"), micro_tokens, update_of()).stats.at("tokens"), tokens);
    EXPECT_EQ(run({}, micro_tokens, update_of()).stats.at("tokens"), tokens);
  }
}

// Entropies of log 23 less some hundred thousandths: their spread is in the last digits of a float32 sum of squares.
TEST(Objective, SpreadOfAlmostEqualEntropies) {
  model::Decoder model = small_model();
  {
    torch::NoGradGuard no_grad;
    for (Tensor& parameter : model->parameters())
      if (parameter.dim() == 2 && parameter.size(0) == 23) parameter.mul_(0.01);
  }
  const data::Batch update = update_of();
  const auto entropy = model->token_entropy(update.tokens, update.target)
                           .entropy.masked_select(update.target != data::kIgnore)
                           .to(torch::kFloat64);
  const double wanted = entropy.std(/*unbiased=*/false).item<double>();
  ASSERT_LT(wanted, 3e-3);
  ASSERT_GT(wanted, 1e-5);
  const auto stats = make_objective({}, {}, model)->backward(model, update, 5, nullptr);
  EXPECT_NEAR(stats.at("entropy/std"), wanted, 1e-3 * wanted);
}

// ---- padding is told by lengths alone -------------------------------------------------------------------------------

struct Watched {
  Outcome outcome;
  AttentionStatistics attention;
};

// A pass with the regulariser and the statistics of attention, which look at every row that is no padding. other: the token
// that changes places with token 0, in the weights as in the batch.
Watched watched(const std::string& kind, int64_t micro_tokens, data::Batch update, int64_t other = 0) {
  model::Decoder model = small_model();
  {
    torch::NoGradGuard no_grad;
    std::vector<int64_t> order(23);
    for (int64_t id = 0; id < 23; ++id) order[id] = id == 0 ? other : id == other ? 0 : id;
    const Tensor place = torch::tensor(order, torch::kInt64);
    for (Tensor& parameter : model->parameters())
      if (parameter.dim() == 2 && parameter.size(0) == 23) parameter.copy_(parameter.index_select(0, place));
    update.tokens = place.index_select(0, update.tokens.flatten()).view_as(update.tokens);
    const Tensor counts = update.target != data::kIgnore;
    update.target = torch::where(
        counts, place.index_select(0, update.target.clamp_min(0).flatten()).view_as(update.target), data::kIgnore);
  }
  ObjectiveConfig config = kind == "grpo" ? grpo("clip") : ObjectiveConfig{.kind = kind};
  config.attention_entropy.coef = 0.3;
  AttentionWatch watch(/*with_bound=*/true);
  const auto objective = make_objective(config, {.micro_tokens = micro_tokens}, model);
  Watched out{{objective->backward(model, update, 5, &watch), {}}, watch.statistics()};
  for (const Tensor& parameter : model->parameters()) out.outcome.gradient.push_back(parameter.grad().clone());
  return out;
}

// Texts of which every third token is token 0, as in a vocabulary that has no place for padding.
data::Batch update_of_zeros(int64_t padding) {
  data::Batch update = update_of();
  update.lengths = torch::tensor({11, 4, 7, 2, 9, 5}, torch::kInt64);
  const Tensor t = torch::arange(update.tokens.size(1));
  update.tokens.masked_fill_((t % 3 == 1).expand_as(update.tokens), 0);
  update.target.masked_fill_((update.target != data::kIgnore).logical_and(t % 3 == 0), 0);
  update.tokens.masked_fill_(update.real().logical_not(), padding);
  return update;
}

TEST(Objective, WhatStandsInPaddingChangesNoBit) {
  for (const char* kind : {"sft", "pretrain", "grpo"})
    for (const int64_t micro_tokens : {0, 25}) {
      const Watched zeros = watched(kind, micro_tokens, update_of_zeros(0));
      const Watched fives = watched(kind, micro_tokens, update_of_zeros(5));
      EXPECT_EQ(zeros.outcome.stats, fives.outcome.stats) << kind;
      EXPECT_EQ(zeros.attention.normalized, fives.attention.normalized) << kind;
      EXPECT_EQ(zeros.attention.max_logit, fives.attention.max_logit) << kind;
      for (size_t i = 0; i < zeros.outcome.gradient.size(); ++i)
        EXPECT_TRUE(torch::equal(zeros.outcome.gradient[i], fives.outcome.gradient[i])) << kind << " parameter " << i;
    }
}

TEST(Objective, TokenZeroIsATokenLikeAnyOther) {
  for (const char* kind : {"sft", "pretrain", "grpo"}) {
    const Watched zeros = watched(kind, 25, update_of_zeros(0)), named = watched(kind, 25, update_of_zeros(0), 17);
    // Attention sees the same rows of the same embeddings; sums over the vocabulary add up in another order.
    EXPECT_EQ(zeros.attention.normalized, named.attention.normalized) << kind;
    EXPECT_EQ(zeros.attention.max_logit, named.attention.max_logit) << kind;
    ASSERT_EQ(zeros.outcome.stats.size(), named.outcome.stats.size());
    for (const auto& [name, value] : zeros.outcome.stats)
      EXPECT_NEAR(named.outcome.stats.at(name), value, 1e-5 * std::max(1.0, std::abs(value))) << kind << " " << name;
  }
}

}  // namespace
}  // namespace isentrope::train
