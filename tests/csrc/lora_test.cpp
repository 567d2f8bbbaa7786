// The low-rank term of linear layers against plain ATen, and a decoder with an adapter.
#include "csrc/model/lora.h"

#include <ATen/Parallel.h>
#include <gtest/gtest.h>
#include <torch/autograd.h>

#include <cmath>
#include <limits>

#include "csrc/model/decoder.h"

namespace isentrope::model {
namespace ISENTROPE_UNIT {

using torch::Tensor;

// Deterministic values in (−1, 1) of any shape, in double, that float holds too.
Tensor wave(at::IntArrayRef sizes, double pace) {
  int64_t n = 1;
  for (const int64_t size : sizes) n *= size;
  return torch::sin(torch::arange(n, torch::kFloat64) * pace + 0.3).to(torch::kFloat32).to(torch::kFloat64).view(sizes);
}

// A weight [31, 33], of which rows 0 … 6 and 9 … 30 have a term of rank 3.
Projection projection(torch::ScalarType type) {
  Projection p;
  p.name = "layers.0.qkv";
  p.weight = wave({31, 33}, 0.7).to(type);
  p.bias = wave({31}, 1.9).to(type);
  p.lora = {{"layers.0.q", 0, 7}, {"layers.0.v", 9, 22}};
  p.lora_a = wave({6, 33}, 1.1).to(type).requires_grad_();
  p.lora_b = wave({29, 3}, 2.3).to(type).requires_grad_();
  p.lora_scale = 0.75;
  return p;
}

Tensor plain(const Tensor& x, const Projection& p) {
  std::vector<Tensor> rows{torch::mm(p.lora_b.slice(0, 0, 7), p.lora_a.slice(0, 0, 3)),
                           torch::zeros({2, 33}, p.weight.options()),
                           torch::mm(p.lora_b.slice(0, 7), p.lora_a.slice(0, 3))};
  return torch::linear(x, p.weight + p.lora_scale * torch::cat(rows), p.bias);
}

// The same in the order of PEFT: x Aᵀ first, which rounds otherwise than the sum of the weights does.
Tensor factored(const Tensor& x, const Projection& p) {
  const Tensor h = torch::linear(x, p.lora_a);
  const std::vector<Tensor> columns{torch::linear(h.slice(1, 0, 3), p.lora_b.slice(0, 0, 7)),
                                    torch::zeros({x.size(0), 2}, x.options()),
                                    torch::linear(h.slice(1, 3), p.lora_b.slice(0, 7))};
  return torch::linear(x, p.weight, p.bias) + p.lora_scale * torch::cat(columns, 1);
}

double distance(const Tensor& a, const Tensor& b) {
  return (a.to(torch::kFloat64) - b.to(torch::kFloat64)).norm().item<double>();
}

// Value and gradients of x, A and B of a function of them, from the same dy.
std::vector<Tensor> results(Tensor f(const Tensor&, const Projection&), const Tensor& x_in, const Projection& p) {
  const Tensor x = x_in.detach().clone().requires_grad_(), y = f(x, p);
  auto grads = torch::autograd::grad({y}, {x, p.lora_a, p.lora_b}, {wave(y.sizes(), 0.37).to(y.scalar_type())});
  grads.insert(grads.begin(), y.detach());
  return grads;
}

class LoraRows : public testing::TestWithParam<int64_t> {};

TEST_P(LoraRows, ValueAndGradientsAreThoseOfPlainAten) {
  const Tensor x = wave({GetParam(), 33}, 0.11);
  const auto exact = results(plain, x, projection(torch::kFloat64));
  const auto wide = results(linear, x, projection(torch::kFloat64));
  const auto ours = results(linear, x.to(torch::kFloat32), projection(torch::kFloat32));
  const auto peer = results(factored, x.to(torch::kFloat32), projection(torch::kFloat32));
  const char* names[]{"y", "dx", "dA", "dB"};
  for (size_t i = 0; i < exact.size(); ++i) {
    // Double has 2^29 times the digits of float; a few roundings of the sums above.
    EXPECT_LE(distance(wide[i], exact[i]), 1e-13 * (1 + exact[i].norm().item<double>())) << names[i];
    // Roundings of a sum of n terms one after the other grow as √n; x, y and the rows are summed over. Terms of both signs, as
    // here, are about twice as large as what they come to.
    const double terms = static_cast<double>(GetParam() + 33 + 31);
    const double rounding = std::sqrt(terms) * exact[i].norm().item<double>() * std::numeric_limits<float>::epsilon();
    EXPECT_LE(distance(ours[i], exact[i]), 2 * (distance(peer[i], exact[i]) + rounding)) << names[i];
  }
}
// One row torch multiplies in another way, by a sum of several sums, whose error is a fraction of that of one sum: the next test.
INSTANTIATE_TEST_SUITE_P(Sizes, LoraRows, testing::Values(31, 49, 97, 385));

TEST(Lora, ARowHasTheBitsThatItHasAmongOthers) {
  const Projection p = projection(torch::kFloat32);
  const Tensor x = wave({97, 33}, 0.11).to(torch::kFloat32);
  const auto all = results(linear, x, p), one = results(linear, x.slice(0, 0, 1), p);
  EXPECT_TRUE(one[0].equal(all[0].slice(0, 0, 1)));
  EXPECT_TRUE(one[1].equal(all[1].slice(0, 0, 1)));
}

TEST(Lora, GradientsAreThoseOfDifferences) {
  const Projection p = projection(torch::kFloat64);
  const Tensor x = wave({5, 33}, 0.11), dy = wave({5, 31}, 0.37);
  const auto loss = [&](const Tensor& at) { return (linear(at, p) * dy).sum(); };
  const Tensor leaf = x.clone().requires_grad_();
  const auto grads = torch::autograd::grad({loss(leaf)}, {leaf, p.lora_a, p.lora_b});
  const torch::NoGradGuard no_grad;
  // The loss is of degree two at most in each number, of which central differences are exact: rounding alone is left.
  constexpr double kStep = 1e-3;
  const Tensor points[]{x, p.lora_a, p.lora_b};
  for (size_t k = 0; k < 3; ++k) {
    double* value = points[k].data_ptr<double>();
    for (int64_t i = 0; i < points[k].numel(); i += 7) {
      const double was = value[i];
      value[i] = was + kStep;
      const double above = loss(x).item<double>();
      value[i] = was - kStep;
      const double below = loss(x).item<double>();
      value[i] = was;
      EXPECT_NEAR((above - below) / (2 * kStep), grads[k].flatten()[i].item<double>(), 1e-9) << k << " " << i;
    }
  }
}

TEST(Lora, NoRowsGiveZeroGradients) {
  const auto found = results(linear, torch::zeros({0, 33}), projection(torch::kFloat32));
  EXPECT_EQ(found[0].size(0), 0);
  EXPECT_EQ(found[2].abs().sum().item<double>() + found[3].abs().sum().item<double>(), 0);
}

TEST(Lora, BitsDoNotDependOnThreads) {
  const int before = at::get_num_threads();
  std::vector<std::vector<Tensor>> found;
  std::vector<Tensor> weights;
  for (const int threads : {1, 2, 5}) {
    at::set_num_threads(threads);
    found.push_back(results(linear, wave({385, 33}, 0.11).to(torch::kFloat32), projection(torch::kFloat32)));
    weights.push_back(folded(projection(torch::kFloat32)));
  }
  at::set_num_threads(before);
  for (size_t i = 1; i < found.size(); ++i) {
    for (size_t k = 0; k < found[i].size(); ++k) EXPECT_TRUE(found[0][k].equal(found[i][k])) << k;
    EXPECT_TRUE(weights[0].equal(weights[i]));
  }
}

TEST(Lora, AFrozenWeightHasNoGradientAndXIsKeptOnce) {
  Projection p = projection(torch::kFloat32);
  const Tensor x = wave({5, 33}, 0.11).to(torch::kFloat32);
  linear(x, p).sum().backward();
  EXPECT_FALSE(p.weight.grad().defined());
  EXPECT_FALSE(p.bias.grad().defined());
  EXPECT_TRUE(p.lora_a.grad().defined());
  // Without a term and without a gradient of x there is no graph at all.
  p.lora.clear();
  EXPECT_FALSE(linear(x, p).requires_grad());
}

TEST(Lora, TheMergedWeightIsThatOfPlainAten) {
  const Projection p = projection(torch::kFloat64);
  const Tensor x = torch::eye(33, torch::kFloat64);
  const torch::NoGradGuard no_grad;
  EXPECT_LE(distance(folded(p), (plain(x, p) - p.bias).t()), 1e-12);
}

// ---- a decoder with an adapter ---------------------------------------------------------------------------------------

DecoderConfig small() {
  DecoderConfig config;
  config.num_hidden_layers = 2;
  config.hidden_size = 32;
  config.num_attention_heads = 4;
  config.num_key_value_heads = 2;
  config.intermediate_size = 37;
  config.max_position_embeddings = 97;
  config.vocabulary = 29;
  config.lora = LoraConfig{};
  config.lora->rank = 3;
  return config;
}

Decoder trained(const DecoderConfig& config) {
  Decoder decoder(config, 3);
  decoder->start_lora(5);
  const torch::NoGradGuard no_grad;
  for (const auto& [name, x] : decoder->adapter())
    if (name.ends_with("lora_B.weight")) Tensor(x).copy_(wave(x.sizes(), 1.3) * 0.1);
  return decoder;
}

Tensor some_tokens() { return (torch::arange(42, torch::kInt64) * 7919 % 29).view({2, 21}); }

TEST(DecoderLora, ANewAdapterChangesNothingAndIsUniform) {
  DecoderConfig config = small();
  Decoder decoder(config, 3);
  decoder->start_lora(5);
  config.lora.reset();
  EXPECT_TRUE(decoder->forward(some_tokens()).equal(Decoder(config, 3)->forward(some_tokens())));
  for (const auto& [name, x] : decoder->adapter()) {
    if (name.ends_with("lora_B.weight")) {
      EXPECT_EQ(x.abs().max().item<double>(), 0) << name;
      continue;
    }
    const double bound = 1 / std::sqrt(static_cast<double>(x.size(1)));
    EXPECT_LE(x.abs().max().item<double>(), bound) << name;
    EXPECT_GE(x.abs().max().item<double>(), 0.9 * bound) << name;  // of 96 numbers: missed once in 25000
  }
  Decoder other(small(), 3);
  other->start_lora(6);
  EXPECT_FALSE(other->adapter()[0].second.equal(decoder->adapter()[0].second));
}

TEST(DecoderLora, TheAdapterAloneHasGradients) {
  for (const char* recompute : {"none", "blocks"}) {
    DecoderConfig config = small();
    config.recompute = recompute;
    Decoder decoder = trained(config);
    decoder->token_entropy(some_tokens(), some_tokens().roll(1)).logprob.sum().backward();
    int64_t numbers = 0;
    for (const auto& one : decoder->named_parameters()) {
      const bool own = one.key().find("_lora_") != std::string::npos;
      EXPECT_EQ(one.value().requires_grad(), own) << one.key();
      EXPECT_EQ(one.value().grad().defined(), own) << one.key();
      if (!own) continue;
      EXPECT_GT(one.value().grad().norm().item<double>(), 0) << one.key();
      numbers += one.value().numel();
    }
    // R · (rows + columns) of every layer: q 32 + 32, k and v 16 + 32, o 32 + 32, gate, up and down 37 + 32.
    EXPECT_EQ(numbers, 2 * 3 * (64 + 48 + 48 + 64 + 3 * 69));
  }
}

TEST(DecoderLora, RecomputedBlocksGiveTheSameBits) {
  std::vector<std::vector<Tensor>> found;
  for (const char* recompute : {"none", "blocks"}) {
    DecoderConfig config = small();
    config.recompute = recompute;
    Decoder decoder = trained(config);
    const auto out = decoder->token_entropy(some_tokens(), some_tokens().roll(1));
    out.logprob.sum().backward();
    std::vector<Tensor>& kept = found.emplace_back(std::vector<Tensor>{out.logprob.detach()});
    for (const Tensor& p : decoder->parameters())
      if (p.grad().defined()) kept.push_back(p.grad());
  }
  ASSERT_EQ(found[0].size(), found[1].size());
  for (size_t i = 0; i < found[0].size(); ++i) EXPECT_TRUE(found[0][i].equal(found[1][i])) << i;
}

TEST(DecoderLora, FoldedWeightsGiveTheSameModelButForRounding) {
  const Decoder decoder = trained(small());
  DecoderConfig config = small();
  config.lora.reset();
  Decoder plain(config, std::nullopt);
  const torch::NoGradGuard no_grad;
  const auto weights = decoder->folded_weights(), places = plain->named_weights();
  for (size_t i = 0; i < weights.size(); ++i) places[i].second.copy_(weights[i].second);
  const Tensor a = Decoder(decoder)->forward(some_tokens()), b = plain->forward(some_tokens());
  EXPECT_LE((a - b).abs().max().item<double>(), 1e-5 * a.abs().max().item<double>());
  EXPECT_GT((a - Decoder(config, 3)->forward(some_tokens())).abs().max().item<double>(), 1e-2);
}

TEST(DecoderLora, ACopyOfTheAdapterSharesTheWeights) {
  Decoder decoder = trained(small());
  Decoder kept(decoder->with_kept_adapter());
  const torch::NoGradGuard no_grad;
  const Tensor before = decoder->forward(some_tokens());
  const auto a = decoder->named_weights(), b = kept->named_weights();
  for (size_t i = 0; i < a.size(); ++i) EXPECT_EQ(a[i].second.data_ptr(), b[i].second.data_ptr()) << a[i].first;
  for (const auto& [name, x] : decoder->adapter()) Tensor(x).mul_(2);
  EXPECT_TRUE(kept->forward(some_tokens()).equal(before));
  EXPECT_FALSE(decoder->forward(some_tokens()).equal(before));
}

TEST(DecoderLora, TargetsAndWhatDoesNotGoTogether) {
  DecoderConfig config = small();
  config.lora->targets = {"v", "mlp"};
  EXPECT_EQ(config.lora->layers(), (std::vector<std::string>{"v", "gate", "up", "down"}));
  const auto adapter = trained(config)->adapter();
  ASSERT_EQ(adapter.size(), 16u);
  EXPECT_EQ(adapter[0].first, "model.layers.0.self_attn.v_proj.lora_A.weight");
  EXPECT_EQ(adapter[15].first, "model.layers.1.mlp.down_proj.lora_B.weight");
  config.sigma_reparam.layers = {"o"};
  EXPECT_EQ(config.problem().substr(0, 5), "lora:");
  config.sigma_reparam = {};
  config.attention.qk_clip = 10;
  EXPECT_EQ(config.problem().substr(0, 18), "attention.qk_clip:");
  config.attention.qk_clip = 0;
  EXPECT_EQ(config.problem(), "");
  config.lora->targets.clear();
  EXPECT_NE(config.lora->problem(), "");
  config.lora->rslora = true;
  config.lora->rank = 16;
  EXPECT_EQ(config.lora->scale(), 8);
}

}  // namespace ISENTROPE_UNIT
}  // namespace isentrope::model
