// model.recompute: blocks gives the bits of none, whatever a block is made of, and runs each block twice.
#include "csrc/model/recompute.h"

#include <gtest/gtest.h>
#include <torch/autograd.h>
#include <torch/types.h>

#include <functional>
#include <string>
#include <vector>

#include "csrc/model/bfloat16_training.h"
#include "csrc/model/decoder.h"
#include "csrc/model/layers.h"

namespace isentrope::model {
namespace ISENTROPE_UNIT {

using torch::Tensor;

DecoderConfig small() {
  DecoderConfig config;
  config.num_hidden_layers = 3;
  config.hidden_size = 32;
  config.num_attention_heads = 4;
  config.num_key_value_heads = 2;
  config.intermediate_size = 37;
  config.max_position_embeddings = 48;
  config.vocabulary = 29;
  return config;
}

struct Outcome {
  Tensor loss;
  std::vector<Tensor> gradients;
};

// A loss of log-probabilities and, with records, of the entropy of attention.
Outcome learn(DecoderConfig config, const std::string& recompute, bool records, bool packed) {
  config.recompute = recompute;
  Decoder decoder(config, 3);
  const Tensor tokens = (torch::arange(5 * 31, torch::kInt64) * 7919 % 104729 % 29).view({5, 31});
  const Tensor target = tokens.roll(-1, 1);
  const Tensor position = packed ? torch::arange(31).remainder(11).expand({5, 31}).contiguous() : Tensor();
  AttentionRecord record;
  record.with_bound = records;
  const auto out = decoder->token_entropy(tokens, target, 1.3, records ? &record : nullptr, position);
  Tensor loss = -out.logprob.mean() + 0.1 * out.entropy.mean();
  if (records) {
    EXPECT_EQ(record.entropy.size(), 3u);
    EXPECT_EQ(record.max_logit.size(), 3u);
    EXPECT_EQ(record.bound.size(), 3u);
    EXPECT_FALSE(record.max_logit[0].requires_grad());
    for (const Tensor& entropy : record.entropy) loss = loss + 0.3 * entropy.square().mean();
  }
  loss.backward();
  Outcome outcome{loss.detach(), {}};
  for (const Tensor& parameter : decoder->parameters()) outcome.gradients.push_back(parameter.grad());
  return outcome;
}

TEST(Recompute, BlocksHaveTheBitsOfNone) {
  const std::vector<std::pair<std::string, std::function<void(DecoderConfig&)>>> models{
      {"plain", [](auto&) {}},
      {"post", [](auto& c) { c.norm = "post"; }},
      {"no norm", [](auto& c) { c.norm = "none"; }},
      {"sigma", [](auto& c) { c.sigma_reparam.layers = {"all"}; }},
      {"qk_norm, row temperature, window",
       [](auto& c) {
         c.attention.qk_norm = true;
         c.attention.temperature = "row";
         c.attention.window = 7;
       }},
      {"tied, logits", [](auto& c) {
         c.tie_word_embeddings = true;
         c.fused_head = false;
       }}};
  for (const auto& [what, changed] : models)
    for (const bool records : {false, true})
      for (const bool packed : {false, true}) {
        DecoderConfig config = small();
        changed(config);
        const Outcome none = learn(config, "none", records, packed), blocks = learn(config, "blocks", records, packed);
        EXPECT_TRUE(torch::equal(none.loss, blocks.loss)) << what;
        for (size_t i = 0; i < none.gradients.size(); ++i) {
          ASSERT_EQ(none.gradients[i].defined(), blocks.gradients[i].defined()) << what << " " << i;
          if (none.gradients[i].defined())
            EXPECT_TRUE(torch::equal(none.gradients[i], blocks.gradients[i])) << what << ", gradient " << i;
        }
      }
}

TEST(Recompute, ABlockRunsAgainInBackwardAndOnlyThere) {
  int runs = 0;
  const Tensor weight = torch::ones({3}, torch::requires_grad()), x = torch::arange(3.0).requires_grad_();
  const auto block = [&](const Tensors& inputs) -> Tensors {
    ++runs;
    EXPECT_FALSE(inputs[1].defined());
    return {inputs[0] * weight, Tensor(), inputs[0].square() * weight};
  };
  const Tensors out = recomputed(block, {x, Tensor()}, {weight});
  ASSERT_EQ(out.size(), 3u);
  EXPECT_FALSE(out[1].defined());
  EXPECT_EQ(runs, 1);
  (out[0].sum() + out[2].sum()).backward();
  EXPECT_EQ(runs, 2);
  EXPECT_TRUE(torch::equal(weight.grad(), torch::tensor({0.0f, 2.0f, 6.0f})));
  EXPECT_TRUE(torch::equal(x.grad(), torch::tensor({1.0f, 3.0f, 5.0f})));
  const torch::NoGradGuard no_grad;
  EXPECT_FALSE(recomputed(block, {x, Tensor()}, {weight})[0].requires_grad());
  EXPECT_EQ(runs, 3) << "without gradients there is nothing to keep";
}

// ---- inputs of products, made again ----------------------------------------------------------------------------------

struct Made {
  Tensor x;
  Origin origin;
};

// x of a product behind a norm (with and without a sum), behind the gate, and behind attention. N rows, K columns.
std::vector<Made> made(int64_t N, int64_t K, torch::ScalarType type) {
  auto generator = at::detail::createCPUGenerator(5);
  const auto draw = [&](at::IntArrayRef sizes) {
    return at::randn(sizes, generator, torch::TensorOptions().dtype(type)).requires_grad_();
  };
  const Tensor x = draw({N, K}), delta = draw({N, K}), weight = draw({K});
  const Residual summed = residual(x, delta, weight, 1e-5, false), alone = residual(x, {}, weight, 1e-5, true);
  const Tensor gate_up = draw({N, 2 * K}), heads = K % 2 == 0 ? draw({1, 2, N, K / 2}) : draw({1, K, N, 1});
  return {{summed.branch, summed.origin},
          {alone.branch, alone.origin},
          {swiglu(gate_up), swiglu_origin(gate_up)},
          {token_rows(heads), token_rows_origin(heads)}};
}

TEST(Origin, MakesTheSameBitsAgain) {
  for (const torch::ScalarType type : {torch::kFloat32, torch::kFloat64})
    for (const int64_t N : {0, 1, 33, 131})
      for (const int64_t K : {8, 31, 97})
        for (const Made& one : made(N, K, type)) {
          ASSERT_NE(one.origin.made, Origin::kElsewhere);
          const Tensor again = one.origin.again();
          EXPECT_TRUE(torch::equal(again, one.x.detach())) << one.origin.made << ", " << N << " × " << K;
          EXPECT_FALSE(again.requires_grad());
        }
}

TEST(Origin, AProductKeepsItInThePlaceOfItsInput) {
  constexpr int64_t kRows = 33, kColumns = 30;
  for (const bool narrow : {false, true})
    for (const bool lora : {false, true})
      for (size_t i = 0; i < 4; ++i) {
        std::vector<std::vector<Tensor>> gradients;
        for (const bool again : {false, true}) {
          Projection p{.name = "p",
                       .weight = torch::ones({7, kColumns}).cumsum(1).div_(kColumns),
                       .bias = {},
                       .parts = {},
                       .gamma = {},
                       .u = {}};
          p.weight.requires_grad_(!lora);
          if (narrow) p.bfloat16 = std::make_shared<Bfloat16Copy>();
          if (lora) {
            p.lora = {{"p", 0, 7}};
            p.lora_a = torch::linspace(-1, 1, 2 * kColumns).view({2, kColumns}).requires_grad_();
            p.lora_b = torch::linspace(-1, 1, 14).view({7, 2}).requires_grad_();
            p.lora_scale = 0.5;
          }
          Made one = made(kRows, kColumns, torch::kFloat32)[i];
          one.x.retain_grad();
          const Tensor y = again ? linear(one.x, p, one.origin) : linear(one.x, p);
          const Tensor x = one.x;
          one.origin = {};
          one.x = Tensor();
          // Held by x here, and by the product's node where it keeps it; a rounded operand is another tensor.
          const auto kept = x.use_count();
          y.backward(torch::linspace(-2, 2, y.numel()).view(y.sizes()));
          const auto left = x.use_count();
          if (again) EXPECT_EQ(kept, left) << i << ": the product's node keeps its input" << narrow << lora;
          if (!again && !narrow) EXPECT_GT(kept, left) << "this test sees nothing" << narrow << lora;
          gradients.push_back({x.grad(), lora ? p.lora_a.grad() : p.weight.grad()});
          if (lora) gradients.back().push_back(p.lora_b.grad());
        }
        for (size_t g = 0; g < gradients[0].size(); ++g)
          EXPECT_TRUE(torch::equal(gradients[0][g], gradients[1][g])) << i << ", gradient " << g << narrow << lora;
      }
}

}  // namespace ISENTROPE_UNIT
}  // namespace isentrope::model
