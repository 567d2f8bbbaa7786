// The decoder against the same mathematics in plain ATen, judged in double.
#include "csrc/model/decoder.h"

#include <ATen/Parallel.h>
#include <gtest/gtest.h>
#include <torch/autograd.h>

#include <algorithm>
#include <cmath>
#include <map>

#include "csrc/model/layers.h"

namespace isentrope::model {
namespace ISENTROPE_UNIT {

using torch::Tensor;

DecoderConfig small(int64_t heads, int64_t kv_heads, int64_t head_size, bool tied = false) {
  DecoderConfig config;
  config.num_hidden_layers = 2;
  config.hidden_size = heads * head_size;
  config.num_attention_heads = heads;
  config.num_key_value_heads = kv_heads;
  config.intermediate_size = 37;
  config.max_position_embeddings = 97;
  config.tie_word_embeddings = tied;
  config.vocabulary = 29;
  return config;
}

Tensor some_tokens(int64_t B, int64_t T, int64_t V) {
  return (torch::arange(B * T, torch::kInt64) * 7919 % 104729 % V).view({B, T});
}

// Deterministic values in (−1, 1) of any shape.
Tensor wave(at::IntArrayRef sizes, double pace) {
  int64_t n = 1;
  for (const int64_t size : sizes) n *= size;
  return torch::sin(torch::arange(n, torch::kFloat64) * pace + 0.3).view(sizes);
}

// Weights away from their symmetric start, so that every gradient has work to do; u away from the singular vector.
Decoder make(const DecoderConfig& config) {
  Decoder decoder(config, 3);
  torch::NoGradGuard no_grad;
  for (Tensor& p : decoder->parameters())
    if (p.dim() == 1) p.add_(wave(p.sizes(), 1.7).to(torch::kFloat32) * 0.3);
  for (const SigmaLayer& layer : decoder->sigma_layers()) {
    layer.u.add_(wave(layer.u.sizes(), 2.9).to(torch::kFloat32) * 0.1);
    layer.u.div_(layer.u.norm());
  }
  return decoder;
}

SigmaConfig sigma(std::vector<std::string> layers, const std::string& sigma_grad = "through",
                  const std::string& fused = "separate") {
  SigmaConfig config;
  config.layers = std::move(layers);
  config.sigma_grad = sigma_grad;
  config.fused_qkv = fused;
  return config;
}

// γ / σ · W by plain operations, differentiable.
Tensor plain_weight(const Projection& p) {
  std::vector<Tensor> rows;
  int64_t done = 0;
  for (size_t i = 0; i < p.parts.size(); ++i) {
    const auto& [name, first, count] = p.parts[i];
    rows.push_back(p.weight.slice(0, done, first));
    done = first + count;
    const Tensor W = p.weight.slice(0, first, done), norm = W.mv(p.u[i]).norm();
    rows.push_back(W * (p.gamma[i] / (p.through ? norm : norm.detach())));
  }
  rows.push_back(p.weight.slice(0, done));
  return torch::cat(rows);
}

Tensor plain_norm(const Tensor& x, const Tensor& weight, double eps) {
  return x * torch::rsqrt(x.square().mean(-1, true) + eps) * weight;
}

Tensor plain_turn(const Tensor& x, const Tensor& cosine, const Tensor& sine) {  // [B, heads, T, D]
  const auto half = x.chunk(2, -1);
  return torch::cat({half[0] * cosine - half[1] * sine, half[1] * cosine + half[0] * sine}, -1);
}

Tensor plain_attention(const Tensor& q, const Tensor& k, const Tensor& v, const AttentionConfig& c, bool windowed,
                       const Tensor& log_temperature) {
  const int64_t group = q.size(1) / k.size(1), T = q.size(2);
  Tensor scores = q.matmul(k.repeat_interleave(group, 1).transpose(2, 3)) / std::sqrt(static_cast<double>(q.size(3)));
  if (c.softcap > 0) scores = c.softcap * (scores / c.softcap).tanh();
  if (log_temperature.defined()) {
    const Tensor log = log_temperature.view({q.size(1), -1, 1});  // [H, 1 or context, 1]
    scores = scores / (log.size(1) > 1 ? log.slice(1, 0, T) : log).exp();
  }
  Tensor hidden = torch::ones({T, T}, torch::kBool).triu(1);
  if (windowed) hidden = hidden | torch::ones({T, T}, torch::kBool).tril(-c.window);
  return scores.masked_fill(hidden, -INFINITY).softmax(-1).matmul(v.repeat_interleave(group, 1));
}

// The decoder from its Hugging Face weights, one plain operation after the other.
Tensor plain_logits(const Decoder& decoder, const Tensor& tokens) {
  const DecoderConfig& c = decoder->config();
  std::map<std::string, Tensor> w;
  for (const auto& [name, weight] : decoder->named_weights()) w[name] = weight;
  const int64_t HD = c.num_attention_heads * c.head_size(), GD = c.num_key_value_heads * c.head_size();
  for (int64_t i = 0; i < c.num_hidden_layers; ++i) {
    const std::string at = "model.layers." + std::to_string(i) + ".";
    const LayerWeights& layer = decoder->layers()[i];
    const auto qkv = plain_weight(layer.mixer->qkv).split_with_sizes({HD, GD, GD}),
               gate_up = plain_weight(layer.gate_up).chunk(2);
    w[at + "self_attn.q_proj.weight"] = qkv[0];
    w[at + "self_attn.k_proj.weight"] = qkv[1];
    w[at + "self_attn.v_proj.weight"] = qkv[2];
    w[at + "self_attn.o_proj.weight"] = plain_weight(layer.mixer->o);
    w[at + "mlp.gate_proj.weight"] = gate_up[0];
    w[at + "mlp.up_proj.weight"] = gate_up[1];
    w[at + "mlp.down_proj.weight"] = plain_weight(layer.down);
  }
  w["lm_head.weight"] = plain_weight(decoder->head());
  const bool before = c.norm == "pre", after = c.norm == "post";
  const auto norm_if = [&](bool wanted, const Tensor& x, const std::string& name) {
    return wanted ? plain_norm(x, w.at(name), c.rms_norm_eps) : x;
  };
  const int64_t B = tokens.size(0), T = tokens.size(1), D = c.head_size();
  const auto options = decoder->embedding().options();
  const Tensor angle = torch::outer(torch::arange(T, torch::kFloat64),
                                    torch::pow(c.rope_theta, torch::arange(0, D, 2, torch::kFloat64) / -double(D)));
  const Tensor cosine = angle.cos().to(options), sine = angle.sin().to(options);
  Tensor x = w["model.embed_tokens.weight"].index({tokens});
  for (int64_t i = 0; i < c.num_hidden_layers; ++i) {
    const std::string at = "model.layers." + std::to_string(i) + ".";
    auto project = [&](const Tensor& y, const char* name) {
      const Tensor product = y.matmul(w.at(at + name + ".weight").t());
      const auto bias = w.find(at + name + ".bias");
      return bias == w.end() ? product : product + bias->second;
    };
    auto split = [&](const Tensor& y, int64_t heads) { return y.view({B, T, heads, D}).transpose(1, 2); };
    Tensor y = norm_if(before, x, at + "input_layernorm.weight");
    Tensor q = split(project(y, "self_attn.q_proj"), c.num_attention_heads),
           k = split(project(y, "self_attn.k_proj"), c.num_key_value_heads);
    if (c.attention.qk_norm) {
      q = plain_norm(q, w.at(at + "self_attn.q_norm.weight"), c.rms_norm_eps);
      k = plain_norm(k, w.at(at + "self_attn.k_norm.weight"), c.rms_norm_eps);
    }
    const Tensor v = split(project(y, "self_attn.v_proj"), c.num_key_value_heads);
    const Tensor log_temperature =
        c.attention.temperature == "none" ? Tensor() : w.at(at + "self_attn.log_temperature");
    const auto& types = c.attention.layer_types;
    const bool windowed = c.attention.window > 0 && (types.empty() || types[i % types.size()] == "sliding_attention");
    const Tensor attended = plain_attention(plain_turn(q, cosine, sine), plain_turn(k, cosine, sine), v, c.attention,
                                            windowed, log_temperature);
    x = x + project(attended.transpose(1, 2).reshape({B, T, -1}), "self_attn.o_proj");
    x = norm_if(after, x, at + "post_attention_layernorm.weight");
    y = norm_if(before, x, at + "post_attention_layernorm.weight");
    x = x + project(torch::silu(project(y, "mlp.gate_proj")) * project(y, "mlp.up_proj"), "mlp.down_proj");
    const std::string next = "model.layers." + std::to_string(i + 1) + ".input_layernorm.weight";
    x = norm_if(after, x, i + 1 < c.num_hidden_layers ? next : "model.norm.weight");
  }
  return norm_if(before, x, "model.norm.weight").matmul(w.at("lm_head.weight").t());
}

// Logits, then the gradient of every parameter for a fixed gradient of the logits.
using Values = std::map<std::string, Tensor>;
Values run(Decoder& decoder, const Tensor& tokens, bool plain) {
  decoder->zero_grad(true);
  const Tensor logits = plain ? plain_logits(decoder, tokens) : decoder(tokens);
  logits.backward(wave(logits.sizes(), 2.3).to(logits.options()));
  Values out{{"logits", logits.detach().to(torch::kFloat64)}};
  std::vector<Tensor> gammas;  // of few elements each: judged together, or the luck of one rounding decides
  for (const auto& p : decoder->named_parameters()) {
    const Tensor grad = p.value().grad().to(torch::kFloat64).clone();
    if (p.key().ends_with("_gamma"))
      gammas.push_back(grad);
    else
      out[p.key()] = grad;
  }
  if (!gammas.empty()) out["gammas"] = torch::cat(gammas);
  return out;
}

double error(const Tensor& x, const Tensor& truth) { return (x.to(torch::kFloat64) - truth).norm().item<double>(); }

struct Shape {
  int64_t B, T, heads, kv_heads, head_size;
  bool tied;
  AttentionConfig attention = {};
  std::string norm = "pre";
  SigmaConfig sigma = {};
  int64_t hidden_size = 0;  // 0: heads · head_size
};
class DecoderShapes : public testing::TestWithParam<Shape> {};

TEST_P(DecoderShapes, LogitsAndGradientsAreAsExactAsPlainOnes) {
  const auto& [B, T, heads, kv_heads, head_size, tied, attention, norm, sigma, hidden_size] = GetParam();
  DecoderConfig config = small(heads, kv_heads, head_size, tied);
  config.attention = attention;
  config.mlp_bias = attention.bias == "all";
  config.norm = norm;
  config.sigma_reparam = sigma;
  if (hidden_size > 0) {
    config.hidden_size = hidden_size;
    config.head_dim = head_size;
  }
  Decoder decoder = make(config);
  // Errors of several draws together: a gradient of few elements in one draw is the luck of its roundings. With four draws the
  // ratio of two such errors (the gammas of fused_qkv: four elements) still passed 2 on one processor in two builds of three.
  constexpr int64_t kDraws = 16;
  const auto tokens = [&](int64_t draw) { return (some_tokens(B, T, 29) + 5 * draw) % 29; };
  std::vector<Values> ours, plain;
  for (int64_t draw = 0; draw < kDraws; ++draw) {
    ours.push_back(run(decoder, tokens(draw), false));
    plain.push_back(run(decoder, tokens(draw), true));
  }
  decoder->to(torch::kFloat64);
  struct Squares {
    double ours = 0, plain = 0, floor = 0, ours_double = 0;
  };
  std::map<std::string, Squares> squares;
  for (int64_t draw = 0; draw < kDraws; ++draw) {
    const Values truth = run(decoder, tokens(draw), true), ours_double = run(decoder, tokens(draw), false);
    ASSERT_EQ(ours[draw].size(), truth.size());
    for (const auto& [name, expected] : truth) {
      const auto square = [&](const Values& values) { return std::pow(error(values.at(name), expected), 2); };
      Squares& sum = squares[name];
      sum.ours += square(ours[draw]);
      sum.plain += square(plain[draw]);
      sum.ours_double += square(ours_double);
      // A value that is exact in float (the gradient of a row of one key) still passes within one rounding.
      sum.floor += std::pow(expected.norm().item<double>() * std::numeric_limits<float>::epsilon(), 2);
    }
  }
  for (const auto& [name, sum] : squares) {
    const double allowed = 2 * std::sqrt(std::max(sum.plain, sum.floor));
    EXPECT_LE(std::sqrt(sum.ours), allowed) << name;
    // Double keeps 29 bits more; the plain result in double has an error of its own.
    EXPECT_LE(std::sqrt(sum.ours_double), 2 * allowed * 0x1p-29) << name << " in double";
  }
}

INSTANTIATE_TEST_SUITE_P(Odd, DecoderShapes,
                         testing::Values(Shape{1, 1, 2, 1, 16, false}, Shape{3, 31, 4, 4, 16, false},
                                         Shape{2, 33, 6, 2, 8, true}, Shape{1, 97, 5, 1, 24, false},
                                         Shape{5, 50, 4, 2, 32, true}, Shape{131, 2, 3, 3, 8, false}));
INSTANTIATE_TEST_SUITE_P(
    Options, DecoderShapes,
    testing::Values(Shape{2, 33, 4, 2, 16, false, {.window = 7}}, Shape{2, 33, 4, 2, 16, false, {.softcap = 1.5}},
                    Shape{2, 33, 4, 2, 16, false, {.qk_norm = true}},
                    Shape{2, 33, 4, 2, 16, false, {.temperature = "head"}},
                    Shape{
                        2, 33, 4, 2, 16, true, {.window = 9, .softcap = 1.5, .qk_norm = true, .temperature = "row"}}));

const std::vector<std::string> kMixed{"full_attention", "sliding_attention"};
INSTANTIATE_TEST_SUITE_P(Families, DecoderShapes,
                         testing::Values(Shape{2, 33, 4, 2, 16, false, {.bias = "qkv"}},
                                         Shape{2, 33, 4, 2, 16, true, {.bias = "all"}},
                                         Shape{2, 33, 4, 2, 16, false, {.bias = "all"}, "pre", sigma({"all"})},
                                         Shape{2, 33, 4, 2, 16, false, {.window = 7, .layer_types = kMixed}}));

INSTANTIATE_TEST_SUITE_P(HeadDim, DecoderShapes,
                         testing::Values(Shape{2, 33, 3, 1, 16, false, {}, "pre", {}, 40},
                                         Shape{2, 33, 4, 2, 24, true, {.qk_norm = true}, "pre", sigma({"all"}), 31}));
INSTANTIATE_TEST_SUITE_P(Norms, DecoderShapes,
                         testing::Values(Shape{2, 33, 4, 2, 16, false, {}, "post"},
                                         Shape{2, 33, 4, 2, 16, true, {}, "none"},
                                         Shape{3, 31, 4, 4, 8, false, {}, "post", sigma({"all"})},
                                         Shape{3, 31, 4, 4, 8, false, {}, "none", sigma({"all"})}));
INSTANTIATE_TEST_SUITE_P(
    Sigma, DecoderShapes,
    testing::Values(Shape{2, 33, 4, 2, 16, false, {}, "pre", sigma({"all"})},
                    Shape{2, 33, 4, 2, 16, true, {}, "pre", sigma({"all"}, "detached")},
                    Shape{2, 33, 4, 2, 16, false, {}, "pre", sigma({"attention"}, "through", "one")},
                    Shape{1, 97, 3, 1, 8, false, {}, "pre", sigma({"mlp"})},
                    Shape{1, 97, 3, 1, 8, false, {}, "pre", sigma({"k", "up", "head"}, "detached")},
                    Shape{131, 2, 3, 3, 8, false, {.qk_norm = true}, "pre", sigma({"q", "v", "o", "down"})}));

// ---- learned spectral norms ------------------------------------------------------------------------------------------

TEST(DecoderSigma, TheGradientIsOrthogonalToTheWeightUnlessDetached) {
  for (const char* grad : {"through", "detached"}) {
    DecoderConfig config = small(4, 2, 16);
    config.sigma_reparam = sigma({"all"}, grad);
    Decoder decoder = make(config);
    decoder->to(torch::kFloat64);
    run(decoder, some_tokens(2, 33, 29), false);
    size_t layers = 0;
    const auto check = [&](const Projection& p) {
      for (size_t i = 0; i < p.parts.size(); ++i, ++layers) {
        const Tensor W = weight_of(p, i).detach(),
                     dW = p.weight.grad().slice(0, p.parts[i].first, p.parts[i].first + p.parts[i].rows);
        const double cosine = ((W * dW).sum() / (W.norm() * dW.norm())).item<double>();
        EXPECT_EQ(std::abs(cosine) <= 1e-14, p.through) << p.parts[i].name << ": " << cosine;
      }
    };
    for (const LayerWeights& layer : decoder->layers())
      for (const Projection* p : layer.projections()) check(*p);
    check(decoder->head());
    EXPECT_EQ(layers, 2u * 7 + 1);
    EXPECT_EQ(decoder->sigma_layers().size(), layers);
  }
}

TEST(DecoderSigma, FoldedWeightsGiveTheSameBits) {
  DecoderConfig config = small(4, 2, 16);
  config.sigma_reparam = sigma({"all"});
  Decoder decoder = make(config);
  config.sigma_reparam = {};
  Decoder plain(config, 8);
  torch::NoGradGuard no_grad;
  const auto folded = decoder->folded_weights(), own = plain->named_weights();
  for (size_t i = 0; i < own.size(); ++i) {
    ASSERT_EQ(own[i].first, folded[i].first);
    Tensor(own[i].second).copy_(folded[i].second);
  }
  const Tensor tokens = some_tokens(2, 33, 29);
  EXPECT_TRUE(torch::equal(decoder(tokens), plain(tokens)));
  EXPECT_FALSE(torch::equal(folded[2].second, decoder->named_weights()[2].second));
}

TEST(DecoderSigma, ForwardAndBackwardLeaveUAlone) {
  DecoderConfig config = small(4, 2, 16);
  config.sigma_reparam = sigma({"all"});
  Decoder decoder = make(config);
  const auto layers = decoder->sigma_layers();
  std::vector<Tensor> before;
  for (const SigmaLayer& layer : layers) before.push_back(layer.u.clone());
  for (int i = 0; i < 2; ++i) run(decoder, some_tokens(2, 33, 29), false);
  for (size_t i = 0; i < layers.size(); ++i) EXPECT_TRUE(torch::equal(layers[i].u, before[i])) << layers[i].name;
  decoder->power_step();
  for (size_t i = 0; i < layers.size(); ++i) EXPECT_FALSE(torch::equal(layers[i].u, before[i])) << layers[i].name;
}

double largest_singular_value(const Tensor& weight) {
  return at::linalg_svdvals(weight.to(torch::kFloat64)).max().item<double>();
}

TEST(DecoderSigma, StartsAtTheSingularVectorAndFollowsIt) {
  DecoderConfig config = small(4, 2, 16);
  config.sigma_reparam = sigma({"all"});
  config.sigma_reparam.gamma_init = "sigma";
  config.sigma_reparam.steps_max = 200;
  config.sigma_reparam.tolerance = 1e-5;
  Decoder decoder(config, 3);
  torch::NoGradGuard no_grad;
  for (const SigmaLayer& layer : decoder->sigma_layers()) {
    const double truth = largest_singular_value(layer.weight);
    EXPECT_NEAR(layer.gamma.item<double>() / truth, 1, 1e-4) << layer.name;
    EXPECT_NEAR(layer.u.norm().item<double>(), 1, 1e-6) << layer.name;
  }
  // γ = σ: the layer computes what its weight does, and the factor is 1 to the bit.
  const auto folded = decoder->folded_weights(), own = decoder->named_weights();
  for (size_t i = 0; i < own.size(); ++i) EXPECT_TRUE(torch::equal(folded[i].second, own[i].second)) << own[i].first;
  // Updates of the size and shape of AdamW's first: nearly a matrix of signs, nothing to do with the old u.
  for (int step = 0; step < 5; ++step) {
    for (const SigmaLayer& layer : decoder->sigma_layers())
      layer.weight.add_(wave(layer.weight.sizes(), 1.1 + step).sign().to(torch::kFloat32) * 0.03);
    const std::vector<double> sigmas = decoder->power_step();
    for (size_t i = 0; i < sigmas.size(); ++i) {
      const SigmaLayer layer = decoder->sigma_layers()[i];
      // σ comes from below. A step that changes it by less than 1e-5 of it leaves some hundred such steps to go where the
      // largest singular values lie close together.
      const double share = sigmas[i] / largest_singular_value(layer.weight);
      EXPECT_LE(share, 1 + 1e-6) << layer.name << ", step " << step;
      EXPECT_GE(share, 1 - 5e-3) << layer.name << ", step " << step;
    }
  }
}

TEST(DecoderSigma, AZeroWeightGivesZeroAndANonFiniteOneIsSeen) {
  DecoderConfig config = small(4, 2, 16);
  config.sigma_reparam = sigma({"all"});
  Decoder decoder = make(config);
  {
    torch::NoGradGuard no_grad;
    decoder->sigma_layers()[4].weight.zero_();  // gate
  }
  ASSERT_EQ(decoder->sigma_layers()[4].name, "layers.0.gate");
  for (const auto& [name, value] : run(decoder, some_tokens(2, 33, 29), false))
    EXPECT_TRUE(torch::isfinite(value).all().item<bool>()) << name;
  EXPECT_EQ(decoder->power_step()[4], 0);
  decoder->sigma_layers()[5].weight[3][2] = INFINITY;
  const auto sigmas = decoder->power_step();
  for (size_t i = 0; i < sigmas.size(); ++i) EXPECT_EQ(std::isfinite(sigmas[i]), i != 5) << i;
}

// bfloat16 has no kernels of the model's own: torch's products and ops::sigma_linear.
TEST(DecoderSigma, OtherTypesAreAsExactAsFoldedWeights) {
  for (const char* fused : {"separate", "one"}) {
    DecoderConfig config = small(4, 2, 16);
    config.sigma_reparam = sigma({"attention", "up", "head"}, "through", fused);
    Decoder decoder = make(config), wide(config, 3);
    config.sigma_reparam = {};
    Decoder plain(config, 3);
    torch::NoGradGuard no_grad;
    decoder->to(torch::kBFloat16);
    for (auto& p : wide->named_parameters()) p.value().copy_(decoder->named_parameters()[p.key()]);
    for (auto& b : wide->named_buffers()) b.value().copy_(decoder->named_buffers()[b.key()]);
    wide->to(torch::kFloat64);
    plain->to(torch::kBFloat16);
    const auto folded = decoder->folded_weights(), own = plain->named_weights();
    for (size_t i = 0; i < own.size(); ++i) Tensor(own[i].second).copy_(folded[i].second);
    const Tensor tokens = some_tokens(2, 33, 29), truth = plain_logits(wide, tokens);
    EXPECT_LE(error(decoder(tokens), truth), 2 * error(plain(tokens), truth));
  }
}

TEST(DecoderSigma, StateIsOfTheSameLayersOrNothing) {
  DecoderConfig config = small(4, 2, 16);
  config.sigma_reparam = sigma({"attention"});
  Decoder decoder = make(config), other(config, 9);
  const Tensor tokens = some_tokens(2, 5, 29);
  const auto state = decoder->sigma_state();
  EXPECT_EQ(state.size(), 2u * 2 * 3);
  torch::NoGradGuard no_grad;
  const auto folded = decoder->folded_weights(), own = other->named_weights();
  for (size_t i = 0; i < own.size(); ++i) Tensor(own[i].second).copy_(folded[i].second);
  ASSERT_TRUE(other->restore_sigma(state));
  EXPECT_TRUE(torch::equal(other(tokens), decoder(tokens)));
  config.sigma_reparam = sigma({"all"});
  Decoder more(config, 9);
  const Tensor before = more(tokens);
  EXPECT_FALSE(more->restore_sigma(state));
  EXPECT_TRUE(torch::equal(more(tokens), before));
}

TEST(Decoder, RecordsTheAttentionOfEveryLayer) {
  DecoderConfig config = small(4, 2, 16);
  config.attention.window = 8;
  Decoder decoder = make(config);
  AttentionRecord record;
  const Tensor tokens = some_tokens(3, 31, 29), logits = decoder(tokens, &record);
  EXPECT_TRUE(torch::equal(logits, decoder(tokens)));
  ASSERT_EQ(record.entropy.size(), 2u);
  ASSERT_EQ(record.window, (std::vector<int64_t>{8, 8}));
  const Tensor most = torch::arange(1, 32, torch::kFloat64).clamp_max(8).log() + 1e-6;
  for (size_t l = 0; l < 2; ++l) {
    EXPECT_EQ(record.entropy[l].sizes(), (std::vector<int64_t>{3, 4, 31}));
    EXPECT_EQ(record.max_logit[l].sizes(), (std::vector<int64_t>{3, 4, 31}));
    EXPECT_TRUE((record.entropy[l] <= most).all().item<bool>());
    EXPECT_TRUE((record.entropy[l].select(2, 0) == 0).all().item<bool>());
    EXPECT_TRUE(record.entropy[l].requires_grad());
  }
}

TEST(Decoder, RowsOfTheEmbeddingThatAreNoTokensHaveNoLogits) {
  DecoderConfig config = small(4, 2, 16);
  const Decoder whole = make(config);
  config.tokens = 20;
  Decoder some = make(config), all = whole;
  const Tensor tokens = some_tokens(2, 9, 20);
  EXPECT_TRUE(torch::equal(some(tokens), all(tokens).slice(2, 0, 20)));
  const auto judged = some->token_entropy(tokens, tokens);
  const Tensor logp = all(tokens).slice(2, 0, 20).log_softmax(-1);
  EXPECT_TRUE(torch::allclose(judged.entropy, -(logp.exp() * logp).sum(-1), 1e-5, 1e-5));
  EXPECT_THROW(some(torch::full({1, 2}, 20, torch::kInt64)), c10::Error);
  config.tokens = 30;
  EXPECT_THROW(Decoder(config, 1), std::invalid_argument);
}

TEST(Decoder, StretchedRotaryPositionsThatMeanNothingAreRefused) {
  const auto problem = [](const RopeScalingConfig& c) { return c.problem().substr(0, c.problem().find(':')); };
  EXPECT_EQ(problem({}), "");
  EXPECT_EQ(problem({.factor = 2}), "factor");
  for (const char* type : {"linear", "dynamic", "yarn", "llama3"}) {
    EXPECT_EQ(problem({.rope_type = type}), "factor");
    EXPECT_EQ(problem({.rope_type = type, .factor = 2}), "");
  }
  EXPECT_EQ(problem({.rope_type = "linear", .factor = 2, .original_max_position_embeddings = 8}),
            "original_max_position_embeddings");
  EXPECT_EQ(problem({.rope_type = "llama3", .factor = 2, .attention_factor = 2}), "attention_factor");
  EXPECT_EQ(problem({.rope_type = "llama3", .factor = 2, .truncate = false}), "truncate");
  EXPECT_EQ(problem({.rope_type = "yarn", .factor = 2, .low_freq_factor = 2}), "low_freq_factor");
  EXPECT_EQ(problem({.rope_type = "yarn", .factor = 2, .beta_fast = 1, .beta_slow = 2}), "beta_fast");
  EXPECT_EQ(problem({.rope_type = "llama3", .factor = 2, .low_freq_factor = 4}), "high_freq_factor");
}

// The largest logit of every head after the cut is the bound, for the same inputs of the layer; of one layer, whose inputs no
// other weight decides.
TEST(Decoder, QkClipBringsTheLargestLogitToItsBound) {
  for (const int64_t kv_heads : {4, 2}) {
    DecoderConfig config = small(4, kv_heads, 16);
    config.num_hidden_layers = 1;
    config.attention.bias = kv_heads == 2 ? "qkv" : "none";
    config.attention.qk_clip = 0.4;
    Decoder decoder = make(config);
    const Tensor tokens = some_tokens(3, 31, 29);
    const auto largest = [&] {
      torch::NoGradGuard no_grad;
      AttentionRecord record;
      decoder(tokens, &record);
      const Tensor m = record.max_logit[0].amax({0, 2}).to(torch::kFloat64);
      return std::vector<double>(m.data_ptr<double>(), m.data_ptr<double>() + 4);
    };
    const std::vector<double> before = largest();
    const int64_t above = std::count_if(before.begin(), before.end(), [](double x) { return x > 0.4; });
    ASSERT_GT(above, 0);
    EXPECT_EQ(decoder->qk_clip({before}), above);
    const std::vector<double> after = largest();
    for (size_t h = 0; h < 4; ++h) EXPECT_NEAR(after[h], std::min(before[h], 0.4), 1e-5) << "head " << h;
    EXPECT_EQ(decoder->qk_clip({{0.1, 0.1, 0.1, 0.1}}), 0);
  }
}

TEST(Decoder, LaterTokensChangeNothingBefore) {
  Decoder decoder = make(small(4, 2, 16));
  torch::NoGradGuard no_grad;
  const Tensor tokens = some_tokens(3, 40, 29), before = decoder(tokens);
  tokens.slice(1, 17).fill_(5);
  const Tensor after = decoder(tokens);
  EXPECT_TRUE(torch::equal(before.slice(1, 0, 17), after.slice(1, 0, 17)));
  EXPECT_FALSE(torch::equal(before.slice(1, 17), after.slice(1, 17)));
}

TEST(Decoder, BitsDoNotDependOnThreads) {
  DecoderConfig config = small(4, 4, 16);
  config.sigma_reparam = sigma({"all"});
  Decoder decoder = make(config);
  const Tensor tokens = some_tokens(33, 50, 29);
  const int threads = at::get_num_threads();
  at::set_num_threads(1);
  const Values one = run(decoder, tokens, false);
  for (const int count : {2, 3}) {
    at::set_num_threads(count);
    const Values many = run(decoder, tokens, false);
    for (const auto& [name, value] : one)
      EXPECT_TRUE(torch::equal(value, many.at(name))) << name << ", threads " << count;
  }
  at::set_num_threads(threads);
}

TEST(Decoder, NamedWeightsAreViewsWithHuggingFaceNames) {
  Decoder decoder = make(small(4, 2, 16));
  const auto weights = decoder->named_weights();
  ASSERT_EQ(weights.size(), 1u + 2 * 9 + 2);
  EXPECT_EQ(weights[0].first, "model.embed_tokens.weight");
  EXPECT_EQ(weights[3].first, "model.layers.0.self_attn.k_proj.weight");
  EXPECT_EQ(weights[3].second.sizes(), (std::vector<int64_t>{32, 64}));
  EXPECT_EQ(weights.back().first, "lm_head.weight");
  torch::NoGradGuard no_grad;
  const Tensor tokens = some_tokens(1, 5, 29), before = decoder(tokens);
  for (const auto& [name, weight] : weights) {
    const Tensor kept = weight.clone();
    weight.mul_(1.5);
    EXPECT_FALSE(torch::equal(before, decoder(tokens))) << name;
    weight.copy_(kept);
  }
  EXPECT_EQ(make(small(4, 2, 16, true))->named_weights().size(), weights.size() - 1);
}

TEST(Decoder, WeightsAreDrawnFromTheSeed) {
  DecoderConfig config = small(4, 4, 16);
  config.intermediate_size = 192;
  const Decoder a(config, 7), b(config, 7), c(config, 8);
  const auto first = a->named_weights(), same = b->named_weights(), other = c->named_weights();
  for (size_t i = 0; i < first.size(); ++i) {
    const auto& [name, weight] = first[i];
    EXPECT_TRUE(torch::equal(weight, same[i].second)) << name;
    if (weight.dim() == 1) continue;
    EXPECT_FALSE(torch::equal(weight, other[i].second)) << name;
    const bool residual = name.find("o_proj") != name.npos || name.find("down") != name.npos;
    const bool vocabulary = name.find("embed") != name.npos || name.find("head") != name.npos;
    const double wanted = vocabulary ? 0.02 : (residual ? 0.5 : 1.0) / std::sqrt(static_cast<double>(weight.size(1)));
    // The standard deviation of a sample of n normals is off by 1 in √(2n); 4.5 of these are met once in 10⁵.
    EXPECT_NEAR(weight.std().item<double>() / wanted, 1, 4.5 / std::sqrt(2.0 * weight.numel())) << name;
    EXPECT_NEAR(weight.mean().item<double>() / wanted, 0, 4.5 / std::sqrt(1.0 * weight.numel())) << name;
  }
  config.initializer_range = 0.1;
  for (const auto& [name, weight] : Decoder(config, 7)->named_weights()) {
    if (weight.dim() == 1) continue;
    EXPECT_NEAR(weight.std().item<double>() / 0.1, 1, 4.5 / std::sqrt(2.0 * weight.numel())) << name;
  }
}

std::string message(const std::function<void()>& f) {
  try {
    f();
  } catch (const std::exception& e) {
    return e.what();
  }
  return "nothing was thrown";
}

TEST(Decoder, ErrorsNameWhatIsWrong) {
  Decoder decoder = make(small(4, 2, 16));
  auto contains = [&](const std::function<void()>& f, const std::string& text) {
    const std::string said = message(f);
    EXPECT_NE(said.find(text), said.npos) << said;
  };
  contains([&] { decoder(some_tokens(1, 98, 29)); }, "sequences of 98 tokens, but model.max_position_embeddings is 97");
  contains([&] { decoder(some_tokens(1, 5, 30) + 20); }, "outside 0 … 28");
  contains([&] { decoder(torch::zeros({2, 3})); }, "wanted [B, T] int64");
  contains([&] { decoder(torch::zeros({2, 0}, torch::kInt64)); }, "T ≥ 1");
  DecoderConfig config = small(4, 3, 16);
  contains([&] { Decoder(config, 1); }, "num_key_value_heads: 3 does not divide num_attention_heads (4)");
  config = small(4, 4, 12);
  contains([&] { Decoder(config, 1); },
           "hidden_size: 48 does not give 4 heads a size that is a multiple of 8 up to 256");
  config = small(4, 4, 16);
  config.attention.qk_norm = true;
  config.attention.qk_clip = 50;
  contains([&] { Decoder(config, 1); }, "use one of the two");
  config = small(4, 4, 16);
  config.attention = {.qk_clip = 50};
  config.sigma_reparam = sigma({"k"});
  contains([&] { Decoder(config, 1); }, "whose norm sigma_reparam holds at gamma");
  config.sigma_reparam = sigma({"v", "mlp"});
  EXPECT_EQ(config.problem(), "");
  config.attention = {};
  config.tie_word_embeddings = true;
  config.sigma_reparam = sigma({"all"});
  EXPECT_EQ(config.problem(), "");
  config.sigma_reparam = sigma({"q", "head"});
  contains([&] { Decoder(config, 1); }, "the head is the embedding (tie_word_embeddings)");
  config.sigma_reparam = sigma({"q", "k"}, "through", "one");
  contains([&] { Decoder(config, 1); }, "name all three or write fused_qkv: separate");
  config.sigma_reparam = sigma({"none", "k"});
  contains([&] { Decoder(config, 1); }, "none stands beside other names");
  config.sigma_reparam = {};
  config.vocabulary = 0;
  contains([&] { Decoder(config, 1); }, "vocabulary is 0");
}

TEST(Decoder, EmptyBatch) {
  Decoder decoder = make(small(4, 2, 16));
  EXPECT_EQ(decoder(torch::zeros({0, 5}, torch::kInt64)).sizes(), (std::vector<int64_t>{0, 5, 29}));
}

}  // namespace ISENTROPE_UNIT
}  // namespace isentrope::model
