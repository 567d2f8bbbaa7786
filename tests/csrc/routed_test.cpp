// routed: both ways to share tokens out by their definitions, the centres over an update, and what is refused.
#include "csrc/model/mixers/routed.h"

#include <gtest/gtest.h>

#include <cmath>
#include <set>

#include "csrc/model/decode.h"
#include "tests/csrc/message.h"
#include "tests/csrc/mixer_kinds.h"

namespace isentrope::model {
namespace ISENTROPE_UNIT {

using torch::Tensor;

DecoderConfig routed_config(const char* assign) {
  DecoderConfig c = small_mixers({"routed"});
  c.num_key_value_heads = 4;
  c.routed = {.assign = assign, .clusters = 3, .window = 6, .local_window = 5};
  return c;
}

const RoutedMixer& mixer_of(const Decoder& decoder, size_t layer = 0) {
  return dynamic_cast<const RoutedMixer&>(*decoder->layers()[layer].mixer);
}

Tensor some_rows(int64_t B, int64_t T, int64_t V) {
  return (torch::arange(B * T).square() * 3 + torch::arange(B * T) * 5).remainder(V).view({B, T});
}

double distance(const Tensor& a, const Tensor& b) { return (a - b).abs().max().item<double>(); }

// Rows of one head by its definition, in double: sight[t] the keys that t sees → out [T, D], entropy [T].
std::pair<Tensor, Tensor> attended(const Tensor& q, const Tensor& k, const Tensor& v,
                                   const std::vector<std::set<int64_t>>& sight) {
  Tensor out = torch::zeros_like(q), entropy = torch::zeros({q.size(0)}, torch::kFloat64);
  for (int64_t t = 0; t < q.size(0); ++t) {
    const std::vector<int64_t> seen(sight[t].begin(), sight[t].end());
    if (seen.empty()) continue;
    const Tensor index = torch::tensor(seen), p = (k.index_select(0, index).mv(q[t]) / std::sqrt(q.size(1))).softmax(0);
    out[t] = p.matmul(v.index_select(0, index));
    entropy[t] = -(p * p.log()).sum();
  }
  return {out, entropy};
}

TEST(Routed, HeadsAreWhatTheirDefinitionSays) {
  const torch::NoGradGuard no_grad;
  for (const char* assign : {"argmax", "balanced"}) {
    const DecoderConfig config = routed_config(assign);
    Decoder decoder = made(config);
    decoder->to(torch::kFloat64);
    const RoutedMixer& mixer = mixer_of(decoder);
    const int64_t B = 2, T = 31, H = 4, D = 8, C = 3, w = 6;
    torch::manual_seed(6);
    const Tensor x = torch::randn({B * T, config.hidden_size}, torch::kFloat64);
    const Tensor ones = torch::ones({T, D / 2}, torch::kFloat64);  // angles of 0
    AttentionRecord record;
    const Tensor y = mixer.forward(x, {}, {ones, torch::zeros_like(ones), nullptr, {}, &record, false, {}});
    const Tensor parts = x.matmul(mixer.qkv.weight.t()).view({B, T, 3, H, D});
    Tensor rows = torch::zeros({B, T, H, D}, torch::kFloat64), entropy = torch::zeros({B, H, T}, torch::kFloat64);
    for (int64_t b = 0; b < B; ++b)
      for (int64_t h = 0; h < H; ++h) {
        const Tensor q = parts[b].select(1, 0).select(1, h), k = parts[b].select(1, 1).select(1, h),
                     v = parts[b].select(1, 2).select(1, h);
        const bool local = h < 2;
        const Tensor near = local ? Tensor() : (q / q.norm(2, -1, true)).matmul(mixer.centroids[h - 2].t());  // [T, C]
        std::vector<std::set<int64_t>> sight(T);
        if (local || assign == std::string("argmax")) {
          for (int64_t t = 0; t < T; ++t)
            for (int64_t s = t; s >= 0 && sight[t].size() < static_cast<size_t>(local ? 5 : w); --s)
              if (local || near[s].argmax().item<int64_t>() == near[t].argmax().item<int64_t>()) sight[t].insert(s);
          const auto [out, own] = attended(q, k, v, sight);
          rows[b].select(1, h).copy_(out), entropy[b][h] = own;
          continue;
        }
        Tensor count = torch::zeros({T}, torch::kFloat64);
        for (int64_t c = 0; c < C; ++c) {
          const Tensor taken = std::get<1>(near.select(1, c).topk(w));
          for (auto& one : sight) one.clear();
          for (int64_t i = 0; i < w; ++i)
            for (int64_t j = 0; j < w; ++j)
              if (taken[j].item<int64_t>() <= taken[i].item<int64_t>())
                sight[taken[i].item<int64_t>()].insert(taken[j].item<int64_t>());
          const auto [out, own] = attended(q, k, v, sight);
          rows[b].select(1, h).add_(out), entropy[b][h] += own;
          count.index_add_(0, taken, torch::ones({w}, torch::kFloat64));
        }
        EXPECT_GT((count == 0).sum().item<int64_t>(), 0) << "a token that no cluster takes";
        EXPECT_GT((count > 1).sum().item<int64_t>(), 0) << "a token that several take";
        rows[b].select(1, h).div_(count.clamp_min(1).unsqueeze(1)), entropy[b][h] /= count.clamp_min(1);
      }
    const Tensor truth = rows.view({B * T, H * D}).matmul(mixer.o.weight.t());
    EXPECT_LE(distance(y, truth), 1e-12 * truth.abs().max().item<double>()) << assign;
    ASSERT_EQ(record.entropy.size(), 1u);
    EXPECT_LE(distance(record.entropy[0], entropy), 1e-12) << assign;
    EXPECT_EQ(record.window[0], 6);
  }
}

// The centres after an update are what their formula says, however it is cut; passes without gradients do not count.
TEST(Routed, CentresFollowTheQueriesOfAnUpdate) {
  for (const char* assign : {"argmax", "balanced"})
    for (const char* recompute : {"none", "blocks"}) {
      DecoderConfig config = routed_config(assign);
      config.recompute = recompute;
      const Tensor rows = some_rows(4, 20, config.vocabulary);
      std::vector<Tensor> moved;
      Tensor before;
      for (const int64_t cut : {4, 1}) {
        Decoder decoder = made(config);
        before = mixer_of(decoder).centroids.clone();
        {
          const torch::NoGradGuard no_grad;
          decoder->forward(rows);
        }
        EXPECT_EQ(mixer_of(decoder).seen().abs().max().item<double>(), 0);
        decoder->forward(rows).sum().backward();
        decoder->forget_seen();
        for (int64_t b = 0; b < 4; b += cut) decoder->forward(rows.slice(0, b, b + cut)).sum().backward();
        int64_t sums = 0;
        const Tensor seen = mixer_of(decoder).seen().clone();
        decoder->take_seen([&](Tensor&) { ++sums; });
        EXPECT_EQ(sums, 2);
        EXPECT_EQ(seen.slice(2, 8).sum().item<double>(), 4 * 20 * 2) << "each token of each routed head has one";
        const Tensor count = seen.slice(2, 8), mean = seen.slice(2, 0, 8) / count.clamp_min(1);
        const auto unit = [](const Tensor& x) { return x / x.norm(2, -1, true).clamp_min(1e-12); };
        const Tensor expected = torch::where(count > 0, unit(0.999 * before + 0.001 * unit(mean)), before);
        moved.push_back(mixer_of(decoder).centroids.clone());
        EXPECT_LE(distance(moved.back(), expected), 1e-6) << assign;
        EXPECT_GT(distance(moved.back(), before), 1e-5) << assign;
        EXPECT_FALSE(mixer_of(decoder).centroids.requires_grad());
      }
      EXPECT_LE(distance(moved[0], moved[1]), 1e-7) << assign << ": cut into four";
    }
}

TEST(Routed, ACentreWithoutTokensStays) {
  Decoder decoder = made(routed_config("argmax"));
  Tensor seen = mixer_of(decoder).seen();
  seen[1][2].fill_(1);
  const Tensor before = mixer_of(decoder).centroids.clone();
  decoder->take_seen([](Tensor&) {});
  const Tensor moved = (mixer_of(decoder).centroids - before).abs().amax(2);
  EXPECT_GT(moved[1][2].item<double>(), 0);
  EXPECT_EQ(moved.sum().item<double>(), moved[1][2].item<double>());
}

TEST(Routed, BalancedClustersNeitherDecodeNorPack) {
  Decoder decoder = made(routed_config("balanced"));
  const std::string decodes =
      "decoder: routed.assign is balanced, where the tokens that a cluster takes depend on later ones, so that none "
      "can be "
      "drawn before them; take argmax";
  EXPECT_NE(message([&] { make_decode_model(decoder); }).find(decodes), std::string::npos);
  EXPECT_NE(message([&] { make_aten_decode_model(decoder)->session(1, 1); }).find(decodes), std::string::npos);
  const Tensor position = torch::tensor({{0, 1, 2, 0, 1}});
  EXPECT_NE(message([&] { decoder->forward(some_rows(1, 5, 29), nullptr, position); }).find("these rows hold several"),
            std::string::npos);
  EXPECT_EQ(undecodable_layer(routed_config("balanced")), 0);
  EXPECT_EQ(undecodable_layer(routed_config("argmax")), -1);
}

TEST(Routed, RefusesWhatItHasNot) {
  const auto problem = [](auto change) {
    DecoderConfig config = routed_config("argmax");
    change(config);
    return config.problem();
  };
  EXPECT_EQ(problem([](DecoderConfig&) {}), "");
  EXPECT_EQ(
      problem([](DecoderConfig& c) { c.num_key_value_heads = 2; }),
      "num_key_value_heads: 2; heads of kind routed have keys and values of their own: write num_attention_heads (4)");
  EXPECT_EQ(problem([](DecoderConfig& c) { c.attention.qk_norm = true; }),
            "attention.qk_norm: layers of kind routed have none, and layer 0 is one; leave it at false");
  EXPECT_EQ(problem([](DecoderConfig& c) { c.num_attention_heads = c.num_key_value_heads = 1; }),
            "num_attention_heads: 1; half of the heads of a layer of kind routed are routed, wanted at least 2");
}

}  // namespace ISENTROPE_UNIT
}  // namespace isentrope::model
