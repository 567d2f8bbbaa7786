// metrics.representation against singular value decompositions, planted ranks and power laws, and the rows and weights that it takes.
#include "csrc/train/representation.h"

#include <gtest/gtest.h>

#include <cmath>

#include "tests/csrc/message.h"
#include "tests/csrc/small_update.h"

namespace isentrope::train {
namespace ISENTROPE_UNIT {

using torch::Tensor;

const auto kDouble = torch::TensorOptions(torch::kFloat64);

double exp_entropy(const Tensor& x) {
  const Tensor p = x / x.sum();
  return std::exp(-(p * p.log()).sum().item<double>());
}

TEST(Representation, VariantsAreThoseOfASingularValueDecomposition) {
  torch::manual_seed(1);
  for (const auto& [M, d] : {std::pair<int64_t, int64_t>{200, 31}, {17, 31}}) {
    const Tensor Z = torch::randn({M, d}, kDouble) * torch::arange(1, d + 1, kDouble).pow(-0.8) + 2;
    const Tensor raw = at::linalg_svdvals(Z);
    Tensor own = at::linalg_svdvals(Z - Z.mean(0));
    if (M <= d) own = own.slice(0, 0, M - 1);  // centring takes a direction
    const Figures found = figures_of_states(Z, 2, 12);
    // 1e-7 a value, at most 31 of them, whose logarithms are above -20.
    EXPECT_NEAR(found.at("rankme_singular"), exp_entropy(raw), 1e-4 * d);
    EXPECT_NEAR(found.at("rankme_centred"), exp_entropy(own), 1e-4 * d);
    EXPECT_NEAR(found.at("rankme_eigenvalues"), exp_entropy(own.square()), 1e-4 * d);
    EXPECT_NEAR(found.at("matrix_entropy"), std::log(exp_entropy(raw.square())) / std::log(std::min(M, d)), 1e-9);
    EXPECT_EQ(found.at("tokens"), static_cast<double>(M));
    EXPECT_GT(found.at("r2"), 0.8);
    // The same in float32, as a model gives it.
    EXPECT_NEAR(figures_of_states(Z.to(torch::kFloat32), 2, 12).at("rankme_centred"), found.at("rankme_centred"), 1e-3);
  }
}

TEST(Representation, FindsAPlantedRank) {
  torch::manual_seed(2);
  const Tensor left = std::get<0>(at::linalg_qr(torch::randn({90, 7}, kDouble))),
               right = std::get<0>(at::linalg_qr(torch::randn({33, 7}, kDouble)));
  const Tensor Z = left.matmul(right.t());
  EXPECT_NEAR(figures_of_states(Z, 1, 7).at("rankme_singular"), 7, 1e-3);
  const Figures weight = figures_of_weight(3 * Z);
  EXPECT_NEAR(weight.at("spectral_norm"), 3, 1e-9);
  EXPECT_NEAR(weight.at("stable_rank"), 7, 1e-9);
  EXPECT_NEAR(weight.at("effective_rank"), 7, 1e-3);
  EXPECT_FALSE(figures_of_states(left.slice(1, 0, 2), 1, 7).contains("alpha")) << "two eigenvalues make no law";
}

TEST(Representation, FindsAPlantedPowerLaw) {
  std::vector<double> values;
  for (int64_t i = 1; i <= 120; ++i) values.push_back(3 * std::pow(i, -1.61));
  const auto law = power_law(values, 10, 100);
  ASSERT_TRUE(law);
  EXPECT_NEAR(law->alpha, 1.61, 1e-12);
  EXPECT_NEAR(law->r2, 1, 1e-12);
  for (size_t i = 50; i < values.size(); ++i) values[i] *= 0.1;
  EXPECT_LT(power_law(values, 10, 100)->r2, 0.99);
  EXPECT_FALSE(power_law(values, 119, 130));
  EXPECT_TRUE(std::isnan(power_law({1, 1, 1, 1}, 1, 4)->r2));
}

TEST(Representation, WhatIsNoFigureIsLeftOut) {
  EXPECT_EQ(figures_of_states(torch::full({4, 3}, NAN), 1, 3), (Figures{{"tokens", 4}}));
  EXPECT_EQ(figures_of_states(torch::zeros({0, 3}), 1, 3), (Figures{{"tokens", 0}}));
  EXPECT_EQ(figures_of_states(torch::ones({5, 3}), 1, 3).at("rankme_eigenvalues"), 1);
  EXPECT_EQ(figures_of_states(torch::zeros({5, 3}), 1, 3).count("alpha"), 0u);
  EXPECT_TRUE(figures_of_weight(torch::full({2, 2}, INFINITY)).empty());
  EXPECT_EQ(figures_of_weight(torch::zeros({2, 2})), (Figures{{"spectral_norm", 0}}));
}

// The first tokens of an update, whatever its padding, its cut and its packing.
TEST(Representation, TakesTheFirstTokens) {
  model::Decoder model = small_model();
  data::Batch update = update_of();
  update.lengths = torch::tensor({11, 3, 7, 1, 9, 5}, torch::kInt64);
  std::vector<Tensor> rows;
  {
    const torch::NoGradGuard no_grad;
    for (int64_t b = 0; b < update.size(); ++b)
      rows.push_back(model->hidden(update.tokens.slice(0, b, b + 1))[0].slice(0, 0, update.lengths[b].item<int64_t>()));
  }
  const Tensor all = torch::cat(rows);
  for (const int64_t tokens : {2, 11, 12, 20, 36, 100})
    for (const int64_t micro : {0, 5, 25}) {
      const Tensor found = last_states(model, update, tokens, micro);
      ASSERT_EQ(found.size(0), std::min<int64_t>(tokens, 36));
      EXPECT_TRUE(torch::allclose(found, all.slice(0, 0, tokens), 1e-4, 1e-5)) << tokens << " " << micro;
      EXPECT_FALSE(found.requires_grad());
    }
  data::Batch packed{.tokens = torch::cat({rows[1].new_empty({0}).to(torch::kInt64), update.tokens[0].slice(0, 0, 11),
                                           update.tokens[1].slice(0, 0, 3)})
                                   .unsqueeze(0),
                     .target = {},
                     .old_logprob = {},
                     .advantage = {}};
  packed.position = torch::cat({torch::arange(11), torch::arange(3)}).unsqueeze(0);
  EXPECT_TRUE(torch::allclose(last_states(model, packed, 13, 0), all.slice(0, 0, 13), 1e-4, 1e-5));
}

TEST(Representation, ChoosesWeightsByTheirNames) {
  model::DecoderConfig config = small_model()->config();
  config.num_hidden_layers = 3;
  const model::Decoder model(config, 3);
  using Names = std::vector<std::string>;
  EXPECT_EQ(
      matrices_that_fit(model, {"model.layers.-1.*.down_proj.weight", "lm_head.weight", "*.1.*_proj.weight"}).size(),
      9u);
  EXPECT_EQ(matrices_that_fit(model, RepresentationConfig().weights),
            (Names{"model.layers.2.self_attn.o_proj.weight", "model.layers.2.mlp.down_proj.weight"}));
  EXPECT_EQ(matrices_that_fit(model, {}), Names{});
  for (const char* none : {"model.norm.weight", "model.layers.3.mlp.down_proj.weight", "down_proj"}) {
    const std::string text = message([&] { matrices_that_fit(model, {"*", none}); });
    EXPECT_NE(text.find(std::string("metrics.representation.weights: '") + none + "' fits no matrix"),
              std::string::npos)
        << text;
    EXPECT_NE(text.find("model.layers.0.mlp.up_proj.weight"), std::string::npos) << text;
  }
}

// A view of a joined weight, with learned spectral norm and with a low-rank term: what the layer multiplies with.
TEST(Representation, WeightsAreThoseOfTheProducts) {
  for (const bool sigma : {false, true}) {
    model::DecoderConfig config = small_model()->config();
    if (sigma)
      config.sigma_reparam.layers = {"all"};
    else
      config.lora = model::LoraConfig{};
    model::Decoder model(config, 3);
    {
      const torch::NoGradGuard no_grad;
      torch::manual_seed(4);
      for (auto& one : model->named_parameters())
        if (one.value().dim() == 2 || one.key().ends_with("_gamma")) one.value().normal_(0.7, 0.2);
      if (sigma) model->power_step();
    }
    const RepresentationConfig looks{.weights = {"*_proj.weight"}};
    const Figures found = look_inside(looks, model, update_of(), 0);
    int64_t seen = 0;
    for (const auto& [name, weight] : model->folded_weights()) {
      if (!name.ends_with("_proj.weight")) continue;
      const double norm = at::linalg_svdvals(weight.to(torch::kFloat64)).max().item<double>();
      EXPECT_NEAR(found.at("spectrum/" + name + "/spectral_norm"), norm, 1e-5 * norm) << name << " " << sigma;
      ++seen;
    }
    EXPECT_EQ(seen, 7);
    EXPECT_EQ(found.count("spectrum/lm_head.weight/spectral_norm"), 0u);
  }
}

TEST(Representation, TellsOfLookingTooOften) {
  EXPECT_EQ(slow_look(0.99, 1, 99), "");  // 0.99 of 99.99 seconds
  const std::string told = slow_look(0.5, 1, 10);
  EXPECT_NE(told.find("4.8 % of the time with every: 10; from every: 50 on"), std::string::npos) << told;
  EXPECT_EQ(slow_look(0.5, 1, 50), "");
}
TEST(Representation, TellsOfTooFewTokens) {
  EXPECT_EQ(too_few_tokens({}, 8), "");
  EXPECT_EQ(too_few_tokens({{"representation/tokens", 9}}, 8), "");
  EXPECT_NE(too_few_tokens({{"representation/tokens", 8}}, 8).find("a rank is 7 at most"), std::string::npos);
}

}  // namespace ISENTROPE_UNIT
}  // namespace isentrope::train
