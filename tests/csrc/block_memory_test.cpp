// What a block keeps for the backward pass, in the memory that its tensors have; and that this is what the plan says.
#include <gtest/gtest.h>
#include <torch/types.h>

#include <string>
#include <vector>

#include "csrc/model/bfloat16_linear.h"
#include "csrc/model/decoder.h"
#include "csrc/train/block_cache.h"
#include "csrc/train/plan.h"

namespace isentrope::train {
namespace ISENTROPE_UNIT {

constexpr int64_t kRows = 64, kLength = 128, C = 128, M = 256, kHeads = 4, kKeyHeads = 2, D = C / kHeads;
constexpr double kTokens = kRows * kLength;

TrainConfig some_config(int64_t layers, const std::string& activation, const std::string& compute,
                        const std::string& recompute) {
  TrainConfig config;
  config.tokenizer.kind = "bytes";
  config.model.num_hidden_layers = layers;
  config.model.hidden_size = C;
  config.model.num_attention_heads = kHeads;
  config.model.num_key_value_heads = kKeyHeads;
  config.model.intermediate_size = M;
  config.model.max_position_embeddings = kLength;
  config.model.activation = activation;
  config.model.compute = compute;
  config.model.recompute = recompute;
  PhaseConfig phase;
  phase.name = "sft";
  phase.batch.sequences = kRows;
  config.phases = {phase};
  return config;
}

// Bytes of tensors of 1 MB or more that a forward pass of the decoder leaves behind: all but some numbers a row.
double left_by(model::DecoderConfig config, bool lora) {
  config.vocabulary = 259;
  if (lora) config.lora = model::LoraConfig{.from = {}, .rank = 4};
  model::Decoder decoder(config, 1);
  const torch::Tensor tokens = torch::arange(kRows * kLength).remainder(256).view({kRows, kLength});
  const TensorMemory own(true);
  const auto before = static_cast<double>(BlockCache::of_process().used());
  const auto out = decoder->token_entropy(tokens, tokens);
  return static_cast<double>(BlockCache::of_process().used()) - before;
}

// Of one of the blocks in the middle, a token.
double kept_of_block(const std::string& activation, const std::string& compute, const std::string& recompute,
                     bool lora) {
  const auto left = [&](int64_t layers) {
    return left_by(some_config(layers, activation, compute, recompute).model, lora);
  };
  return (left(6) - left(4)) / 2 / kTokens;
}

// What the plan says of the same.
double planned(const std::string& activation, const std::string& compute, const std::string& recompute) {
  const auto activations = [&](int64_t layers) {
    return memory_plan(some_config(layers, activation, compute, recompute),
                       {{.phase = "sft", .splits = {}, .lengths = {.longest = kLength, .mean = kLength, .prompt = 1}}})
        .activations;
  };
  return (activations(6) - activations(4)) / 2 / kTokens;
}

TEST(BlockMemory, ABlockKeepsWhatItsBackwardPassCannotMakeAgain) {
  const double sums = 2 * C, attention = 2 * (kHeads + kKeyHeads) * D;  // q, k, v and the result
  for (const bool lora : {false, true}) {
    const double terms = lora ? 4 * 9 : 0;  // x Aᵀ of seven layers is below 1 MB, unless it is joined
    const auto expect = [&](double found, double wanted, const std::string& what) {
      EXPECT_GE(found, 4 * wanted) << what << (lora ? ", lora" : "");
      EXPECT_LE(found, 4 * (wanted + terms)) << what << (lora ? ", lora" : "");
    };
    expect(kept_of_block("swiglu", "float32", "none", lora), sums + attention + 2 * M, "gate and up");
    expect(kept_of_block("gelu", "float32", "none", lora), sums + attention + 2 * M, "gelu");
    expect(kept_of_block("crrelu", "float32", "none", lora), sums + attention + 2 * M, "crrelu");
    expect(kept_of_block("relu", "float32", "none", lora), sums + attention + M, "relu");
    expect(kept_of_block("swiglu", "float32", "blocks", lora), sums, "the inputs of blocks");
    if (model::takes_bfloat16_weights())
      expect(kept_of_block("swiglu", "bfloat16", "none", lora), sums + attention / 2 + 2 * M, "bfloat16");
  }
}

TEST(BlockMemory, ThePlanSaysTheSame) {
  for (const char* activation : {"swiglu", "gelu", "crrelu", "relu"})
    for (const char* compute : {"float32", "bfloat16"})
      for (const char* recompute : {"none", "blocks"}) {
        if (std::string(compute) == "bfloat16" && !model::takes_bfloat16_weights()) continue;
        const double kept = kept_of_block(activation, compute, recompute, false);
        EXPECT_NEAR(planned(activation, compute, recompute), kept, 0.03 * kept)
            << activation << ", " << compute << ", " << recompute;
      }
}

}  // namespace ISENTROPE_UNIT
}  // namespace isentrope::train
