// natsl: the layer and the gradient of its router by their definitions in double, what it counts, and what is refused.
#include "csrc/model/mixers/natsl.h"

#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include <cmath>

#include "tests/csrc/mixer_kinds.h"

namespace isentrope::model {
namespace ISENTROPE_UNIT {

using torch::Tensor;

DecoderConfig natsl_config() {
  DecoderConfig c = small_mixers({"natsl"});
  c.num_key_value_heads = 4;
  c.natsl = {.chunk = 16, .conv_size = 3};
  return c;
}

const NatslMixer& mixer_of(const Decoder& decoder, size_t layer = 0) {
  return dynamic_cast<const NatslMixer&>(*decoder->layers()[layer].mixer);
}

double distance(const Tensor& a, const Tensor& b) { return (a - b).abs().max().item<double>(); }

Tensor rms(const Tensor& x, const Tensor& weight, double eps) { return weight * x / (x.square().mean() + eps).sqrt(); }

// The layer of one sequence x [T, C] by its definition, a token at a time. soft, lin [H, chunks]: factors of a chunk's weights and of what it
// writes for the tokens behind it.
Tensor by_definition(const NatslMixer& m, const Tensor& x, const Tensor& soft, const Tensor& lin) {
  const int64_t T = x.size(0), H = 4, D = 8, K = 3, chunk = 16;
  const double eps = m.eps();
  const Tensor all = x.matmul(m.qkv.weight.t());
  const auto parts = all.split_with_sizes({3 * H * D, H * D, H, H, 2 * H}, 1);
  std::vector<Tensor> channels;
  for (int64_t t = 0; t < T; ++t) {
    Tensor sum = torch::zeros({3 * H * D}, torch::kFloat64);
    for (int64_t l = 0; l < K && l <= t; ++l) sum = sum + m.conv.select(1, 0).select(1, K - 1 - l) * parts[0][t - l];
    channels.push_back(sum * sum.sigmoid());
  }
  std::vector<Tensor> rows(T);
  for (int64_t t = 0; t < T; ++t) rows[t] = torch::empty({0}, torch::kFloat64);
  for (int64_t h = 0; h < H; ++h) {
    const auto of = [&](int64_t t, int64_t part) {
      return channels[t].slice(0, (part * H + h) * D, (part * H + h + 1) * D);
    };
    Tensor S = torch::zeros({D, D}, torch::kFloat64), before = S;
    for (int64_t t = 0; t < T; ++t) {
      const Tensor q = of(t, 0), k = of(t, 1), v = of(t, 2);
      std::vector<Tensor> weights;
      for (int64_t s = 0; s <= t; ++s) {
        const Tensor e = (rms(q, m.q_norm, eps).dot(rms(of(s, 1), m.k_norm, eps)) / std::sqrt(8.0)).exp();
        weights.push_back(s / chunk == t / chunk ? e : e * soft[h][s / chunk]);
      }
      const Tensor w = torch::stack(weights);
      Tensor attended = torch::zeros({D}, torch::kFloat64);
      for (int64_t s = 0; s <= t; ++s) attended = attended + w[s] / w.sum() * of(s, 2);
      const Tensor a = (-m.A_log[h].exp() * torch::softplus(parts[3][t][h] + m.dt_bias[h])).exp();
      const Tensor unit = k / k.norm();
      S = a * S, before = a * before;
      S = S + parts[2][t][h].sigmoid() * torch::outer(unit, v - S.t().mv(unit));
      const Tensor held = S.t().mv(q / q.norm()) / std::sqrt(8.0);
      const Tensor blend = m.blend.mv(q).softmax(0);
      const Tensor g = parts[1][t].slice(0, h * D, (h + 1) * D);
      const Tensor both = blend[0] * rms(attended, m.soft_norm, eps) + blend[1] * rms(held, m.linear_norm, eps);
      rows[t] = torch::cat({rows[t], rms(both, m.o_norm, eps) * g * g.sigmoid()});
      if ((t + 1) % chunk == 0) S = before = lin[h][t / chunk] * S + (1 - lin[h][t / chunk]) * before;
    }
  }
  return torch::stack(rows).matmul(m.o.weight.t());
}

// The router's logits [H, chunks, 2] of one sequence.
Tensor logits_of(const NatslMixer& m, const Tensor& x, int64_t chunks) {
  std::vector<Tensor> means;
  for (int64_t c = 0; c < chunks; ++c)
    means.push_back(x.slice(0, 16 * c, 16 * c + 16).mean(0).matmul(m.qkv.weight.slice(0, -8).t()) + m.route_bias);
  return torch::stack(means).view({chunks, 4, 2}).transpose(0, 1);
}

struct Made {
  Decoder decoder{nullptr};
  Tensor x;  // [2 · 41, C]
};

// A layer of which heads share their chunks out differently.
Made mixed_layer() {
  Made made_one{made(natsl_config()), {}};
  made_one.decoder->to(torch::kFloat64);
  torch::manual_seed(11);
  made_one.x = torch::randn({2 * 41, 32}, torch::kFloat64);
  const torch::NoGradGuard no_grad;
  for (const NatslMixer* m : {&mixer_of(made_one.decoder)}) {
    Tensor(m->q_norm).uniform_(0.5, 1.5), Tensor(m->linear_norm).uniform_(0.5, 1.5);
    Tensor(m->route_bias).uniform_(-0.1, 0.1);
  }
  return made_one;
}

Tensor forward_of(const NatslMixer& m, const Tensor& x, int64_t T, AttentionRecord* record = nullptr) {
  const Tensor ones = torch::ones({T, 4}, torch::kFloat64), none;  // angles of 0, of which it takes no notice
  return m.forward(x, {}, {ones, ones, nullptr, none, record, false, none});
}

TEST(Natsl, IsWhatItsDefinitionSays) {
  const torch::NoGradGuard no_grad;
  const Made layer = mixed_layer();
  const NatslMixer& m = mixer_of(layer.decoder);
  AttentionRecord record;
  const Tensor y = forward_of(m, layer.x, 41, &record);
  int64_t of_softmax = 0;
  for (int64_t b = 0; b < 2; ++b) {
    const Tensor x = layer.x.slice(0, 41 * b, 41 * b + 41), logits = logits_of(m, x, 3);
    const Tensor soft = logits.select(2, 0).ge(logits.select(2, 1)).to(torch::kFloat64);
    of_softmax += soft.slice(1, 0, 2).sum().item<int64_t>();
    const Tensor truth = by_definition(m, x, soft, 1 - soft);
    EXPECT_LE(distance(y.slice(0, 41 * b, 41 * b + 41), truth), 1e-12 * truth.abs().max().item<double>()) << b;
  }
  EXPECT_GT(of_softmax, 2) << "chunks that softmax attention sees";
  EXPECT_LT(of_softmax, 14) << "chunks that the state holds";
  ASSERT_EQ(record.entropy.size(), 1u);
  EXPECT_EQ(record.entropy[0].sizes(), at::IntArrayRef({2, 4, 41}));
}

// Straight through: that of the router's weights is what the softmax's derivative makes of the gradient by the factors, which are 0 and 1; a
// factor of softmax attention that is 0 has none, since of a block that is left out nothing is computed.
TEST(Natsl, TheRouterHasTheGradientOfItsSoftmax) {
  const Made layer = mixed_layer();
  const NatslMixer& m = mixer_of(layer.decoder);
  torch::manual_seed(3);
  const Tensor x = layer.x.slice(0, 0, 41), weights = torch::randn({41, 32}, torch::kFloat64);
  const auto found = torch::autograd::grad({(forward_of(m, x, 41) * weights).sum()}, {m.route_bias, m.qkv.weight});
  const Tensor logits = logits_of(m, x, 3).detach(), z = logits.softmax(2);
  const Tensor chosen = logits.select(2, 0).ge(logits.select(2, 1));
  Tensor soft = chosen.to(torch::kFloat64).requires_grad_(), lin = (1 - soft.detach()).requires_grad_();
  const auto by_factor = torch::autograd::grad({(by_definition(m, x, soft, lin) * weights).sum()}, {soft, lin});
  const Tensor dz = torch::stack({by_factor[0] * chosen, by_factor[1]}, 2);
  EXPECT_GT(by_factor[0].masked_select(chosen.logical_not()).abs().max().item<double>(), 1e-6) << "which is left out";
  const Tensor dlogits = z * (dz - (z * dz).sum(2, true));  // [H, chunks, 2]
  const Tensor bias = dlogits.sum(1).reshape({8});
  EXPECT_LE(distance(found[0], bias), 1e-12 * bias.abs().max().item<double>());
  EXPECT_GT(bias.abs().min().item<double>(), 0);
  Tensor matrix = torch::zeros({8, 32}, torch::kFloat64);
  for (int64_t c = 0; c < 2; ++c)  // the last chunk has not ended
    matrix += torch::outer(dlogits.select(1, c).reshape({8}), x.slice(0, 16 * c, 16 * c + 16).mean(0));
  EXPECT_LE(distance(found[1].slice(0, -8), matrix), 1e-12 * matrix.abs().max().item<double>());
}

TEST(Natsl, TellsTheShareOfSoftmaxTokensOfAnUpdate) {
  for (const char* recompute : {"none", "blocks"}) {
    DecoderConfig config = natsl_config();
    config.recompute = recompute;
    Decoder decoder = made(config);
    const Tensor tokens = torch::arange(2 * 41).square().remainder(29).view({2, 41});
    EXPECT_FALSE(mixer_of(decoder).softmax_share().defined());
    decoder->forward(tokens).sum().backward();
    decoder->forget_seen();
    {
      const torch::NoGradGuard no_grad;
      decoder->forward(tokens);
    }
    EXPECT_EQ(mixer_of(decoder).seen().abs().max().item<double>(), 0) << "a pass without gradients counts nothing";
    for (int64_t b = 0; b < 2; ++b) decoder->forward(tokens.slice(0, b, b + 1)).sum().backward();
    const Tensor seen = mixer_of(decoder).seen().clone();
    EXPECT_TRUE(seen.select(1, 1).eq(2 * 32).all().item<bool>()) << "two chunks of each row have ended";
    decoder->take_seen([](Tensor& x) { x.mul_(2); });  // as of two ranks
    const Tensor share = mixer_of(decoder).softmax_share();
    EXPECT_LE(distance(share, seen.select(1, 0) / 64), 0) << recompute;
    // Forced by the bias: all or nothing.
    const torch::NoGradGuard no_grad;
    Tensor bias = mixer_of(decoder).route_bias;
    bias.copy_(torch::tensor({9., 0., 0., 9., 9., 0., 0., 9.}) * 100);
    {
      const torch::AutoGradMode grad(true);
      decoder->forget_seen();
      decoder->forward(tokens).sum().backward();
    }
    decoder->take_seen([](Tensor&) {});
    EXPECT_TRUE(torch::equal(mixer_of(decoder).softmax_share(), torch::tensor({1., 0., 1., 0.}, torch::kFloat64)));
  }
}

TEST(Natsl, RefusesWhatItHasNot) {
  const auto problem = [](auto change) {
    DecoderConfig config = natsl_config();
    change(config);
    return config.problem();
  };
  EXPECT_EQ(problem([](DecoderConfig&) {}), "");
  EXPECT_EQ(
      problem([](DecoderConfig& c) { c.num_key_value_heads = 2; }),
      "num_key_value_heads: 2; heads of kind natsl have keys and values of their own: write num_attention_heads (4)");
  EXPECT_EQ(problem([](DecoderConfig& c) { c.natsl.chunk = 24; }),
            "natsl.chunk: 24 is no multiple of 16; wanted 16, 32, 48 … 256");
  EXPECT_EQ(problem([](DecoderConfig& c) { c.compute = "bfloat16"; }),
            "natsl.chunk: 16, and with model.compute bfloat16 blocks of keys are of 64; wanted a multiple of 64");
  EXPECT_EQ(problem([](DecoderConfig& c) { c.attention.softcap = 5; }),
            "attention.softcap: layers of kind natsl have none, and layer 0 is one; leave it at 0");
  EXPECT_EQ(problem([](DecoderConfig& c) { c.attention.qk_norm = true; }),
            "attention.qk_norm: layers of kind natsl have norms of queries and keys of their own, and layer 0 is one; "
            "leave it at false");
  EXPECT_EQ(problem([](DecoderConfig& c) { c.causal = false; }),
            "mixers: a layer of kind natsl cannot see the tokens behind, and causal is false; wanted softmax or "
            "hierarchical");
}

}  // namespace ISENTROPE_UNIT
}  // namespace isentrope::model
