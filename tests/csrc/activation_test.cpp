// MLPs without a gate (model.activation gelu, relu, crrelu): down(f(up x)).
#include <ATen/Parallel.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/types.h>

#include <algorithm>
#include <cmath>
#include <map>

#include "csrc/model/decode.h"
#include "csrc/model/decoder.h"
#include "csrc/model/layers.h"
#include "tests/csrc/mixer_kinds.h"

namespace isentrope::model {
namespace ISENTROPE_UNIT {

using torch::Tensor;

DecoderConfig config_of(const std::string& activation, bool bias = true) {
  DecoderConfig c = small_mixers({"softmax"});
  c.activation = activation;
  c.mlp_bias = bias;
  return c;
}

class Activation : public testing::TestWithParam<const char*> {};
INSTANTIATE_TEST_SUITE_P(Each, Activation, testing::Values("gelu", "relu", "crrelu"));

Tensor by_definition(const std::string& activation, const Tensor& x, const Tensor& epsilon) {
  if (activation == "gelu") return 0.5 * x * (1 + torch::erf(x / std::sqrt(2.0)));
  if (activation == "relu") return torch::where(x > 0, x, torch::zeros_like(x));
  return torch::where(x > 0, x, torch::zeros_like(x)) + epsilon * x * torch::exp(-x * x / 2);
}

// One block of the decoder, out of its own weights.
TEST_P(Activation, IsWhatItsDefinitionSays) {
  Decoder decoder = made(config_of(GetParam()));
  decoder->to(torch::kFloat64);
  const int64_t T = 21;
  const DecoderConfig& c = decoder->config();
  const Tensor tokens = torch::arange(T).remainder(c.vocabulary).unsqueeze(0);
  const Tensor cosine = decoder->cosine().slice(0, 0, T), sine = decoder->sine().slice(0, 0, T);
  const auto normed = [&](const Tensor& x, const Tensor& weight) {
    return weight * x / (x.square().mean(-1, true) + c.rms_norm_eps).sqrt();
  };
  Tensor x = decoder->embedding().index_select(0, tokens[0]);
  std::vector<Tensor> wanted;
  for (const LayerWeights& layer : decoder->layers()) {
    x = x + layer.mixer->forward(normed(x, layer.input_norm), {}, {cosine, sine, nullptr, {}, nullptr, true, {}});
    const Tensor up = torch::matmul(normed(x, layer.post_norm), layer.gate_up.weight.t()) + layer.gate_up.bias;
    x = x + torch::matmul(by_definition(GetParam(), up, layer.epsilon), layer.down.weight.t()) + layer.down.bias;
    wanted.push_back(layer.gate_up.weight);
    if (layer.epsilon.defined()) wanted.push_back(layer.epsilon);
  }
  const Tensor truth = torch::matmul(normed(x, decoder->final_norm()), decoder->head().weight.t());
  const Tensor found = decoder->forward(tokens)[0];
  EXPECT_LE((found - truth).abs().max().item<double>(), 1e-13 * truth.abs().max().item<double>());
  const Tensor factor = torch::linspace(-1, 2, truth.numel(), torch::kFloat64).view_as(truth);
  const auto grads = torch::autograd::grad({(found * factor).sum()}, wanted),
             true_grads = torch::autograd::grad({(truth * factor).sum()}, wanted);
  for (size_t i = 0; i < wanted.size(); ++i)
    EXPECT_LE((grads[i] - true_grads[i]).abs().max().item<double>(), 1e-11 * true_grads[i].abs().max().item<double>())
        << i;
}

TEST_P(Activation, HasItsWeightsUnderNames) {
  const Decoder decoder = made(config_of(GetParam()));
  std::map<std::string, Tensor> weights;
  for (const auto& [name, weight] : decoder->named_weights()) weights[name] = weight;
  const int64_t C = decoder->config().hidden_size, M = decoder->config().intermediate_size;
  EXPECT_EQ(weights.at("model.layers.1.mlp.up_proj.weight").sizes(), (std::vector<int64_t>{M, C}));
  EXPECT_EQ(weights.at("model.layers.1.mlp.up_proj.bias").sizes(), (std::vector<int64_t>{M}));
  EXPECT_EQ(weights.at("model.layers.1.mlp.down_proj.weight").sizes(), (std::vector<int64_t>{C, M}));
  EXPECT_FALSE(weights.contains("model.layers.1.mlp.gate_proj.weight"));
  EXPECT_FALSE(weights.contains("model.layers.1.mlp.gate_proj.bias"));
  EXPECT_EQ(weights.contains("model.layers.0.mlp.epsilon"), std::string(GetParam()) == "crrelu");
  EXPECT_EQ(decoder->config().mlp_numbers(), 2 * C * M);
  if (const auto epsilon = weights.find("model.layers.0.mlp.epsilon"); epsilon != weights.end()) {
    EXPECT_FLOAT_EQ(epsilon->second.item<float>(), 0.01f);
  }
}

// The largest difference of logits between the decoder that draws, a token at a time, and the one that is trained.
float decoding_error(const std::string& activation, bool narrow) {
  Decoder decoder = made(config_of(activation));
  const torch::NoGradGuard no_grad;
  const int64_t T = 9;
  const Tensor tokens = torch::arange(T).remainder(decoder->config().vocabulary);
  const Tensor truth = decoder->forward(tokens.unsqueeze(0))[0];
  const auto drawing = make_decode_model(decoder, narrow);
  const auto session = drawing->session(pages_of(T), 4, 1);
  PageTable& pages = session->pages();
  const int64_t sequence = pages.open();
  pages.extend(sequence, T);
  float largest = 0;
  for (int64_t t = 0; t < T; ++t) {
    const std::vector<DecodeRow> rows{{tokens[t].item<int64_t>(), t, sequence}};
    const Logits logits = session->step(rows, 0);
    for (int64_t v = 0; v < decoder->config().token_count(); ++v)
      largest = std::max(largest, std::abs(logits.row(0)[v] - truth[t][v].item<float>()));
  }
  return largest;
}

TEST_P(Activation, DecodesWhatItComputes) {
  for (const bool narrow : {false, true})  // as well as the default's
    EXPECT_LE(decoding_error(GetParam(), narrow), 2 * decoding_error("swiglu", narrow)) << narrow;
}

TEST_P(Activation, DoesNotDependOnThreads) {
  const int threads = at::get_num_threads();
  std::vector<std::vector<Tensor>> found;
  for (const int n : {1, 3}) {
    at::set_num_threads(n);
    Decoder decoder = made(config_of(GetParam()));
    const Tensor tokens = torch::arange(40 * 16).remainder(decoder->config().vocabulary).view({40, 16});
    decoder->forward(tokens).square().sum().backward();
    found.emplace_back();
    for (const LayerWeights& layer : decoder->layers()) {
      found.back().push_back(layer.gate_up.weight.grad());
      if (layer.epsilon.defined()) found.back().push_back(layer.epsilon.grad());
    }
  }
  at::set_num_threads(threads);
  for (size_t i = 0; i < found[0].size(); ++i) EXPECT_TRUE(torch::equal(found[0][i], found[1][i])) << i;
}

TEST(Activations, RefusesAGateThatIsNotThere) {
  DecoderConfig c = config_of("relu");
  EXPECT_EQ(c.problem(), "");
  c.sigma_reparam.layers = {"gate"};
  EXPECT_EQ(c.problem(), "sigma_reparam.layers: names gate, and with activation relu there is none; leave it out");
  c.sigma_reparam.layers = {"mlp"};
  EXPECT_EQ(c.problem(), "");
  c.sigma_reparam.layers = {"none"};
  c.lora = LoraConfig();
  c.lora->targets = {"gate"};
  EXPECT_EQ(c.problem(), "lora.targets: names gate, and with activation relu there is none; leave it out");
}

TEST(Activations, RefusesPartsThatDoNotGoTogether) {
  const auto problem = [](auto change) {
    DecoderConfig c = config_of("swiglu");
    change(c);
    return c.problem();
  };
  EXPECT_EQ(problem([](DecoderConfig& c) { c.freeze = {"qk"}; }), "");
  EXPECT_EQ(problem([](DecoderConfig& c) {
              c.train_only.emplace().blocks = {0, 7};
            }),
            "train_only.blocks: 7; the model has blocks 0 to 1");
  EXPECT_EQ(problem([](DecoderConfig& c) {
              c.freeze = {"qk"};
              c.sigma_reparam.layers = {"all"};
            }),
            "freeze: the layers of sigma_reparam learn norms beside their weights; use one of the two");
  EXPECT_EQ(problem([](DecoderConfig& c) { c.compose.emplace().vectors = {"x"}; }),
            "compose: adds task vectors to the weights of model.pretrained, which names none; name a model there");
  EXPECT_EQ(problem([](DecoderConfig& c) {
              c.compose.emplace().vectors = {"x"};
              c.freeze = {"qk"};
            }),
            "compose: trains coefficients in the place of weights; leave freeze out");
}

}  // namespace ISENTROPE_UNIT
}  // namespace isentrope::model
