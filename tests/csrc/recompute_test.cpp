// model.recompute: blocks gives the bits of none, whatever a block is made of, and runs each block twice.
#include "csrc/model/recompute.h"

#include <gtest/gtest.h>
#include <torch/autograd.h>
#include <torch/types.h>

#include <functional>
#include <string>
#include <vector>

#include "csrc/model/decoder.h"

namespace isentrope::model {
namespace {

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

}  // namespace
}  // namespace isentrope::model
