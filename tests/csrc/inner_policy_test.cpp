// The policy of an inner layer (BuPO): what it is, and what learns of it.
#include <gtest/gtest.h>

#include "csrc/ops/ops.h"
#include "csrc/train/objective.h"

namespace isentrope::train {
namespace ISENTROPE_UNIT {

using torch::Tensor;

model::Decoder model_of(bool fused, const std::string& norm = "pre") {
  model::DecoderConfig config;
  config.num_hidden_layers = 3;
  config.hidden_size = 16;
  config.num_attention_heads = 2;
  config.num_key_value_heads = 1;
  config.intermediate_size = 24;
  config.max_position_embeddings = 32;
  config.vocabulary = 23;
  config.tie_word_embeddings = false;
  config.fused_head = fused;
  config.norm = norm;
  model::Decoder model(config, 3);
  torch::NoGradGuard no_grad;
  torch::manual_seed(3);
  for (Tensor& parameter : model->parameters()) parameter.normal_(0.0, 0.5);
  return model;
}

data::Batch update_of() {
  const int64_t B = 4, T = 8;
  torch::manual_seed(7);
  data::Batch update;
  update.tokens = torch::randint(1, 23, {B, T}, torch::kInt64);
  update.target = torch::randint(1, 23, {B, T}, torch::kInt64);
  update.target.slice(1, 0, 2).fill_(data::kIgnore);
  const Tensor counts = update.target != data::kIgnore;
  update.old_logprob = torch::where(counts, -3 + torch::rand({B, T}), 0.0f);
  update.old_entropy = torch::where(counts, 1.5f, 0.0f);
  update.advantage = torch::where(counts, torch::randn({B, 1}).expand({B, T}), 0.0f);
  return update;
}

struct Outcome {
  std::map<std::string, double> stats;
  std::map<std::string, Tensor> gradient;  // undefined where none came
};

Outcome run(std::optional<methods::InnerPolicy> inner, int64_t step = 0, int64_t micro_tokens = 0) {
  model::Decoder model = model_of(true);
  ObjectiveConfig config;
  config.kind = "grpo", config.inner_policy = inner;
  const auto objective = make_objective(config, {.micro_tokens = micro_tokens}, model);
  std::vector<data::Batch> updates{update_of()};
  objective->begin(step, model, updates);
  Outcome out{objective->backward(model, updates[0], 5, nullptr), {}};
  for (const auto& parameter : model->named_parameters()) out.gradient[parameter.key()] = parameter.value().grad();
  return out;
}

TEST(InnerPolicy, IsTheSoftmaxOfTheHeadOverTheStreamBehindABlock) {
  for (const bool fused : {true, false})
    for (const std::string norm : {"pre", "post"}) {
      model::Decoder model = model_of(fused, norm);
      const data::Batch update = update_of();
      const torch::NoGradGuard no_grad;
      const Tensor stream = model->hidden(update.tokens, nullptr, {}, 1);
      const auto weights = model->named_weights();
      const Tensor head = weights.back().first == "lm_head.weight" ? weights.back().second : Tensor();
      ASSERT_TRUE(head.defined());
      const auto wanted = ops::token_entropy(stream.matmul(head.t()), update.target, 0.7);
      const auto got = model->token_entropy(update.tokens, update.target, 0.7, nullptr, {}, {}, false, 1);
      EXPECT_TRUE(torch::allclose(got.logprob, wanted.logprob, 1e-5, 1e-5)) << norm;
      EXPECT_TRUE(torch::allclose(got.entropy, wanted.entropy, 1e-5, 1e-5)) << norm;
      const auto whole = model->token_entropy(update.tokens, update.target, 0.7);
      const auto last = model->token_entropy(update.tokens, update.target, 0.7, nullptr, {}, {}, false, 2);
      EXPECT_TRUE(torch::equal(last.logprob, whole.logprob)) << "the last block is the whole";
      EXPECT_FALSE(torch::allclose(got.logprob, whole.logprob, 1e-2, 1e-2));
      model::AttentionRecord record, plain;
      model->token_entropy(update.tokens, update.target, 0.7, &record, {}, {}, false, 1);
      model->token_entropy(update.tokens, update.target, 0.7, &plain);
      ASSERT_EQ(record.entropy.size(), plain.entropy.size());
      for (size_t l = 0; l < plain.entropy.size(); ++l) EXPECT_TRUE(torch::equal(record.entropy[l], plain.entropy[l]));
    }
}

TEST(InnerPolicy, LearnsAloneAndForItsStepsAlone) {
  const Outcome inner = run(methods::InnerPolicy{.layer = 1, .steps = 2}), plain = run(std::nullopt);
  EXPECT_NEAR(inner.stats.at("ratio/max"), 1, 1e-5) << "of the inner policy to itself";
  EXPECT_NEAR(inner.stats.at("kl/k3"), 0, 1e-6);
  EXPECT_DOUBLE_EQ(inner.stats.at("entropy/mean"), 1.5) << "of the policy that drew";
  EXPECT_TRUE(inner.stats.contains("inner/entropy"));
  EXPECT_FALSE(inner.stats.contains("mismatch/mean"));
  bool reached = false;
  for (const auto& [name, gradient] : inner.gradient) {
    const bool behind = name.find('2') != std::string::npos || name.find("final") != std::string::npos;
    if (behind) EXPECT_FALSE(gradient.defined() && gradient.abs().max().item<double>() > 0) << name;
    if (!behind) reached |= gradient.defined() && gradient.abs().max().item<double>() > 0;
  }
  EXPECT_TRUE(reached);
  const auto same = [](const Outcome& a, const Outcome& b) {
    EXPECT_EQ(a.stats, b.stats);
    for (const auto& [name, gradient] : a.gradient) EXPECT_TRUE(gradient.equal(b.gradient.at(name))) << name;
  };
  same(run(methods::InnerPolicy{.layer = 1, .steps = 2}, /*step=*/2), plain);
  const Outcome cut = run(methods::InnerPolicy{.layer = 1, .steps = 2}, 0, /*micro_tokens=*/8);
  for (const auto& [name, value] : inner.stats) EXPECT_NEAR(cut.stats.at(name), value, 1e-5) << name;
}

}  // namespace ISENTROPE_UNIT
}  // namespace isentrope::train
