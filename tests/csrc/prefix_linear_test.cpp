// prefix_linear: its formula, what sees what, decoding, packed rows, and what is refused.
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include <cmath>

#include "csrc/model/decode.h"
#include "tests/csrc/message.h"
#include "tests/csrc/mixer_kinds.h"

namespace isentrope::model {
namespace ISENTROPE_UNIT {

using torch::Tensor;

std::vector<std::pair<std::string, DecoderConfig>> prefix_cases() {
  std::vector<std::pair<std::string, DecoderConfig>> found;
  for (const auto& one : mixer_cases())
    if (any_mixer(one.second, &MixerShape::reads_prefix)) found.push_back(one);
  return found;
}

Tensor some_row(int64_t T, int64_t V, int64_t from = 1) {
  const Tensor i = torch::arange(T);
  return ((i * i * 3 + i * 5 + from * 7) % V).unsqueeze(0);
}

Tensor first_of(int64_t count, int64_t T) { return (torch::arange(T) < count).unsqueeze(0); }

double distance(const Tensor& a, const Tensor& b) { return (a - b).abs().max().item<double>(); }

// One layer's mixer by two loops over the tokens, in double.
TEST(PrefixLinear, IsWhatItsFormulaSays) {
  DecoderConfig config = small_mixers({"prefix_linear"});
  Decoder decoder = made(config);
  decoder->to(torch::kFloat64);
  const torch::NoGradGuard no_grad;
  const Mixer& mixer = *decoder->layers()[0].mixer;
  const int64_t T = 17, M = 6, H = 4, G = 2, D = 8, C = config.hidden_size;
  torch::manual_seed(5);
  const Tensor x = torch::randn({T, C}, torch::kFloat64), table = torch::zeros({T, D / 2}, torch::kFloat64);
  const Tensor prefix = first_of(M, T)[0];
  const Tensor y = mixer.forward(x, {}, {table, table, nullptr, prefix, nullptr, false, {}});
  const auto weight = [&](const char* part) {
    for (const auto& [name, tensor] : mixer.matrices([](const Projection& p) { return p.weight; }))
      if (name == std::string("self_attn.") + part + "_proj.weight") return tensor;
    ADD_FAILURE() << part;
    return Tensor();
  };
  const auto heads = [&](const char* part, int64_t count) { return x.matmul(weight(part).t()).view({T, count, D}); };
  const Tensor q = heads("q", H), k = heads("k", G), v = heads("v", G), e = heads("prefix_k", G),
               w = heads("prefix_v", G);
  const auto like = [&](const Tensor& a, const Tensor& b) {  // taylor2: 1 + s + s²/2
    const double s = a.dot(b).item<double>() / std::sqrt(static_cast<double>(D));
    return 1 + s + s * s / 2;
  };
  Tensor rows = torch::zeros({T, H, D}, torch::kFloat64);
  for (int64_t t = 0; t < T; ++t)
    for (int64_t h = 0; h < H; ++h) {
      double total = 0;
      const int64_t g = h / (H / G);
      for (int64_t j = 0; j < std::max(M, t + 1); ++j) {
        const double before = j < M ? like(q[t][h], e[j][g]) : 0, after = j <= t ? like(q[t][h], k[j][g]) : 0;
        rows[t][h] += before * w[j][g] + after * v[j][g];
        total += before + after;
      }
      rows[t][h] /= total;
    }
  const Tensor truth = rows.view({T, H * D}).matmul(weight("o").t());
  EXPECT_LE(distance(y, truth), 1e-12 * truth.abs().max().item<double>());
}

TEST(PrefixLinear, EveryTokenSeesThePrefixAndNoneWhatComesBehindIt) {
  for (const auto& [name, config] : prefix_cases()) {
    const torch::NoGradGuard no_grad;
    Decoder decoder = made(config);
    const int64_t T = 24, M = 9, V = config.vocabulary;
    const Tensor row = some_row(T, V);
    const auto logits = [&](const Tensor& tokens) {
      return decoder->forward(tokens, nullptr, {{}, first_of(M, T)})[0];
    };
    const auto changed = [&](int64_t place) {
      Tensor other = row.clone();
      other[0][place] = (other[0][place] + 1) % V;
      return (logits(other) - logits(row)).abs().amax(1);  // [T]
    };
    const Tensor last_of_prefix = changed(M - 1), behind = changed(M);
    EXPECT_GT(last_of_prefix.min().item<double>(), 0) << name;
    EXPECT_EQ(behind.slice(0, 0, M).max().item<double>(), 0) << name;
    EXPECT_GT(behind[M].item<double>(), 0) << name;
    // Without a prefix it is causal.
    EXPECT_TRUE(torch::equal(decoder->forward(row, nullptr, {{}, first_of(0, T)}), decoder->forward(row))) << name;
  }
}

Tensor decoded(const DecodeModel& model, const Tensor& row, int64_t prefix, int64_t V, int64_t history = 1) {
  const auto session = model.session(pages_of(row.size(1)), prefix, history);
  const int64_t table = session->pages().open();
  std::vector<Tensor> logits;
  for (int64_t begin = 0; begin < row.size(1); begin = begin == 0 ? prefix : begin + 1) {
    const int64_t end = begin == 0 ? prefix : begin + 1;
    session->pages().extend(table, end);
    std::vector<DecodeRow> rows;
    for (int64_t t = begin; t < end; ++t) rows.push_back({row[0][t].item<int64_t>(), t, table});
    const Logits out = session->step(rows, end - begin - 1, /*prefix=*/begin == 0);
    logits.push_back(torch::from_blob(const_cast<float*>(out.row(0)), {V}).clone());
  }
  return torch::stack(logits).to(torch::kFloat64);
}

TEST(PrefixLinear, DecodesBehindAPrefixWhatTheForwardPassComputes) {
  for (const auto& [name, config] : prefix_cases()) {
    const torch::NoGradGuard no_grad;
    Decoder decoder = made(config), exact = made(config), rounded = made(config);
    exact->to(torch::kFloat64);
    for (const auto& weight : rounded->parameters()) weight.copy_(weight.to(torch::kBFloat16).to(torch::kFloat32));
    const int64_t T = 60, M = 21, V = config.vocabulary;
    const Tensor row = some_row(T, V);
    const auto forward = [&](Decoder& of) {
      return of->forward(row, nullptr, {{}, first_of(M, T)})[0].slice(0, M - 1).to(torch::kFloat64);
    };
    const Tensor truth = forward(exact);
    const double error = distance(forward(decoder), truth), of_weights = distance(forward(rounded), truth);
    for (const int64_t history : {1, 4}) {
      EXPECT_LE(distance(decoded(*make_decode_model(decoder), row, M, V, history), truth), 8 * error) << name;
      EXPECT_LE(distance(decoded(*make_aten_decode_model(decoder), row, M, V, history), truth), 8 * error) << name;
      EXPECT_LE(distance(decoded(*make_decode_model(decoder, true), row, M, V, history), truth), 4 * of_weights)
          << name;
    }
    EXPECT_GT(distance(decoder->forward(row)[0].slice(0, M - 1).to(torch::kFloat64), truth), 100 * error) << name;
  }
}

TEST(PrefixLinear, PackedRowsHavePrefixesOfTheirOwn) {
  for (const auto& [name, config] : prefix_cases()) {
    Decoder decoder = made(config);
    decoder->to(torch::kFloat64);
    const std::vector<std::pair<int64_t, int64_t>> sequences{
        {5, 2}, {1, 1}, {30, 13}, {2, 0}};  // tokens, of them of the prefix
    std::vector<Tensor> tokens, places, prefixes, alone;
    for (const auto& [T, M] : sequences) {
      tokens.push_back(some_row(T, config.vocabulary, T)), places.push_back(torch::arange(T)),
          prefixes.push_back(first_of(M, T)[0]);
      alone.push_back(decoder->forward(tokens.back(), nullptr, {{}, prefixes.back().unsqueeze(0)})[0]);
    }
    const Tensor packed = decoder->forward(torch::cat(tokens, 1), nullptr,
                                           {torch::cat(places).unsqueeze(0), torch::cat(prefixes).unsqueeze(0)})[0];
    const Tensor expected = torch::cat(alone);
    EXPECT_LE(distance(packed, expected), 1e-11 * expected.abs().max().item<double>()) << name;
    const auto own = torch::autograd::grad({expected.square().sum()}, decoder->parameters()),
               joined = torch::autograd::grad({packed.square().sum()}, decoder->parameters());
    for (size_t i = 0; i < own.size(); ++i)
      EXPECT_LE(distance(own[i], joined[i]), 1e-9 * own[i].abs().max().item<double>()) << name << ", " << i;
  }
}

TEST(PrefixLinear, RecomputedBlocksReadTheSamePrefix) {
  for (auto [name, config] : prefix_cases()) {
    std::vector<std::vector<Tensor>> grads;
    for (const char* recompute : {"none", "blocks"}) {
      config.recompute = recompute;
      Decoder decoder = made(config);
      const Tensor logits = decoder->forward(some_row(41, config.vocabulary), nullptr, {{}, first_of(11, 41)});
      grads.push_back(torch::autograd::grad({logits.square().mean()}, decoder->parameters()));
    }
    for (size_t i = 0; i < grads[0].size(); ++i)
      EXPECT_TRUE(torch::equal(grads[0][i], grads[1][i])) << name << ", " << i;
  }
}

TEST(PrefixLinear, HiddenTokensAreTakenInAPrefixAlone) {
  const DecoderConfig config = small_mixers({"prefix_linear"});
  Decoder decoder = made(config);
  Tensor row = some_row(8, config.vocabulary);
  const Tensor plain = decoder->forward(row, nullptr, {{}, first_of(4, 8)});
  row[0][2] = kHidden;
  EXPECT_GT(distance(decoder->forward(row, nullptr, {{}, first_of(4, 8)}), plain), 0);
  expect_all(message([&] { decoder->forward(row); }),
             {"decoder: a token lies outside 0 … 28, the vocabulary of the model"});
  expect_all(
      message([&] {
        decoder->forward(row, nullptr, {{}, first_of(9, 9)});
      }),
      {"decoder: places.prefix is [1, 9] Bool, wanted [1, 8] Bool, as tokens are; a prefix is no longer than its "
       "sequence"});
}

}  // namespace ISENTROPE_UNIT
}  // namespace isentrope::model
