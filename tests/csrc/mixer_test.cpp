// Mixers: a step at a time as all at once, packed rows as alone, what a configuration may say, and what they are planned by.
#include "csrc/model/mixer.h"

#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include <cmath>

#include "csrc/model/decode.h"
#include "csrc/model/mixers/convolution.h"
#include "tests/csrc/message.h"
#include "tests/csrc/mixer_kinds.h"

namespace isentrope::model {
namespace ISENTROPE_UNIT {

using torch::Tensor;

std::vector<int64_t> some_tokens(int64_t count, int64_t V, int64_t from = 1) {
  std::vector<int64_t> tokens;
  for (int64_t i = 0; i < count; ++i) tokens.push_back((from * 7 + i * i * 3 + i * 5) % V);
  return tokens;
}

Tensor row_of(const std::vector<int64_t>& tokens) { return torch::tensor(tokens).unsqueeze(0); }

// Tokens through a session: `first` of them as a prompt, the others one by one → logits of the last of the prompt and of each behind it.
Tensor decoded(const DecodeModel& model, const std::vector<int64_t>& tokens, int64_t first, int64_t V) {
  const auto session = model.session(pages_of(static_cast<int64_t>(tokens.size())), first);
  const int64_t table = session->pages().open();
  std::vector<Tensor> logits;
  const auto feed = [&](int64_t begin, int64_t end) {
    session->pages().extend(table, end);
    std::vector<DecodeRow> rows;
    for (int64_t t = begin; t < end; ++t) rows.push_back({tokens[t], t, table});
    const Logits out = session->step(rows, end - begin - 1);
    logits.push_back(torch::from_blob(const_cast<float*>(out.row(0)), {V}).clone());
  };
  feed(0, first);
  for (auto t = first; t < static_cast<int64_t>(tokens.size()); ++t) feed(t, t + 1);
  return torch::stack(logits).to(torch::kFloat64);
}

double distance(const Tensor& a, const Tensor& b) { return (a - b).abs().max().item<double>(); }

TEST(Mixers, DecodeStepByStepWhatTheForwardPassComputes) {
  for (const auto& [name, config] : mixer_cases()) {
    const torch::NoGradGuard no_grad;
    Decoder decoder = made(config), exact = made(config);
    exact->to(torch::kFloat64);
    const int64_t first = 19;
    const auto tokens = some_tokens(77, config.vocabulary);
    const Tensor truth = exact->forward(row_of(tokens))[0].slice(0, first - 1);
    const double error = distance(decoder->forward(row_of(tokens))[0].slice(0, first - 1).to(torch::kFloat64), truth);
    const auto check = [&](const std::unique_ptr<DecodeModel>& model, double allowed, const char* how) {
      const double found = distance(decoded(*model, tokens, first, config.vocabulary), truth);
      EXPECT_LE(found, allowed) << name << ", " << how << "; the forward pass errs by " << error;
    };
    // Logits are float in every session; sums of a step are in another order than those of a chunk.
    check(make_decode_model(decoder), 8 * error, "own kernels");
    check(make_aten_decode_model(decoder), 8 * error, "ATen");
    const double rounding = truth.abs().max().item<double>() * std::pow(2.0, -24);
    check(make_decode_model(exact), 2 * rounding, "ATen in double");
    // bfloat16 weights and cache: as far from float's as a forward pass of rounded weights is, or less.
    Decoder rounded = made(config);
    for (const auto& weight : rounded->parameters()) weight.copy_(weight.to(torch::kBFloat16).to(torch::kFloat32));
    const double of_weights =
        distance(rounded->forward(row_of(tokens))[0].slice(0, first - 1).to(torch::kFloat64), truth);
    check(make_decode_model(decoder, true), 4 * of_weights, "bfloat16");
    // There activations are rounded after every operation too, as on a GPU.
    if (name.starts_with("softmax") || !config.swiglu())
      check(make_aten_decode_model(decoder, true), 16 * of_weights, "ATen in bfloat16");
  }
}

TEST(Mixers, RowsOfADecodingStepDoNotDependOnTheOthers) {
  for (const auto& [name, config] : mixer_cases()) {
    const Decoder decoder = made(config);
    const auto model = make_decode_model(decoder);
    const int64_t V = config.vocabulary, T = 23;
    const auto together = model->session(3 * pages_of(T), 3);
    std::vector<std::vector<int64_t>> all{some_tokens(T, V, 1), some_tokens(T, V, 2), some_tokens(T, V, 3)};
    std::vector<int64_t> tables;
    for (size_t i = 0; i < 3; ++i) tables.push_back(together->pages().open());
    std::vector<Tensor> last(3);
    for (int64_t t = 0; t < T; ++t) {
      std::vector<DecodeRow> rows;
      for (size_t i = 0; i < 3; ++i) {
        together->pages().extend(tables[i], t + 1);
        rows.push_back({all[i][t], t, tables[i]});
      }
      const Logits out = together->step(rows, 0);
      for (size_t i = 0; i < 3; ++i) last[i] = torch::from_blob(const_cast<float*>(out.row(i)), {V}).clone();
    }
    for (size_t i = 0; i < 3; ++i)
      EXPECT_TRUE(torch::equal(decoded(*model, all[i], T, V)[0].to(torch::kFloat32), last[i])) << name << ", row " << i;
  }
}

// A sequence that begins with the tokens of another, now or `history` − 1 tokens before, goes on as one fed alone.
TEST(Mixers, AForkedSequenceGoesOnAsOneAlone) {
  for (const auto& [name, config] : mixer_cases())
    for (const bool aten : {false, true}) {
      const Decoder decoder = made(config);
      const auto model = aten ? make_aten_decode_model(decoder) : make_decode_model(decoder);
      constexpr int64_t kHistory = 5, kPrompt = 21;
      const int64_t V = config.vocabulary;
      for (const int64_t back : {int64_t{0}, int64_t{2}, kHistory - 1}) {
        const auto session = model->session(8 * pages_of(40), kPrompt, kHistory);
        PageTable& pages = session->pages();
        const int64_t parent = pages.open();
        const auto tokens = some_tokens(kPrompt, V);
        pages.extend(parent, kPrompt);
        std::vector<DecodeRow> rows;
        for (int64_t t = 0; t < kPrompt; ++t) rows.push_back({tokens[t], t, parent});
        session->step(rows, kPrompt - 1);
        const int64_t twin = pages.fork(parent, kPrompt), child = pages.fork(twin, kPrompt - back);
        pages.close(parent);
        std::vector<int64_t> own(tokens.begin(), tokens.end() - back);
        Tensor last;
        for (int64_t i = 0; i < 6; ++i) {
          own.push_back((i * 11 + 2) % V);
          const auto length = static_cast<int64_t>(own.size());
          pages.extend(twin, kPrompt + i + 1);
          pages.extend(child, length);
          const std::vector<DecodeRow> both{{(i * 5 + 1) % V, kPrompt + i, twin}, {own.back(), length - 1, child}};
          last = torch::from_blob(const_cast<float*>(session->step(both, 0).row(1)), {V}).clone();
        }
        const Tensor alone = decoded(*model, own, 1, V)[-1].to(torch::kFloat32);
        if (aten)
          EXPECT_LE(distance(last, alone), 1e-4 * alone.abs().max().item<double>()) << name << ", " << back << " back";
        else
          EXPECT_TRUE(torch::equal(last, alone)) << name << ", " << back << " tokens back";
      }
    }
}

// What a pass says of estimates of its attention, to be learnt beside its logits.
Tensor estimates_of(const AttentionRecord& record) {
  Tensor sum = torch::zeros({}, torch::kFloat64);
  for (const Tensor& layer : record.losses) sum = sum + layer.select(2, kEstimateKl).sum();
  return sum;
}

TEST(Mixers, PackedRowsAreComputedAsAlone) {
  for (const auto& [name, config] : mixer_cases()) {
    Decoder decoder = made(config);
    decoder->to(torch::kFloat64);
    const std::vector<std::vector<int64_t>> lengths{{5, 1, 30, 2}, {38}};
    std::vector<Tensor> rows, places, alone;
    decoder->zero_grad();
    std::vector<Tensor> separate_grads, packed_grads;
    Tensor sum = torch::zeros({}, torch::kFloat64);
    for (size_t r = 0; r < 2; ++r) {
      std::vector<Tensor> row, place;
      for (size_t i = 0; i < lengths[r].size(); ++i) {
        const auto tokens = some_tokens(lengths[r][i], config.vocabulary, static_cast<int64_t>(10 * r + i));
        AttentionRecord record;
        record.with_losses = true;
        const Tensor logits = decoder->forward(row_of(tokens), &record)[0];
        alone.push_back(logits.detach());
        sum = sum + logits.square().sum() + estimates_of(record);
        row.push_back(torch::tensor(tokens));
        place.push_back(torch::arange(lengths[r][i]));
      }
      rows.push_back(torch::cat(row));
      places.push_back(torch::cat(place));
    }
    const auto parameters = decoder->parameters();
    separate_grads = torch::autograd::grad({sum}, parameters);
    AttentionRecord record;
    record.with_losses = true;
    const Tensor packed = decoder->forward(torch::stack(rows), &record, torch::stack(places));
    packed_grads = torch::autograd::grad({packed.square().sum() + estimates_of(record)}, parameters);
    const Tensor expected = torch::cat(alone);
    EXPECT_LE(distance(packed.reshape({-1, config.vocabulary}), expected), 1e-11 * expected.abs().max().item<double>())
        << name;
    size_t i = 0;
    for (const auto& parameter : decoder->named_parameters()) {
      const double scale = separate_grads[i].abs().max().item<double>();
      EXPECT_LE(distance(packed_grads[i], separate_grads[i]), 1e-9 * scale) << name << ", " << parameter.key();
      EXPECT_GT(scale, 0) << name << ": no gradient reaches " << parameter.key();
      ++i;
    }
  }
}

TEST(Mixers, RecomputedBlocksHaveTheSameBits) {
  for (auto [name, config] : mixer_cases()) {
    const Tensor tokens = row_of(some_tokens(41, config.vocabulary));
    std::vector<std::vector<Tensor>> grads;
    for (const char* recompute : {"none", "blocks"}) {
      config.recompute = recompute;
      Decoder decoder = made(config);
      AttentionRecord record;
      record.with_losses = true;
      const Tensor logits = decoder->forward(tokens, &record);
      grads.push_back(torch::autograd::grad({logits.square().mean() + estimates_of(record)}, decoder->parameters()));
      EXPECT_EQ(static_cast<int64_t>(record.entropy.size()), attending_layers(config)) << name;
    }
    for (size_t i = 0; i < grads[0].size(); ++i)
      EXPECT_TRUE(torch::equal(grads[0][i], grads[1][i])) << name << ", " << i;
  }
}

TEST(Mixers, TellWhichLayersAttend) {
  const DecoderConfig config = small_mixers({"linear", "softmax"});
  AttentionRecord record;
  made(config)->forward(row_of(some_tokens(9, config.vocabulary)), &record);
  EXPECT_EQ(record.layer, std::vector<int64_t>{1});
  EXPECT_EQ(record.window.size(), 1u);
}

TEST(Mixers, AreWhatTheirShapeSays) {
  for (const auto& [name, config] : mixer_cases()) {
    const Decoder decoder = made(config);
    int64_t numbers = 0, planned = 0;
    for (const Tensor& weight : decoder->parameters()) numbers += weight.numel();
    const int64_t C = config.hidden_size;
    const int64_t norm = config.norm == "none" ? 0 : C;
    planned += 2 * config.vocabulary * C + norm;
    for (int64_t i = 0; i < config.num_hidden_layers; ++i) {
      const MixerShape shape = mixer_shape(config, i);
      planned += C * (shape.rows() + shape.output) + shape.others + config.mlp_numbers() + 2 * norm;
      if (!config.swiglu()) planned += 2;  // α and β
      if (config.attention.temperature == "row" && shape.attends)
        planned += config.num_attention_heads * config.max_position_embeddings;
      if (config.attention.temperature == "head" && shape.attends) planned += config.num_attention_heads;
      if (config.attention.qk_norm && shape.attends) planned += 2 * config.head_size();
      if (config.attention.bias == "all") planned += shape.rows() + C;
      EXPECT_EQ(shape.attends, shape.cached > 0) << name;
      EXPECT_EQ(shape.attends, shape.state == 0 || config.mixer_of(i) == "natsl" || config.mixer_of(i) == "estimated")
          << name;  // which have both
    }
    EXPECT_EQ(planned, numbers) << name;
  }
}

TEST(Mixers, PatternsRepeat) {
  DecoderConfig config = small_mixers({"linear", "softmax"});
  config.num_hidden_layers = 4;
  EXPECT_EQ(config.problem(), "");
  EXPECT_EQ(config.mixer_of(2), "linear");
  EXPECT_EQ(config.mixer_of(3), "softmax");
  EXPECT_EQ(attending_layers(config), 2);
}

TEST(Mixers, RefuseWhatDoesNotFit) {
  const auto problem = [](auto change) {
    DecoderConfig config = small_mixers({"linear"});
    change(config);
    return config.problem();
  };
  EXPECT_EQ(problem([](DecoderConfig& c) { c.mixers = {}; }),
            "mixers: is an empty list; name a kind, or leave it out for softmax in every layer");
  EXPECT_EQ(
      problem([](DecoderConfig& c) {
        c.mixers = {"linear", "linear", "softmax"};
      }),
      "mixers: a pattern of 3 layers does not fit num_hidden_layers (2); write one that divides it, or a kind for "
      "every layer");
  EXPECT_EQ(problem([](DecoderConfig& c) { c.attention.bias = "qkv"; }),
            "attention.bias: layers of kind linear have no biases, and model.mixers names such; leave it at none");
  EXPECT_EQ(problem([](DecoderConfig& c) { c.attention.qk_clip = 10; }),
            "attention.qk_clip: no layer of mixers has the logits of a softmax; leave it at 0");
  const auto of_rows = [&](auto change) {
    return problem([&](DecoderConfig& c) {
      c.mixers = {"softmax_rnn"};
      change(c);
    });
  };
  EXPECT_EQ(
      of_rows([](DecoderConfig& c) { c.softmax_rnn.denominator = "count"; }),
      "softmax_rnn.denominator: count only scales a row, and softmax_rnn.norm (rms) takes the scale of a row away; "
      "leave it at none, or write norm: none");
  EXPECT_EQ(
      of_rows([](DecoderConfig& c) { c.softmax_rnn.norm = "none", c.attention.softcap = 30; }),
      "attention.softcap: layers of kind softmax_rnn whose denominator is none have softmax_rnn.clamp in its place; "
      "leave it at 0");
  EXPECT_EQ(of_rows([](DecoderConfig& c) { c.attention.softcap = 30; }), "");
  EXPECT_EQ(message([] { mixer_kind("softmix"); }),
            "model.mixers: there is no 'softmix'; wanted one of softmax, softmax_rnn, routed, linear, prefix_linear, "
            "normalized, gated_delta, ssd, natsl, estimated, hierarchical");
}

// The convolution of one sequence by its definition, and its gradients by finite differences.
TEST(ShortConvolution, IsWhatItsDefinitionSays) {
  torch::manual_seed(3);
  const auto options = torch::dtype(torch::kFloat64);
  for (const int64_t K : {2, 4, 7}) {
    const Tensor x = torch::randn({300, 3}, options).requires_grad_(),
                 w = torch::randn({3, 1, K}, options).requires_grad_();
    const Tensor position = torch::cat({torch::arange(2), torch::arange(1), torch::arange(290), torch::arange(7)});
    const Tensor y = short_convolution(x, w, position);
    const auto value = [&](const Tensor& a, const Tensor& b, int64_t n, int64_t c) {
      double sum = 0;
      for (int64_t l = 0; l < K && l <= position[n].item<int64_t>(); ++l)
        sum += b[c][0][K - 1 - l].item<double>() * a[n - l][c].item<double>();
      return sum;
    };
    for (const int64_t n : {0, 1, 2, 3, 5, 128, 131, 292, 293, 299})
      for (int64_t c = 0; c < 3; ++c)
        EXPECT_NEAR(y[n][c].item<double>(), value(x, w, n, c), 1e-12) << "K " << K << ", row " << n;
    const Tensor weights = torch::randn({300, 3}, options);
    const auto grads = torch::autograd::grad({(y * weights).sum()}, {x, w});
    const torch::NoGradGuard no_grad;
    const auto slope = [&](const Tensor& of, const Tensor& at) {
      constexpr double kStep = 1e-6;
      at.add_(kStep);
      const double high = (short_convolution(x, w, position) * weights).sum().item<double>();
      at.sub_(2 * kStep);
      const double low = (short_convolution(x, w, position) * weights).sum().item<double>();
      at.add_(kStep);
      EXPECT_NEAR(of.item<double>(), (high - low) / (2 * kStep), 1e-6) << "K " << K;
    };
    for (const int64_t n : {0, 1, 2, 3, 127, 128, 290, 299}) slope(grads[0][n][1], x.detach()[n][1]);
    for (int64_t k = 0; k < K; ++k) slope(grads[1][2][0][k], w.detach()[2][0][k]);
  }
}

}  // namespace ISENTROPE_UNIT
}  // namespace isentrope::model
