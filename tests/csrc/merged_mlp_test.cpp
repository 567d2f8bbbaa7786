// Blocks whose MLP is one matrix (model.activation none): β · x + W x / α.
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include <cmath>
#include <map>

#include "csrc/model/decoder.h"
#include "tests/csrc/mixer_kinds.h"

namespace isentrope::model {
namespace ISENTROPE_UNIT {

using torch::Tensor;

DecoderConfig merged_config(const char* norm) {
  DecoderConfig c = small_mixers({"softmax"});
  c.activation = "none";
  c.norm = norm;
  return c;
}

Tensor rms_normed(const Tensor& x, const Tensor& weight, double eps) {
  return weight.defined() ? weight * x / (x.square().mean(-1, true) + eps).sqrt() : x;
}

TEST(MergedMlp, IsWhatItsDefinitionSays) {
  for (const char* norm : {"none", "pre", "post"}) {
    Decoder decoder = made(merged_config(norm));
    decoder->to(torch::kFloat64);
    const DecoderConfig& c = decoder->config();
    const int64_t T = 21;
    const Tensor tokens = torch::arange(T).remainder(c.vocabulary).unsqueeze(0);
    const Tensor cosine = decoder->cosine().slice(0, 0, T), sine = decoder->sine().slice(0, 0, T);
    const bool after = std::string(norm) == "post";
    const auto before = [&](const Tensor& x, const Tensor& weight) {
      return after ? x : rms_normed(x, weight, c.rms_norm_eps);
    };
    const auto behind = [&](const Tensor& x, const Tensor& weight) {
      return after ? rms_normed(x, weight, c.rms_norm_eps) : x;
    };
    Tensor x = decoder->embedding().index_select(0, tokens[0]);
    std::vector<Tensor> factors;
    const auto& layers = decoder->layers();
    for (size_t i = 0; i < layers.size(); ++i) {
      const LayerWeights& layer = layers[i];
      if (i > 0) x = behind(x, layer.input_norm);
      x = x + layer.mixer->forward(before(x, i > 0 || !after ? layer.input_norm : Tensor()), {},
                                   {cosine, sine, nullptr, {}, nullptr, true, {}});
      x = behind(x, layer.post_norm);
      x = layer.beta * x + torch::matmul(before(x, layer.post_norm), layer.down.weight.t()) / layer.alpha;
      factors.insert(factors.end(), {layer.alpha, layer.beta});
    }
    const Tensor truth =
        torch::matmul(rms_normed(x, decoder->final_norm(), c.rms_norm_eps), decoder->head().weight.t());
    const Tensor found = decoder->forward(tokens)[0];
    EXPECT_LE((found - truth).abs().max().item<double>(), 1e-13 * truth.abs().max().item<double>()) << norm;
    const Tensor weights = torch::linspace(-1, 2, T * c.vocabulary, torch::kFloat64).view({T, -1});
    const auto grads = torch::autograd::grad({(found * weights).sum()}, factors),
               true_grads = torch::autograd::grad({(truth * weights).sum()}, factors);
    for (size_t i = 0; i < factors.size(); ++i)
      EXPECT_NEAR(grads[i].item<double>(), true_grads[i].item<double>(), 1e-11 * std::abs(true_grads[i].item<double>()))
          << norm << ", factor " << i;
  }
}

TEST(MergedMlp, HasItsWeightsUnderNames) {
  const Decoder decoder = made(merged_config("none"));
  std::map<std::string, Tensor> weights;
  for (const auto& [name, weight] : decoder->named_weights()) weights[name] = weight;
  EXPECT_EQ(weights.at("model.layers.1.mlp.down_proj.weight").sizes(), (std::vector<int64_t>{32, 32}));
  EXPECT_EQ(weights.at("model.layers.1.mlp.alpha").sizes(), (std::vector<int64_t>{1}));
  EXPECT_TRUE(weights.contains("model.layers.0.mlp.beta"));
  for (const char* none :
       {"model.layers.0.mlp.gate_proj.weight", "model.layers.0.input_layernorm.weight", "model.norm.weight"})
    EXPECT_FALSE(weights.contains(none)) << none;
  DecoderConfig config = merged_config("none");
  EXPECT_EQ(config.mlp_numbers(), 32 * 32);
  config.activation = "swiglu";
  EXPECT_EQ(config.mlp_numbers(), 3 * 32 * 48);
}

TEST(MergedMlp, RefusesWhatItHasNot) {
  const auto problem = [](auto change) {
    DecoderConfig config = merged_config("none");
    change(config);
    return config.problem();
  };
  EXPECT_EQ(problem([](DecoderConfig&) {}), "");
  EXPECT_EQ(
      problem([](DecoderConfig& c) { c.mlp_bias = true; }),
      "mlp_bias: with activation none one matrix without a bias stands in the place of the MLP; leave it at false");
  EXPECT_EQ(problem([](DecoderConfig& c) {
              c.sigma_reparam.layers = {"q", "gate"};
            }),
            "sigma_reparam.layers: with activation none the MLP is one matrix, down; leave gate and up out");
  EXPECT_EQ(problem([](DecoderConfig& c) { c.sigma_reparam.layers = {"all"}; }), "");
  EXPECT_EQ(problem([](DecoderConfig& c) {
              c.lora = LoraConfig();
              c.lora->targets = {"up"};
            }),
            "lora.targets: with activation none the MLP is one matrix, down; leave gate and up out");
}

}  // namespace ISENTROPE_UNIT
}  // namespace isentrope::model
