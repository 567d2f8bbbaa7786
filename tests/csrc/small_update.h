// A small model, an update for it, and what an objective makes of the two. Of objective_test.cpp, gradient_noise_test.cpp and
// preference_objective_test.cpp.
#pragma once
#include <gtest/gtest.h>

#include <cmath>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "csrc/train/objective.h"

namespace isentrope::train {
namespace {

using torch::Tensor;

inline model::Decoder small_model(int64_t seed = 3) {
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
  torch::manual_seed(seed);
  for (Tensor& parameter : model->parameters()) parameter.normal_(0.0, 0.5);
  return model;
}

// Six rows of different lengths, one without a token that counts.
inline data::Batch update_of(bool counts = true) {
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

inline Outcome run(ObjectiveConfig config, int64_t micro_tokens, const data::Batch& update,
                   std::vector<methods::Weight> weight = {}) {
  model::Decoder model = small_model();
  const auto objective = make_objective(config, {.micro_tokens = micro_tokens}, model, 1.0, std::nullopt,
                                        std::make_shared<Ranks>(), std::move(weight));
  Outcome out{objective->backward(model, update, 5, nullptr), {}};
  for (const Tensor& parameter : model->parameters()) out.gradient.push_back(parameter.grad().clone());
  return out;
}

inline ObjectiveConfig grpo(const std::string& loss, const std::string& aggregate = "token-mean") {
  ObjectiveConfig config;
  config.kind = "grpo";
  config.loss = loss;
  config.aggregate = aggregate;
  config.cov_ratio = 0.2;
  config.cov_lower = 0.01;
  config.entropy = methods::ConstantEntropy{.coef = 0.1};
  return config;
}

inline void expect_same(const Outcome& whole, const Outcome& cut, const std::string& what) {
  ASSERT_EQ(whole.stats.size(), cut.stats.size()) << what;
  // Sums of some hundred float32 terms in another order: 1e-6 of what they add up.
  for (const auto& [name, value] : whole.stats)
    EXPECT_NEAR(cut.stats.at(name), value, 1e-5 * std::max(1.0, std::abs(value))) << what << " " << name;
  for (size_t i = 0; i < whole.gradient.size(); ++i)
    EXPECT_TRUE(torch::allclose(cut.gradient[i], whole.gradient[i], 1e-4, 1e-6)) << what << " parameter " << i;
}

}  // namespace
}  // namespace isentrope::train
