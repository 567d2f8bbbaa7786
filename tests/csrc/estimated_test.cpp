// estimated: the layer, what it chooses and what it says of itself by their definitions in double, and what is refused.
#include "csrc/model/mixers/estimated.h"

#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include <algorithm>
#include <cmath>
#include <set>

#include "csrc/model/attention_losses.h"
#include "tests/csrc/mixer_kinds.h"

namespace isentrope::model {
namespace ISENTROPE_UNIT {

using torch::Tensor;

DecoderConfig estimated_config(int64_t columns = 7, int64_t keep = 3) {
  DecoderConfig c = small_mixers({"estimated"});
  c.estimated = {.columns = columns, .keep = keep};
  return c;
}

const EstimatedMixer& mixer_of(const Decoder& decoder, size_t layer = 0) {
  return dynamic_cast<const EstimatedMixer&>(*decoder->layers()[layer].mixer);
}

double distance(const Tensor& a, const Tensor& b) { return (a - b).abs().max().item<double>(); }

Tensor rms(const Tensor& x, const Tensor& weight, double eps) { return weight * x / (x.square().mean() + eps).sqrt(); }

struct Layer {
  Tensor out, entropy, kl, kept;  // [T, C], [H, T], and [H, T]
};

// One sequence x [T, C] by its definition, a token and a head at a time; H 4, G 2, D 8.
Layer by_definition(const EstimatedMixer& m, const Tensor& x, const Tensor& cosine, const Tensor& sine) {
  const int64_t T = x.size(0), H = 4, G = 2, D = 8, M = m.config().estimated.columns, k = m.config().estimated.keep;
  const double eps = m.config().rms_norm_eps;
  const auto parts = x.matmul(m.qkv.weight.t()).split_with_sizes({H * D, G * D, G * D, H * D, G * D}, 1);
  const auto head = [&](size_t part, int64_t t, int64_t h) { return parts[part][t].slice(0, h * D, (h + 1) * D); };
  const auto phi = [](const Tensor& y) { return torch::where(y > 0, y + 1, y.exp()); };
  const auto turned = [&](const Tensor& y, int64_t t) {
    const auto half = y.chunk(2);
    return torch::cat({half[0] * cosine[t] - half[1] * sine[t], half[1] * cosine[t] + half[0] * sine[t]});
  };
  const auto opts = x.options();
  Layer all{{}, torch::zeros({H, T}, opts), torch::zeros({H, T}, opts), torch::zeros({H, T}, opts)};
  std::vector<Tensor> rows;
  for (int64_t t = 0; t < T; ++t) {
    const int64_t n = t + 1;
    std::vector<std::set<int64_t>> cells(M);
    for (int64_t s = 0; s < n; ++s) cells[s * M / n].insert(s);
    std::vector<Tensor> raw, z;
    for (int64_t h = 0; h < H; ++h) {
      const int64_t g = h / 2;
      Tensor values = torch::zeros({D}, opts), c = torch::zeros({D / 2}, opts), s = c.clone(),
             total = torch::zeros({}, opts);
      for (int64_t j = 0; j < n; ++j) {
        const Tensor w = phi(head(3, t, h)).dot(phi(head(4, j, g)));
        values = values + w * head(2, j, g);
        // e_j turned by the angles of t: those of t − j.
        c = c + w * (cosine[t] * cosine[j] + sine[t] * sine[j]);
        s = s + w * (sine[t] * cosine[j] - cosine[t] * sine[j]);
        total = total + w;
      }
      const Tensor read = torch::cat({values / total, c / total, s / total, head(2, t, g), cosine[t], sine[t]});
      z.push_back(at::gelu(rms(m.in.mv(read), m.norm, eps)));
      raw.push_back(m.columns.mv(z.back()) + m.bias);
    }
    std::vector<Tensor> log;
    std::vector<std::tuple<double, int64_t, int64_t>> order;
    for (int64_t h = 0; h < H; ++h) {
      std::vector<Tensor> logits;
      for (int64_t i = 0; i < M; ++i) {
        Tensor sum = raw[h][i];
        for (int64_t from = 0; from < H; ++from)
          for (int64_t tap = 0; tap < 3; ++tap)
            if (const int64_t at = i + tap - 1; at >= 0 && at < M) sum = sum + m.conv[h][from][tap] * raw[from][at];
        logits.push_back(cells[i].empty() ? torch::full({}, -INFINITY, opts) : sum);
      }
      log.push_back(torch::stack(logits).log_softmax(0));
      for (int64_t i = 0; i < M; ++i)
        if (!cells[i].empty()) order.emplace_back(-log[h][i].item<double>(), h, i);
    }
    std::sort(order.begin(), order.end());
    const auto wanted = static_cast<size_t>(H * std::max<int64_t>(1, std::llround(static_cast<double>(k * M) / n)));
    std::vector<std::set<int64_t>> sight(H, std::set<int64_t>{t});
    std::vector<std::set<int64_t>> taken(H);
    for (size_t i = 0; i < std::min(wanted, order.size()); ++i) {
      const auto [none, h, cell] = order[i];
      sight[h].insert(cells[cell].begin(), cells[cell].end());
      taken[h].insert(cells[cell].begin(), cells[cell].end());
    }
    std::vector<Tensor> heads;
    for (int64_t h = 0; h < H; ++h) {
      const int64_t g = h / 2;
      Tensor logits = torch::full({n}, -INFINITY, opts), full = torch::zeros({n}, opts), mean = torch::zeros({D}, opts);
      for (int64_t j = 0; j < n; ++j) {
        full[j] = turned(head(0, t, h), t).dot(turned(head(1, j, g), j)) / std::sqrt(8.0);
        mean = mean + head(2, j, g) / n;
      }
      for (const int64_t j : sight[h]) logits[j] = full[j];
      const Tensor p = logits.softmax(0), A = full.softmax(0);
      Tensor y = torch::zeros({D}, opts);
      for (const int64_t j : sight[h]) y = y + p[j] * head(2, j, g);
      all.entropy[h][t] = -at::special_xlogy(p, p).sum();
      for (const int64_t j : taken[h]) all.kept[h][t] += A[j];
      for (int64_t i = 0; i < M; ++i) {
        Tensor mass = torch::zeros({}, opts);
        for (const int64_t j : cells[i]) mass = mass + A[j];
        if (!cells[i].empty()) all.kl[h][t] += mass * (mass.log() - log[h][i]);
      }
      const Tensor gates = (m.gate.mv(z[h]) + m.gate_bias).sigmoid();
      const Tensor row = gates[1] * gates[0] * y + (1 - gates[1]) * mean;
      heads.push_back(row + rms(row, m.o_norm, eps));
    }
    rows.push_back(torch::cat(heads));
  }
  all.out = torch::stack(rows).matmul(m.o.weight.t());
  return all;
}

// A decoder in double whose norms are not at their start.
Decoder in_double(const DecoderConfig& config) {
  Decoder decoder = made(config);
  const torch::NoGradGuard no_grad;
  for (const auto& [name, weight] : decoder->named_weights())
    if (name.ends_with("self_attn.o_norm.weight")) weight.copy_(torch::linspace(0.2, 0.9, weight.numel()));
  decoder->to(torch::kFloat64);
  return decoder;
}

std::pair<Tensor, Tensor> angles(const Decoder& decoder, int64_t T) {
  return {decoder->cosine().slice(0, 0, T), decoder->sine().slice(0, 0, T)};
}

TEST(Estimated, IsWhatItsDefinitionSays) {
  for (const auto& [columns, keep] : {std::pair<int64_t, int64_t>{7, 3}, {40, 2}, {2, 1}}) {
    const torch::NoGradGuard no_grad;
    const Decoder decoder = in_double(estimated_config(columns, keep));
    const EstimatedMixer& mixer = mixer_of(decoder);
    const int64_t B = 2, T = 31;
    torch::manual_seed(columns);
    const Tensor x = torch::randn({B * T, 32}, torch::kFloat64);
    const auto [cosine, sine] = angles(decoder, T);
    AttentionRecord record;
    record.with_losses = true;
    const Tensor y = mixer.forward(x, {}, {cosine, sine, nullptr, {}, &record, false, {}});
    ASSERT_EQ(record.losses.size(), 1u);
    EXPECT_EQ(record.window[0], 96);
    for (int64_t b = 0; b < B; ++b) {
      const Layer truth = by_definition(mixer, x.slice(0, b * T, (b + 1) * T), cosine, sine);
      EXPECT_LE(distance(y.slice(0, b * T, (b + 1) * T), truth.out), 1e-12 * truth.out.abs().max().item<double>());
      EXPECT_LE(distance(record.entropy[0][b], truth.entropy), 1e-12);
      EXPECT_LE(distance(record.losses[0][b].select(1, kEstimateKl), truth.kl.mean(0)), 1e-12);
    }
  }
}

// Packed sequences as each alone, in what comes out and in what is told.
TEST(Estimated, PackedRowsAreAsAlone) {
  const torch::NoGradGuard no_grad;
  const Decoder decoder = in_double(estimated_config());
  torch::manual_seed(2);
  const Tensor position = torch::cat({torch::arange(9), torch::arange(1), torch::arange(20)}).view({1, 30});
  const Packing packing(position);
  const Tensor x = torch::randn({30, 32}, torch::kFloat64);
  const auto [cosine, sine] = angles(decoder, 20);
  const Tensor c = cosine.index_select(0, position[0]), s = sine.index_select(0, position[0]);
  AttentionRecord together;
  together.with_losses = true;
  const EstimatedMixer& mixer = mixer_of(decoder);
  const Tensor y = mixer.forward(x, {}, {c, s, &packing, {}, &together, false, {}});
  for (const auto& [first, end] : {std::pair<int64_t, int64_t>{0, 9}, {9, 10}, {10, 30}}) {
    const auto [own_c, own_s] = angles(decoder, end - first);
    AttentionRecord alone;
    alone.with_losses = true;
    const Tensor own = mixer.forward(x.slice(0, first, end), {}, {own_c, own_s, nullptr, {}, &alone, false, {}});
    EXPECT_LE(distance(y.slice(0, first, end), own), 1e-12);
    EXPECT_LE(distance(together.entropy[0].slice(2, first, end), alone.entropy[0]), 1e-12);
    EXPECT_LE(distance(together.losses[0].slice(1, first, end), alone.losses[0]), 1e-12);
  }
}

// The gradients of the output and of the divergence by finite differences; the choice does not change by steps so small.
TEST(Estimated, GradientsAreThoseOfTheDefinition) {
  const Decoder decoder = in_double(estimated_config());
  const EstimatedMixer& mixer = mixer_of(decoder);
  const int64_t T = 19;
  torch::manual_seed(8);
  const Tensor x = torch::randn({T, 32}, torch::kFloat64), weights = torch::randn({T, 32}, torch::kFloat64);
  const auto [cosine, sine] = angles(decoder, T);
  const auto loss = [&](bool of_output) {
    AttentionRecord record;
    record.with_losses = true;
    const Tensor y = mixer.forward(x, {}, {cosine, sine, nullptr, {}, &record, false, {}});
    return of_output ? (y * weights).sum() : record.losses[0].select(2, kEstimateKl).sum();
  };
  for (const bool of_output : {true, false}) {
    std::vector<Tensor> parameters{mixer.qkv.weight, mixer.in,   mixer.norm, mixer.columns,
                                   mixer.bias,       mixer.conv, mixer.gate};
    const auto grads = torch::autograd::grad({loss(of_output)}, parameters, {}, {}, false, /*allow_unused=*/true);
    const torch::NoGradGuard no_grad;
    for (size_t p = 0; p < parameters.size(); ++p) {
      const Tensor flat = parameters[p].view({-1});
      for (const double where : {0.1, 0.55, 0.93}) {
        const auto i = static_cast<int64_t>(where * static_cast<double>(flat.numel()));
        // Full attention has no gradient in the divergence: rows of q and k alone stay out of it.
        if (!of_output && p == 0 && i < 6 * 8 * 32) continue;
        const double before = flat[i].item<double>(), step = 1e-6;
        flat[i].fill_(before + step);
        const double high = loss(of_output).item<double>();
        flat[i].fill_(before - step);
        const double low = loss(of_output).item<double>();
        flat[i].fill_(before);
        const double found = grads[p].defined() ? grads[p].reshape({-1})[i].item<double>() : 0;
        EXPECT_NEAR(found, (high - low) / (2 * step), 1e-6) << of_output << ", parameter " << p << ", " << i;
      }
    }
    if (!of_output) {
      EXPECT_EQ(grads[0].slice(0, 0, 6 * 8).abs().max().item<double>(), 0) << "q and k of the layer itself";
      EXPECT_FALSE(grads[6].defined()) << "the gates have no part in the estimate";
    }
  }
}

// What estimate() tells of an update, however it is cut; rows that are padding do not count.
TEST(Estimated, CountsWhatItKeeps) {
  DecoderConfig config = estimated_config();
  for (const char* recompute : {"none", "blocks"}) {
    config.recompute = recompute;
    const Tensor rows = (torch::arange(4 * 20).square() * 3 + 1).remainder(29).view({4, 20});
    const Tensor real = torch::arange(20) < torch::tensor({{20}, {7}, {13}, {1}});
    std::vector<Tensor> told;
    for (const int64_t cut : {4, 1}) {
      Decoder decoder = made(config);
      EXPECT_FALSE(mixer_of(decoder).estimate().defined());
      decoder->forget_seen();
      for (int64_t b = 0; b < 4; b += cut) {
        AttentionRecord record;
        record.with_losses = true;
        record.real = real.slice(0, b, b + cut);
        const Tensor logits = decoder->forward(rows.slice(0, b, b + cut), &record);
        ASSERT_EQ(record.losses.size(), 2u);
        (logits.sum() + record.losses[0].sum() + record.losses[1].sum()).backward();
      }
      EXPECT_EQ(mixer_of(decoder).seen().select(1, 2).min().item<double>(), 41);
      int64_t sums = 0;
      decoder->take_seen([&](Tensor&) { ++sums; });
      EXPECT_EQ(sums, 2);
      told.push_back(mixer_of(decoder).estimate());
      EXPECT_EQ(told.back().sizes(), at::IntArrayRef({4, 2}));
      EXPECT_TRUE(told.back().select(1, 0).ge(0).all().item<bool>());
      EXPECT_TRUE(told.back().select(1, 1).le(1 + 1e-6).all().item<bool>());
    }
    EXPECT_LE(distance(told[0], told[1]), 1e-5);
  }
}

// With as many cells as tokens, and all of them kept, the layer is softmax attention.
TEST(Estimated, KeepsAllOfAShortText) {
  const torch::NoGradGuard no_grad;
  const Decoder decoder = in_double(estimated_config(64, 64));
  const EstimatedMixer& mixer = mixer_of(decoder);
  const int64_t T = 23;
  const Tensor x = torch::randn({T, 32}, torch::kFloat64);
  const auto [cosine, sine] = angles(decoder, T);
  AttentionRecord record;
  record.with_losses = true;
  mixer.forward(x, {}, {cosine, sine, nullptr, {}, &record, false, {}});
  const auto parts = mixer.parts(x.matmul(mixer.qkv.weight.t()));
  const auto turned = [&](const Tensor& y) {
    const auto half = y.chunk(2, 2);
    const Tensor c = cosine.unsqueeze(1), s = sine.unsqueeze(1);
    return torch::cat({half[0] * c - half[1] * s, half[1] * c + half[0] * s}, 2).unsqueeze(0);
  };
  const Tensor log = full_attention(turned(parts[0]), turned(parts[1]));
  const Tensor p = log.exp(), entropy = -at::special_xlogy(p, p).sum(-1);
  EXPECT_LE(distance(record.entropy[0], entropy), 1e-12);
}

TEST(Estimated, RefusesWhatItHasNot) {
  const auto problem = [](auto change) {
    DecoderConfig config = estimated_config();
    change(config);
    return config.problem();
  };
  EXPECT_EQ(problem([](DecoderConfig&) {}), "");
  EXPECT_EQ(problem([](DecoderConfig& c) { c.attention.qk_norm = true; }),
            "attention.qk_norm: layers of kind estimated have none, and layer 0 is one; leave it at false");
  EXPECT_EQ(problem([](DecoderConfig& c) { c.attention.softcap = 5; }),
            "attention.softcap: layers of kind estimated have none, and layer 0 is one; leave it at 0");
  EXPECT_EQ(problem([](DecoderConfig& c) { c.causal = false; }),
            "mixers: a layer of kind estimated cannot see the tokens behind, and causal is false; wanted softmax or "
            "hierarchical");
}

}  // namespace ISENTROPE_UNIT
}  // namespace isentrope::model
