// Products of training in bfloat16: linear() with Projection::bfloat16, its copy of a weight, and decoders with model.compute.
// tests/CMakeLists.txt runs these tests again where the processor's products are plain loops, and where it is said to have none.
#include "csrc/model/bfloat16_training.h"

#include <ATen/Parallel.h>
#include <gtest/gtest.h>
#include <torch/autograd.h>
#include <torch/types.h>

#include <cmath>
#include <vector>

#include "csrc/model/decoder.h"
#include "csrc/model/single_pass.h"
#include "csrc/ops/bfloat16_product.h"

namespace isentrope::model {
namespace ISENTROPE_UNIT {

using torch::Tensor;

Tensor drawn(at::IntArrayRef sizes, uint64_t seed) {
  auto generator = at::make_generator<at::CPUGeneratorImpl>(seed);
  return torch::randn(sizes, generator);
}
Tensor rounded(const Tensor& x) { return x.detach().to(torch::kBFloat16).to(torch::kFloat64); }

Projection projection(int64_t M, int64_t K, bool bias = false) {
  Projection p{.name = "p",
               .weight = (drawn({M, K}, 2) / std::sqrt(static_cast<double>(K))).requires_grad_(),
               .bias = bias ? drawn({M}, 3).requires_grad_() : Tensor(),
               .parts = {},
               .gamma = {},
               .u = {},
               .bfloat16 = std::make_shared<Bfloat16Copy>()};
  return p;
}

// The largest error that sums of `terms` products of these magnitudes can have in float, however they are added up.
Tensor bound(const Tensor& magnitudes, int64_t terms) {
  return magnitudes * static_cast<double>(terms + 1) * std::pow(2.0, -24) + std::pow(2.0, -126);
}
void expect_within(const Tensor& found, const Tensor& wanted, const Tensor& most, const std::string& what) {
  ASSERT_EQ(found.sizes(), wanted.sizes()) << what;
  const Tensor share = ((found.to(torch::kFloat64) - wanted).abs() / most);
  if (share.numel() == 0) return;
  EXPECT_LE(share.max().item<double>(), 1) << what << ", as a share of what float sums allow";
}

struct Sizes {
  int64_t N, K, M;
};
const Sizes kSizes[] = {{1, 1, 1},      {2, 3, 1},        {31, 33, 97},  {97, 64, 31},
                        {49, 1601, 65}, {130, 130, 1540}, {1601, 7, 70}, {0, 5, 3}};

TEST(Bfloat16Linear, IsTheProductOfRoundedOperands) {
  for (const auto [N, K, M] : kSizes)
    for (const bool narrow : {false, true}) {
      const std::string what =
          std::to_string(N) + " x " + std::to_string(K) + " x " + std::to_string(M) + (narrow ? ", bfloat16 x" : "");
      const Projection p = projection(M, K, true);
      Tensor x = drawn({N, K}, 1);
      if (narrow) x = x.to(torch::kBFloat16);
      x.requires_grad_();
      const Tensor y = linear(x, p), dy = drawn({N, M}, 4);
      y.backward(dy);
      EXPECT_EQ(y.scalar_type(), torch::kFloat32);
      EXPECT_EQ(x.grad().scalar_type(), x.scalar_type());
      const Tensor a = rounded(x), w = rounded(p.weight), d = rounded(dy), b = p.bias.detach().to(torch::kFloat64);
      expect_within(y, a.mm(w.t()) + b, bound(a.abs().mm(w.abs().t()) + b.abs(), K + 1), "y " + what);
      const Tensor dx = d.mm(w), most = bound(d.abs().mm(w.abs()), M);
      expect_within(x.grad(), dx, narrow ? most + dx.abs() * std::pow(2.0, -8) : most, "dx " + what);
      expect_within(p.weight.grad(), d.t().mm(a), bound(d.abs().t().mm(a.abs()), N), "dweight " + what);
      expect_within(p.bias.grad(), dy.to(torch::kFloat64).sum(0), bound(dy.to(torch::kFloat64).abs().sum(0), N),
                    "dbias " + what);
    }
}

std::vector<Tensor> outcome(const Projection& p, const Tensor& from, const Tensor& dy) {
  const Tensor x = from.detach().clone().requires_grad_();
  std::vector<Tensor> inputs{x, p.weight};
  if (p.gamma.defined()) inputs.push_back(p.gamma);
  const Tensor y = linear(x, p);
  std::vector<Tensor> out = torch::autograd::grad({y}, inputs, {dy});
  out.push_back(y.detach());
  return out;
}

TEST(Bfloat16Linear, NoBitDependsOnThreadsNorARowOnOthers) {
  const int64_t N = 203, K = 1601, M = 131, threads = at::get_num_threads();
  const Projection p = projection(M, K);
  const Tensor x = drawn({N, K}, 1), dy = drawn({N, M}, 4);
  at::set_num_threads(1);
  const auto one = outcome(p, x, dy);
  at::set_num_threads(2);
  const auto two = outcome(p, x, dy);
  at::set_num_threads(static_cast<int>(threads));
  for (size_t i = 0; i < one.size(); ++i) EXPECT_TRUE(torch::equal(one[i], two[i])) << i;
  const auto some = outcome(p, x.slice(0, 50, 63), dy.slice(0, 50, 63));
  EXPECT_TRUE(torch::equal(some[0], one[0].slice(0, 50, 63)));
  EXPECT_TRUE(torch::equal(some.back(), one.back().slice(0, 50, 63)));
}

Projection with_parts(bool bfloat16) {
  const int64_t M = 90, K = 33;
  Projection p = projection(M, K);
  p.parts = {{"a", 0, 40}, {"b", 57, 33}};
  p.gamma = torch::tensor({1.7f, 0.4f}).requires_grad_();
  const Tensor u = drawn({2, K}, 5);
  p.u = u / u.norm(2, {1}, true);
  if (!bfloat16) p.bfloat16 = nullptr;
  return p;
}

TEST(Bfloat16Linear, LearnedNormsRideOnTheCopy) {
  const Projection p = with_parts(true);
  const Tensor x = drawn({71, 33}, 1), dy = drawn({71, 90}, 4);
  Projection plain = projection(90, 33);
  plain.weight = folded(p).detach().clone().requires_grad_();
  const auto found = outcome(p, x, dy), as_folded = outcome(plain, x, dy), exact = outcome(with_parts(false), x, dy);
  EXPECT_TRUE(torch::equal(found[0], as_folded[0])) << "dx";
  EXPECT_TRUE(torch::equal(found.back(), as_folded.back())) << "y";
  EXPECT_TRUE(torch::equal(found[1].slice(0, 40, 57), as_folded[1].slice(0, 40, 57))) << "dweight of no part";
  // Each of two operands is within 2^-9 of itself.
  for (size_t i = 0; i < found.size(); ++i)
    EXPECT_LE((found[i] - exact[i]).norm().item<double>(), std::pow(2.0, -8) * exact[i].norm().item<double>()) << i;
}

TEST(Bfloat16Copy, IsKeptUntilTheWeightIsAnother) {
  const torch::NoGradGuard no_grad;
  Bfloat16Copy copy;
  const Tensor weight = drawn({66, 9}, 2), scale = torch::ones({66});
  const auto first = copy.for_output(weight, {}), back = copy.for_gradient(weight, {});
  EXPECT_EQ(copy.for_output(weight, {}), first);
  EXPECT_EQ(copy.for_gradient(weight.detach(), {}), back);
  EXPECT_NE(copy.for_output(weight, scale), first) << "a scale";
  const auto scaled = copy.for_output(weight, scale);
  EXPECT_EQ(copy.for_output(weight, scale.clone()), scaled) << "the same scale in another place";
  EXPECT_NE(copy.for_output(weight, 2 * scale), scaled);
  EXPECT_NE(copy.for_output(weight.clone(), {}), first) << "another weight";
}

TEST(Bfloat16Copy, OfASinglePassIsKeptByNobody) {
  if (!takes_bfloat16_weights()) GTEST_SKIP() << "the processor has no products of bfloat16";
  const Tensor trained = drawn({7, 5}, 1).requires_grad_(), frozen = drawn({7, 5}, 1),
               x = bfloat16_operand(drawn({3, 5}, 2));
  Bfloat16Copy copy, of_frozen;
  const auto kept = copy.for_output(trained, {});
  EXPECT_EQ(kept.use_count(), 2);
  const Tensor y = bfloat16_product_with(x, *kept);
  const SinglePass single(true);
  EXPECT_EQ(copy.for_output(trained, {}), kept) << "one that is there is taken";
  EXPECT_EQ(kept.use_count(), 1) << "and let go";
  const auto output = copy.for_output(trained, {}), gradient = copy.for_gradient(trained, {});
  EXPECT_EQ(output.use_count(), 1);
  EXPECT_EQ(gradient.use_count(), 1);
  EXPECT_TRUE(torch::equal(bfloat16_product_with(x, *output), y));
  EXPECT_EQ(of_frozen.for_output(frozen, {}).use_count(), 2) << "the next update has the same weight";
  const SinglePass several(false);
  EXPECT_EQ(copy.for_output(trained, {}).use_count(), 2);
}

TEST(Bfloat16Linear, FollowsTheWeight) {
  const Projection p = projection(70, 21);
  const Tensor x = drawn({5, 21}, 1), dy = drawn({5, 70}, 4);
  const auto expect_follows = [&](const std::string& what, const auto& change) {
    const auto before = outcome(p, x, dy);
    {
      const torch::NoGradGuard no_grad;
      change();
    }
    Projection fresh = projection(70, 21);
    fresh.weight = p.weight.detach().clone().requires_grad_();
    const auto after = outcome(p, x, dy), wanted = outcome(fresh, x, dy);
    for (const size_t i : {size_t{0}, size_t{2}}) {
      EXPECT_FALSE(torch::equal(before[i], after[i])) << what;
      EXPECT_TRUE(torch::equal(after[i], wanted[i])) << what;
    }
  };
  Tensor weight = p.weight;
  const Tensor other = drawn({70, 21}, 9);
  expect_follows("in place", [&] { weight.mul_(1.5); });
  expect_follows("a view", [&] { weight.slice(0, 3, 50).add_(1); });
  expect_follows("a detached view", [&] { weight.detach().select(1, 2).zero_(); });
  expect_follows("copy_", [&] { weight.copy_(other); });
  expect_follows("a list of copies", [&] { at::_foreach_copy_({weight}, {2 * other}); });
  expect_follows("other memory", [&] { weight.set_data(other.clone()); });
}

// ---- decoders --------------------------------------------------------------------------------------------------------

DecoderConfig small() {
  DecoderConfig config;
  config.num_hidden_layers = 3;
  config.hidden_size = 40;
  config.num_attention_heads = 5;
  config.num_key_value_heads = 1;
  config.intermediate_size = 37;
  config.max_position_embeddings = 48;
  config.vocabulary = 101;
  return config;
}

struct Learnt {
  Tensor logprob;
  std::vector<Tensor> gradients;
};
Learnt learn(DecoderConfig config, const std::string& compute, int64_t rows = 5) {
  config.compute = compute;
  Decoder decoder(config, 3);
  const Tensor tokens = (torch::arange(rows * 31, torch::kInt64) * 7919 % 104729 % 101).view({rows, 31});
  const auto out = decoder->token_entropy(tokens, tokens.roll(-1, 1));
  (-out.logprob.mean()).backward();
  Learnt learnt{out.logprob.detach(), {}};
  for (const Tensor& parameter : decoder->parameters()) {
    EXPECT_EQ(parameter.scalar_type(), torch::kFloat32);
    if (parameter.grad().defined()) {
      EXPECT_EQ(parameter.grad().scalar_type(), torch::kFloat32);
    }
    learnt.gradients.push_back(parameter.grad());
  }
  return learnt;
}

TEST(Bfloat16Decoder, LearnsWhatTheFloatDecoderLearns) {
  for (const char* what : {"plain", "biases", "sigma", "tied, logits", "qk_norm, temperature"}) {
    DecoderConfig config = small();
    if (std::string(what) == "biases") config.attention.bias = "all", config.mlp_bias = true;
    if (std::string(what) == "sigma") config.sigma_reparam.layers = {"all"};
    if (std::string(what) == "tied, logits") config.tie_word_embeddings = true, config.fused_head = false;
    if (std::string(what) == "qk_norm, temperature")
      config.attention.qk_norm = true, config.attention.temperature = "row";
    const Learnt exact = learn(config, "float32"), found = learn(config, "bfloat16");
    // An operand is within 2^-9 of itself, and the errors of single numbers are independent: squares add. A block has some fifteen
    // operands in its forward pass (two of each of four layers, q, k, v, weights and result of attention), and as many more backwards.
    const auto most_of = [&](double operands) {
      return std::sqrt(operands * static_cast<double>(config.num_hidden_layers)) * std::pow(2.0, -8);
    };
    const double most = most_of(15);
    EXPECT_LE((found.logprob - exact.logprob).norm().item<double>(), most * exact.logprob.norm().item<double>())
        << what;
    EXPECT_FALSE(torch::equal(found.logprob, exact.logprob)) << what;
    double error = 0, size = 0;
    for (size_t i = 0; i < exact.gradients.size(); ++i) {
      ASSERT_EQ(found.gradients[i].defined(), exact.gradients[i].defined()) << what << " " << i;
      if (!exact.gradients[i].defined()) continue;
      error += (found.gradients[i] - exact.gradients[i]).square().sum().item<double>();
      size += exact.gradients[i].square().sum().item<double>();
    }
    EXPECT_LE(std::sqrt(error), most_of(30) * std::sqrt(size)) << what;
  }
}

TEST(Bfloat16Decoder, HasTheSameBitsForAnyNumberOfThreadsAndRecomputed) {
  DecoderConfig config = small(), blocks = small();
  blocks.recompute = "blocks";
  const int64_t threads = at::get_num_threads();
  at::set_num_threads(1);
  const Learnt one = learn(config, "bfloat16"), again = learn(blocks, "bfloat16");
  at::set_num_threads(2);
  const Learnt two = learn(config, "bfloat16");
  at::set_num_threads(static_cast<int>(threads));
  EXPECT_TRUE(torch::equal(learn(config, "bfloat16", 2).logprob, one.logprob.slice(0, 0, 2))) << "fewer rows";
  for (size_t i = 0; i < one.gradients.size(); ++i) {
    if (!one.gradients[i].defined()) continue;
    EXPECT_TRUE(torch::equal(one.gradients[i], two.gradients[i])) << "threads, gradient " << i;
    EXPECT_TRUE(torch::equal(one.gradients[i], again.gradients[i])) << "recomputed, gradient " << i;
  }
}

TEST(Bfloat16Decoder, DoubleIsLeftAlone) {
  DecoderConfig config = small();
  const Tensor tokens = torch::arange(20).view({2, 10});
  Decoder plain(config, 3);
  config.compute = "bfloat16";
  Decoder narrow(config, 3);
  plain->to(torch::kFloat64);
  narrow->to(torch::kFloat64);
  EXPECT_TRUE(torch::equal(plain(tokens), narrow(tokens)));
}

}  // namespace ISENTROPE_UNIT
}  // namespace isentrope::model
