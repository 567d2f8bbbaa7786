// What mixers with states tell of their weights and states, by the definitions, of rows with padding, packed rows and recomputed blocks.
#include "csrc/model/mixers/state_record.h"

#include <gtest/gtest.h>

#include <cmath>

#include "csrc/model/mixers/recurrence.h"
#include "tests/csrc/mixer_kinds.h"

namespace isentrope::model {
namespace ISENTROPE_UNIT {

using torch::Tensor;

double distance(const Tensor& a, const Tensor& b) { return (a - b).abs().max().item<double>(); }

TEST(StateRecord, RankIsThatOfIsotropicDirections) {
  const auto options = torch::dtype(torch::kFloat64);
  const Tensor three = torch::zeros({5, 7}, options);
  for (int64_t i = 0; i < 3; ++i) three[i][6 - i] = 2;
  EXPECT_NEAR(effective_rank(three).item<double>(), 3, 1e-12);
  const Tensor uneven = torch::diag(torch::tensor({3., 1.}, options));
  EXPECT_NEAR(effective_rank(uneven).item<double>(), std::exp(-0.75 * std::log(0.75) - 0.25 * std::log(0.25)), 1e-12);
  const Tensor both = torch::stack({three, torch::zeros_like(three)});
  EXPECT_EQ(effective_rank(both)[1].item<double>(), 0);
}

// Against all weights, a row at a time; more rows than a block has, decays, shared keys, a prefix, packed.
TEST(StateRecord, EntropyIsThatOfTheWeightsOfARow) {
  torch::manual_seed(7);
  const auto options = torch::dtype(torch::kFloat64);
  const int64_t T = 150, H = 4, G = 2, F = 3;
  const Tensor q = torch::rand({2 * T, H, F}, options), k = torch::rand({2 * T, G, F}, options);
  const Tensor decay = -torch::rand({2 * T, G}, options), e = torch::rand({2 * T, G, F}, options);
  e.slice(0, 40).zero_();
  const Tensor position = torch::cat({torch::arange(T), torch::arange(100), torch::arange(50)}).view({2, T});
  const Packing packing(position);
  for (const bool decays : {false, true})
    for (const bool prefix : {false, true})
      for (const bool packed : {false, true}) {
        const Tensor found =
            weight_entropy(q, k, decays ? decay : Tensor(), prefix ? e : Tensor(), T, packed ? &packing : nullptr);
        ASSERT_EQ(found.sizes(), at::IntArrayRef({2, H, T}));
        for (const int64_t n : {0, 1, 130, 149, 150, 249, 250, 260, 299})
          for (int64_t h = 0; h < H; ++h) {
            const int64_t t = packed ? position.view({-1})[n].item<int64_t>() : n % T;
            const int64_t length = packed && n >= T ? (n < T + 100 ? 100 : 50) : T;
            std::vector<double> w;
            double sum = 0, past = 0;
            for (int64_t s = n; s >= n - t; --s) {
              w.push_back(q[n][h].dot(k[s][h / 2]).item<double>() * std::exp(past));
              if (decays) past += decay[s][h / 2].item<double>();
            }
            for (int64_t s = n - t; prefix && s < n - t + length; ++s)
              w.push_back(q[n][h].dot(e[s][h / 2]).item<double>());
            for (const double x : w) sum += x;
            double entropy = 0;
            for (const double x : w)
              if (x > 0) entropy -= x / sum * std::log(x / sum);
            EXPECT_NEAR(found[n / T][h][n % T].item<double>(), entropy, 1e-10) << n << ", head " << h;
          }
      }
}

// The states are those behind the last token that is no padding, as of the sequence alone; rows that are packed or recomputed say the same.
TEST(StateRecord, IsThatOfEachSequenceAlone) {
  for (const auto& [name, config] : mixer_cases()) {
    if (mixer_shape(config, 0).state == 0 || config.mixers.size() > 1 || config.mixers[0] == "natsl" ||
        config.mixers[0] == "estimated")
      continue;
    Decoder decoder = made(config);
    decoder->to(torch::kFloat64);
    const Tensor tokens = torch::arange(2 * 30).square().remainder(config.vocabulary).view({2, 30});
    const auto told = [&](const Decoder& of, const Tensor& some, const Tensor& real, const Places& places = {}) {
      AttentionRecord record;
      record.with_states = true;
      record.real = real;
      Decoder(of)->forward(some, &record, places);
      return record.states;
    };
    std::vector<std::vector<StateRecord>> alone;
    for (const int64_t length : {30, 17}) {
      const Tensor row = tokens.slice(0, alone.size(), alone.size() + 1).slice(1, 0, length);
      alone.push_back(told(decoder, row, {}));
    }
    const Tensor real = torch::arange(30).unsqueeze(0) < torch::tensor({30, 17}).unsqueeze(1);
    const auto together = told(decoder, tokens, real);
    ASSERT_EQ(together.size(), 2u) << name;
    EXPECT_EQ(together[1].layer, 1) << name;
    for (size_t i = 0; i < 2; ++i) {
      EXPECT_LE(distance(together[i].rank[1], alone[1][i].rank[0]), 1e-9) << name;
      EXPECT_LE(distance(together[i].rank[0], alone[0][i].rank[0]), 1e-9) << name;
      EXPECT_TRUE(together[i].there.all().item<bool>()) << name;
      EXPECT_EQ(together[i].entropy.defined(), config.mixers[0].ends_with("linear")) << name;
      if (!together[i].entropy.defined()) continue;
      EXPECT_LE(distance(together[i].entropy[1].slice(1, 0, 17), alone[1][i].entropy[0]), 1e-9) << name;
      EXPECT_GT(together[i].entropy.max().item<double>(), 0.1) << name;
    }
    const Tensor row = torch::cat({tokens[0], tokens[1].slice(0, 0, 17), torch::zeros({3}, torch::kLong)}).unsqueeze(0);
    const Tensor position = torch::cat({torch::arange(30), torch::arange(17), torch::arange(3)}).unsqueeze(0);
    const auto packed = told(decoder, row, torch::arange(50).unsqueeze(0) < 47, {position});
    DecoderConfig again = config;
    again.recompute = "blocks";
    Decoder recomputed = made(again);
    recomputed->to(torch::kFloat64);
    const auto blocks = told(recomputed, tokens, real);
    ASSERT_EQ(blocks.size(), 2u) << name;
    for (size_t i = 0; i < 2; ++i) {
      EXPECT_LE(distance(packed[i].rank[1], alone[1][i].rank[0]), 1e-9) << name;
      EXPECT_FALSE(packed[i].there[2].item<bool>()) << name << ": a sequence of padding";
      EXPECT_TRUE(torch::equal(blocks[i].rank, together[i].rank)) << name;
      if (!packed[i].entropy.defined()) continue;
      EXPECT_LE(distance(packed[i].entropy[0].slice(1, 30, 47), alone[1][i].entropy[0]), 1e-9) << name;
    }
  }
}

}  // namespace ISENTROPE_UNIT
}  // namespace isentrope::model
