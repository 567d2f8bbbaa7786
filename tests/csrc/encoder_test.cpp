// Models whose tokens see those behind them: against softmax attention written out, what padding may change, and what they refuse.
#include <gtest/gtest.h>

#include <cmath>

#include "csrc/model/decode.h"
#include "csrc/model/layers.h"
#include "tests/csrc/message.h"
#include "tests/csrc/mixer_kinds.h"

namespace isentrope::model {
namespace ISENTROPE_UNIT {

using torch::Tensor;

DecoderConfig encoder(const std::string& kind, int64_t branching = 3) {
  DecoderConfig c = small_mixers({kind});
  c.causal = false;
  c.hierarchical.branching = branching;
  return c;
}

Tensor tokens_of(int64_t B, int64_t T) { return torch::randint(0, 29, {B, T}, torch::kInt64); }

TEST(Encoder, RowsAreTheSoftmaxOverAllTokens) {
  torch::manual_seed(1);
  DecoderConfig c = encoder("softmax");
  c.num_hidden_layers = 1;
  Decoder model = made(c);
  const torch::NoGradGuard no_grad;
  const int64_t T = 13, H = 4, G = 2, D = 8;
  const Tensor tokens = tokens_of(2, T);
  AttentionRecord record;
  model->hidden(tokens, &record);
  const Tensor x = torch::embedding(model->embedding(), tokens).flatten(0, 1);
  const LayerWeights& layer = model->layers()[0];
  const Tensor normed = x * torch::rsqrt(x.square().mean(-1, true) + c.rms_norm_eps);
  const auto [q, k, v] = rotary_split(torch::linear(normed, layer.mixer->qkv.weight),
                                      model->cosine().slice(0, 0, T).to(x), model->sine().slice(0, 0, T).to(x), H, G);
  const Tensor logits = torch::matmul(q, k.repeat_interleave(H / G, 1).mT()).to(torch::kFloat64) / std::sqrt(double{D});
  const Tensor p = logits.softmax(-1), entropy = -(p * logits.log_softmax(-1)).sum(-1);
  EXPECT_LT((record.entropy[0] - entropy).abs().max().item<double>(), 1e-5);
  EXPECT_FALSE(record.causal);
  EXPECT_TRUE(torch::equal(keys_in_sight(record, T, torch::kInt64), torch::full({1, T}, T, torch::kInt64)));
}

TEST(Encoder, ATokenSeesThoseBehindIt) {
  torch::manual_seed(2);
  for (const char* kind : {"softmax", "hierarchical"}) {
    Decoder model = made(encoder(kind));
    const torch::NoGradGuard no_grad;
    Tensor tokens = tokens_of(1, 11);
    const Tensor before = model->forward(tokens);
    tokens[0][10] = (tokens[0][10] + 1) % 29;
    EXPECT_GT((model->forward(tokens) - before)[0][0].abs().max().item<double>(), 1e-3) << kind;
  }
}

TEST(Encoder, PaddingChangesNothing) {
  torch::manual_seed(3);
  for (const char* kind : {"softmax", "hierarchical"})
    for (const char* recompute : {"none", "blocks"}) {
      DecoderConfig c = encoder(kind);
      c.recompute = recompute;
      c.num_labels = 2;
      Decoder model = made(c);
      const Tensor tokens = tokens_of(2, 17), lengths = torch::tensor({9, 17});
      AttentionRecord record;
      const Tensor together = model->label_logits(tokens, &record, lengths),
                   alone = model->label_logits(tokens.slice(0, 0, 1).slice(1, 0, 9));
      EXPECT_LT((together[0].slice(0, 0, 9) - alone[0]).abs().max().item<double>(), 2e-5) << kind << " " << recompute;
      EXPECT_TRUE(torch::equal(keys_in_sight(record, 17, torch::kInt64).select(1, 0), lengths));
      together.sum().backward();
      for (const auto& one : model->named_parameters())
        if (one.value().grad().defined())
          EXPECT_TRUE(torch::isfinite(one.value().grad()).all().item<bool>()) << one.key();
    }
}

TEST(Encoder, OneFamilyOfAllTokensIsTheSoftmax) {
  torch::manual_seed(4);
  const Tensor tokens = tokens_of(2, 31);
  const torch::NoGradGuard no_grad;
  AttentionRecord tree, rows;
  const Tensor a = made(encoder("hierarchical", 31))->forward(tokens, &tree),
               b = made(encoder("softmax"))->forward(tokens, &rows);
  EXPECT_LT((a - b).abs().max().item<double>(), 1e-4 * b.abs().max().item<double>());
  for (int64_t i = 0; i < 2; ++i) {
    EXPECT_LT((tree.entropy[i] - rows.entropy[i]).abs().max().item<double>(), 1e-4);
    EXPECT_LT((tree.max_logit[i] - rows.max_logit[i]).abs().max().item<double>(), 1e-3);
  }
  const Tensor c = made(encoder("hierarchical", 4))->forward(tokens);
  EXPECT_GT((c - b).abs().max().item<double>(), 1e-3);
}

TEST(Encoder, RefusesWhatDrawsTokens) {
  Decoder model = made(encoder("softmax"));
  expect_all(message([&] { make_decode_model(model); }), {"the model is an encoder"});
  expect_all(message([&] { make_aten_decode_model(model); }), {"the model is an encoder"});
  expect_all(message([&] { model->label_logits(tokens_of(1, 3)); }), {"model.num_labels is 0"});
  const auto problem = [](auto change) {
    DecoderConfig c = encoder("hierarchical");
    change(c);
    return c.problem();
  };
  EXPECT_EQ(problem([](DecoderConfig&) {}), "");
  for (const auto& [wanted, found] : std::vector<std::pair<std::string, std::string>>{
           {"kind hierarchical pools tokens that stand behind", problem([](auto& c) { c.causal = true; })},
           {"mixers: a layer of kind linear", problem([](auto& c) {
              c.mixers = {"softmax", "linear"};
            })},
           {"attention.window", problem([](auto& c) { c.attention.window = 4; })},
           {"attention.softcap", problem([](auto& c) { c.attention.softcap = 4; })},
           {"attention.temperature", problem([](auto& c) { c.attention.temperature = "head"; })},
           {"attention.qk_clip", problem([](auto& c) { c.attention.qk_clip = 9; })},
           {"num_labels: 2", problem([](auto& c) { c.causal = true, c.mixers = {"softmax"}, c.num_labels = 2; })}})
    EXPECT_NE(found.find(wanted), std::string::npos) << wanted << ": " << found;
}

}  // namespace ISENTROPE_UNIT
}  // namespace isentrope::model
