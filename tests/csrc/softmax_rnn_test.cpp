// Rows of softmax_rnn against Σ e^s v and what it is divided by, and a norm in the place of the denominator against the norm of softmax
// attention.
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include <cmath>

#include "csrc/model/mixer.h"
#include "tests/csrc/mixer_kinds.h"

namespace isentrope::model {
namespace ISENTROPE_UNIT {

using torch::Tensor;

constexpr int64_t kTokens = 37;
const auto kDouble = torch::dtype(torch::kFloat64);

DecoderConfig config_of(const SoftmaxRnnMixerConfig& options) {
  DecoderConfig c = small_mixers({"softmax_rnn"});
  c.softmax_rnn = options;
  c.rms_norm_eps = 1e-30;  // nothing: so that a norm has no scale
  return c;
}

Decoder in_double(const DecoderConfig& config) {
  Decoder decoder = made(config);
  decoder->to(torch::kFloat64);
  return decoder;
}

Tensor some_input() {
  torch::manual_seed(4);
  return torch::randn({kTokens, 32}, kDouble);
}

// The mixer of the first layer for x [T, C].
Tensor mixed(const Decoder& decoder, const Tensor& x) {
  const Tensor cosine = decoder->cosine().slice(0, 0, kTokens), sine = decoder->sine().slice(0, 0, kTokens);
  return decoder->layers()[0].mixer->forward(x, {}, {cosine, sine, nullptr, {}, nullptr, true, {}});
}

Tensor normed(const std::string& norm, Tensor y) {
  if (norm == "layer") y = y - y.mean(-1, true);
  if (norm == "rms" || norm == "layer") return y / y.square().mean(-1, true).sqrt();
  return norm == "l2" ? y / y.square().sum(-1, true).sqrt() : y;
}

// The same by the definition, with matrices of weights [H, T, T].
Tensor by_definition(const Decoder& decoder, const Tensor& x) {
  const DecoderConfig& c = decoder->config();
  const SoftmaxRnnMixerConfig& options = c.softmax_rnn;
  const Mixer& mixer = *decoder->layers()[0].mixer;
  const int64_t H = c.num_attention_heads, G = c.num_key_value_heads, D = c.head_size(), T = kTokens;
  const Tensor rows = torch::matmul(x, mixer.qkv.weight.t());
  const auto heads = [&](int64_t first, int64_t count) {  // [count, T, D]
    return rows.slice(1, first * D, (first + count) * D).view({T, count, D}).transpose(0, 1);
  };
  const Tensor cosine = decoder->cosine().slice(0, 0, T), sine = decoder->sine().slice(0, 0, T);
  const auto turned = [&](const Tensor& y) {
    const auto half = y.chunk(2, -1);
    return torch::cat({half[0] * cosine - half[1] * sine, half[1] * cosine + half[0] * sine}, -1);
  };
  const auto repeated = [&](const Tensor& y) { return y.repeat_interleave(H / G, 0); };
  int64_t gates = (H + 2 * G) * D;
  Tensor v = heads(H + G, G);
  if (options.value_gate) {
    v = v * rows.slice(1, gates, gates + G).sigmoid().t().unsqueeze(2);
    gates += G;
  }
  Tensor s = torch::matmul(turned(heads(0, H)), repeated(turned(heads(H, G))).transpose(1, 2)) / std::sqrt(double(D));
  const bool clamped = options.norm == "none" && options.denominator != "sum" && options.denominator != "detached";
  if (clamped) s = options.clamp * torch::tanh(s / options.clamp);
  const Tensor e = s.exp() * torch::ones({T, T}, kDouble).tril();
  const Tensor Z = e.sum(-1, true);
  Tensor y = torch::matmul(e, repeated(v));
  if (options.denominator == "sum") y = y / Z;
  if (options.denominator == "max_one") y = y / Z.clamp_min(1);
  if (options.denominator == "detached") y = y / Z.detach();
  if (options.denominator == "count") y = y / torch::arange(1, T + 1, kDouble).view({1, T, 1});
  y = normed(options.norm, y);
  if (options.output_gate) y = y * rows.slice(1, gates, gates + H).sigmoid().t().unsqueeze(2);
  return torch::matmul(y.transpose(0, 1).reshape({T, H * D}), mixer.o.weight.t());
}

// Values, and gradients of the weights, for every denominator and every norm with and without the gates.
TEST(SoftmaxRnn, IsWhatItsDefinitionSays) {
  std::vector<SoftmaxRnnMixerConfig> all;
  for (const char* denominator : {"sum", "max_one", "detached", "count", "none"})
    all.push_back({.denominator = denominator, .norm = "none"});
  for (const char* norm : {"rms", "layer", "l2"})
    for (const char* denominator : {"sum", "none"}) all.push_back({.denominator = denominator, .norm = norm});
  const Tensor x = some_input(), weights = torch::randn({kTokens, 32}, kDouble);
  for (SoftmaxRnnMixerConfig& options : all)
    for (const bool gates : {false, true}) {
      options.value_gate = options.output_gate = gates;
      const std::string name = options.denominator + ", norm " + options.norm + (gates ? ", gates" : "");
      const Decoder decoder = in_double(config_of(options));
      const Mixer& mixer = *decoder->layers()[0].mixer;
      const Tensor found = mixed(decoder, x), truth = by_definition(decoder, x);
      const double scale = truth.abs().max().item<double>();
      EXPECT_LE((found - truth).abs().max().item<double>(), 1e-14 * scale) << name;
      const std::vector<Tensor> of{mixer.qkv.weight, mixer.o.weight};
      const auto grads = torch::autograd::grad({(found * weights).sum()}, of),
                 true_grads = torch::autograd::grad({(truth * weights).sum()}, of);
      for (size_t i = 0; i < of.size(); ++i) {
        const double size = true_grads[i].abs().max().item<double>();
        EXPECT_LE((grads[i] - true_grads[i]).abs().max().item<double>(), 1e-12 * size) << name << ", weight " << i;
      }
    }
}

// norm(Σ e^s v) = norm(softmax · v): the norm of the unnormalised rows by the definition, and by this mixer of softmax attention's.
TEST(SoftmaxRnn, ANormInThePlaceOfTheDenominatorIsThatOfSoftmaxAttention) {
  const Tensor x = some_input();
  for (const char* norm : {"rms", "layer", "l2"}) {
    const Decoder decoder = in_double(config_of({.denominator = "none", .norm = norm}));
    DecoderConfig plain = config_of({});
    plain.mixers = {"softmax"};
    const Decoder softmax = in_double(plain);
    const torch::NoGradGuard no_grad;
    for (const Decoder& one : {decoder, softmax})
      Tensor(one->layers()[0].mixer->o.weight).copy_(torch::eye(32, kDouble));
    const Tensor heads = mixed(softmax, x).view({kTokens, 4, 8});  // softmax attention, the same weights
    const Tensor of_softmax = normed(norm, heads).reshape({kTokens, 32});
    const Tensor unnormalised = by_definition(decoder, x), found = mixed(decoder, x);
    EXPECT_LE((unnormalised - of_softmax).abs().max().item<double>(), 1e-14) << norm;
    EXPECT_LE((found - of_softmax).abs().max().item<double>(), 4e-15) << norm;
  }
}

// A step in the direction of a larger Z: with it as a constant a row's gradient is not that of its softmax.
TEST(SoftmaxRnn, ADetachedDenominatorHasTheValuesOfSoftmaxAndOtherGradients) {
  const Tensor x = some_input();
  const Decoder sum = in_double(config_of({.denominator = "sum", .norm = "none"})),
                detached = in_double(config_of({.denominator = "detached", .norm = "none"}));
  const Tensor a = mixed(sum, x), b = mixed(detached, x);
  EXPECT_TRUE(torch::equal(a, b));
  const auto grad = [&](const Decoder& of, const Tensor& y) {
    return torch::autograd::grad({y.sum()}, {of->layers()[0].mixer->qkv.weight})[0];
  };
  EXPECT_GT((grad(sum, a) - grad(detached, b)).abs().max().item<double>(), 0.1);
}

TEST(SoftmaxRnn, TellsTheEntropyOfItsSoftmax) {
  const Tensor x = some_input();
  DecoderConfig config = config_of({});
  AttentionRecord of_rows, of_softmax;
  const Tensor tokens = torch::arange(20).unsqueeze(0);
  made(config)->forward(tokens, &of_rows);
  config.mixers = {"softmax"};
  made(config)->forward(tokens, &of_softmax);
  EXPECT_EQ(of_rows.layer, (std::vector<int64_t>{0, 1}));
  EXPECT_TRUE(torch::equal(of_rows.entropy[0], of_softmax.entropy[0]));
}

}  // namespace ISENTROPE_UNIT
}  // namespace isentrope::model
