// EntropyPrune: the tokens that are kept, what later layers make of them, and the pages that hold them.
#include "csrc/model/prune.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "csrc/model/decode.h"
#include "tests/csrc/message.h"
#include "tests/csrc/mixer_kinds.h"

namespace isentrope::model {
namespace ISENTROPE_UNIT {

using torch::Tensor;

constexpr int64_t kLayers = 4, kPrompt = 37, kSteps = 5;

Decoder pruned_decoder(const std::function<void(DecoderConfig&)>& change = [](DecoderConfig&) {}) {
  DecoderConfig config = small_mixers({"softmax"});
  config.num_hidden_layers = kLayers;
  change(config);
  const torch::NoGradGuard no_grad;
  Decoder decoder(config, 3);
  for (const auto& [name, weight] : decoder->named_weights())
    if (weight.dim() == 2) weight.mul_(name == "lm_head.weight" ? 10 : 2);
  return decoder;
}

std::vector<int64_t> prompt_of(int64_t n, int64_t V) {
  std::vector<int64_t> tokens;
  for (int64_t i = 0; i < n; ++i) tokens.push_back((i * i * 3 + i * 5 + 2) % V);
  return tokens;
}

// Logits [1 + steps, V] behind a prompt and behind each of the tokens that follow it.
Tensor decoded(const DecodeModel& model, std::vector<int64_t> tokens, int64_t steps, int64_t V,
               const Pruning* pruning = nullptr, const Tensor& embeddings = {}, std::vector<int64_t>* kept = nullptr) {
  const int64_t n = std::ssize(tokens), P = embeddings.defined() ? embeddings.size(0) : 0;
  const int64_t dropped = pruning ? pruning->dropped(n, P) : 0;
  const auto session = model.session(pages_of(n + steps), 5, 1, pruning, pages_of(n + steps - dropped));
  PageTable& pages = session->pages();
  const int64_t sequence = pages.open();
  pages.shorten(sequence, dropped);
  EXPECT_TRUE(pages.extend(sequence, n));
  std::vector<Tensor> logits;
  const auto take = [&](const Logits& out) {
    logits.push_back(torch::from_blob(const_cast<float*>(out.row(0)), {V}).clone());
  };
  take(session->prefill(tokens, sequence, embeddings, kept));
  for (int64_t t = 0; t < steps; ++t) {
    EXPECT_TRUE(pages.extend(sequence, n + t + 1));
    const std::vector<DecodeRow> row{{(t * 7 + 3) % V, n + t, sequence}};
    take(session->step(row, 0));
  }
  return torch::stack(logits).to(torch::kFloat64);
}

// The same in double by dense attention, where from block `layer` on no row sees the prompt's tokens that are not kept.
Tensor dense(const Decoder& decoder, Tensor x, const std::vector<int64_t>& kept, int64_t n, int64_t layer) {
  const DecoderConfig& c = decoder->config();
  const int64_t T = x.size(0), H = c.num_attention_heads, G = c.num_key_value_heads, D = c.head_size();
  const auto norm = [&](const Tensor& y, const Tensor& weight) {
    return y * (y.square().mean(1, true) + c.rms_norm_eps).rsqrt() * weight.to(torch::kFloat64);
  };
  const auto times = [](const Tensor& y, const Tensor& w) { return y.matmul(w.to(torch::kFloat64).t()); };
  const Tensor cosine = decoder->cosine().slice(0, 0, T).unsqueeze(1),
               sine = decoder->sine().slice(0, 0, T).unsqueeze(1);
  const auto turn = [&](const Tensor& heads) {
    const auto half = heads.chunk(2, -1);
    return torch::cat({half[0] * cosine - half[1] * sine, half[1] * cosine + half[0] * sine}, -1);
  };
  Tensor there = torch::ones({T, T}, torch::kBool).tril();
  for (int64_t l = 0; l < c.num_hidden_layers; ++l) {
    if (l == layer)
      for (int64_t t = 0; t < n; ++t)
        if (std::find(kept.begin(), kept.end(), t) == kept.end()) there.select(1, t).fill_(false);
    const LayerWeights& w = decoder->layers()[l];
    const auto qkv =
        times(norm(x, w.input_norm), w.mixer->qkv.weight).view({T, H + 2 * G, D}).split_with_sizes({H, G, G}, 1);
    const auto wide = [&](const Tensor& y) { return y.repeat_interleave(H / G, 1).transpose(0, 1); };
    const Tensor scores =
        turn(qkv[0]).transpose(0, 1).matmul(wide(turn(qkv[1])).mT()) / std::sqrt(static_cast<double>(D));
    // A dropped row itself may see nothing: nobody reads what becomes of it.
    const Tensor p = scores.masked_fill(there.logical_not(), -1e300).softmax(-1);
    x = x + times(p.matmul(wide(qkv[2])).transpose(0, 1).reshape({T, H * D}), w.mixer->o.weight);
    const auto up = times(norm(x, w.post_norm), w.gate_up.weight).chunk(2, 1);
    x = x + times(torch::silu(up[0]) * up[1], w.down.weight);
  }
  return times(norm(x, decoder->final_norm()), decoder->head().weight).slice(0, n - 1);
}

Tensor embedded(const Decoder& decoder, std::vector<int64_t> tokens, int64_t steps, int64_t V) {
  for (int64_t t = 0; t < steps; ++t) tokens.push_back((t * 7 + 3) % V);
  return decoder->embedding().index_select(0, torch::tensor(tokens)).to(torch::kFloat64);
}

double distance(const Tensor& a, const Tensor& b) { return (a - b).abs().max().item<double>(); }

std::string refusal(const Decoder& decoder, const PruneConfig& config) {
  return message([&] { Pruning(decoder, config); });
}

TEST(Prune, AllKeptIsNotPrunedBitForBit) {
  const torch::NoGradGuard no_grad;
  const Decoder decoder = pruned_decoder();
  const int64_t V = decoder->config().vocabulary;
  const auto tokens = prompt_of(kPrompt, V);
  for (const int64_t layer : {int64_t{0}, int64_t{2}, kLayers - 1}) {
    const Pruning all(decoder, {.layer = layer, .keep = 1});
    EXPECT_EQ(all.dropped(kPrompt, 0), 0);
    for (const bool aten : {false, true}) {
      const auto model = aten ? make_aten_decode_model(decoder) : make_decode_model(decoder);
      EXPECT_TRUE(torch::equal(decoded(*model, tokens, kSteps, V, &all), decoded(*model, tokens, kSteps, V)))
          << "layer " << layer << (aten ? ", ATen" : ", own kernels");
    }
  }
}

TEST(Prune, LogitsAreThoseOfDenseAttentionWithoutTheDroppedTokens) {
  const torch::NoGradGuard no_grad;
  const Decoder decoder = pruned_decoder();
  const int64_t V = decoder->config().vocabulary;
  const auto tokens = prompt_of(kPrompt, V);
  std::vector<int64_t> every(kPrompt);
  for (int64_t t = 0; t < kPrompt; ++t) every[t] = t;
  const Tensor x = embedded(decoder, tokens, kSteps, V);
  // What float makes of it where nothing is dropped.
  const double error =
      distance(decoded(*make_decode_model(decoder), tokens, kSteps, V), dense(decoder, x, every, kPrompt, kLayers));
  for (const int64_t layer : {int64_t{0}, int64_t{1}, kLayers - 1})
    for (const char* form : {"normalised", "raw", "random"})
      for (const double keep : {0.01, 0.5, 0.9}) {
        const Pruning pruning(decoder, {.layer = layer, .keep = keep, .form = form, .first = 2});
        std::vector<int64_t> kept, again;
        const Tensor found = decoded(*make_decode_model(decoder), tokens, kSteps, V, &pruning, {}, &kept);
        EXPECT_EQ(std::ssize(kept), std::max<int64_t>(3, std::llround(keep * kPrompt)));
        EXPECT_EQ(kept[0], 0);
        EXPECT_EQ(kept[1], 1);
        EXPECT_EQ(kept.back(), kPrompt - 1);
        const Tensor truth = dense(decoder, x, kept, kPrompt, layer);
        EXPECT_LE(distance(found, truth), 8 * error) << "layer " << layer << ", " << form << ", " << keep;
        EXPECT_GT(distance(dense(decoder, x, every, kPrompt, layer), truth), 100 * error);
        EXPECT_LE(distance(decoded(*make_aten_decode_model(decoder), tokens, kSteps, V, &pruning, {}, &again), truth),
                  8 * error);
        EXPECT_EQ(kept, again);
      }
}

TEST(Prune, RedundantHeadsAreDroppedFirst) {
  // Tokens whose heads are all alike have no entropy; those whose heads are each another direction have ln H.
  const int64_t n = 12, H = 4, d = 8;
  Tensor Z = torch::zeros({n, H, d}, torch::kFloat64);
  for (int64_t t = 0; t < n; ++t)
    for (int64_t h = 0; h < H; ++h) {
      if (t % 3 == 0) Z[t][h] += torch::arange(d) * 0.25 + 1.0 * t;  // alike
      if (t % 3 == 1) Z[t][h][0] += h % 2 == 0 ? 1.0 : -1.0;         // one direction: 0
      if (t % 3 == 2) Z[t][h][h] += 3.0 + static_cast<double>(t);    // H − 1 directions of one size
    }
  const Tensor normalised = matrix_entropy(Z, "normalised"), raw = matrix_entropy(Z, "raw");
  for (int64_t t = 0; t < n; ++t) {
    const double expected = t % 3 == 2 ? std::log(3.0) / std::log(4.0) : 0, size = 3.0 + static_cast<double>(t);
    EXPECT_NEAR(normalised[t].item<double>(), expected, 1e-6) << t;
    // A = size² / H (I − 11ᵀ / H): three eigenvalues size² / H.
    const double lambda = size * size / 4;
    if (t % 3 == 2) EXPECT_NEAR(raw[t].item<double>(), -3 * lambda * std::log(lambda) / std::log(4.0), 1e-6) << t;
  }
  // In a model: the embedding is what enters block 0.
  const Decoder decoder = pruned_decoder();
  const Pruning pruning(decoder, {.layer = 0, .keep = 0.5, .matrix = "hidden"});
  std::vector<int64_t> tokens(n, 1);
  const Tensor x = torch::cat({Z.view({n, H * d})}).to(torch::kFloat32);
  const std::vector<int64_t> kept = pruning.kept(tokens, x);
  EXPECT_EQ(std::ssize(kept), 6);
  for (const int64_t t : {2, 5, 8, 11}) EXPECT_TRUE(std::count(kept.begin(), kept.end(), t)) << t;
}

TEST(Prune, EmbeddingsStandBeforeTheTextAndAreAloneDropped) {
  const torch::NoGradGuard no_grad;
  const Decoder decoder = pruned_decoder();
  const int64_t V = decoder->config().vocabulary, P = 19, text = 6;
  std::vector<int64_t> tokens = prompt_of(P + text, V);
  const Tensor x = embedded(decoder, tokens, kSteps, V);
  Tensor image = torch::sin(torch::arange(P * 32) * 1.3).view({P, 32}) * 0.05;
  image[4] = image[11].clone();
  Tensor all = x.clone();
  all.slice(0, 0, P).copy_(image);
  std::fill_n(tokens.begin(), P, kHidden);
  const auto model = make_decode_model(decoder);
  std::vector<int64_t> every(P + text);
  for (int64_t t = 0; t < P + text; ++t) every[t] = t;
  const double error =
      distance(decoded(*model, tokens, kSteps, V, nullptr, image), dense(decoder, all, every, P + text, kLayers));
  EXPECT_LT(error, 1e-3);
  const Pruning pruning(decoder, {.layer = 2, .keep = 0.3});
  EXPECT_EQ(pruning.dropped(P + text, P), P - 6);
  std::vector<int64_t> kept;
  const Tensor found = decoded(*model, tokens, kSteps, V, &pruning, image, &kept);
  EXPECT_EQ(std::ssize(kept), 6 + text);
  for (int64_t t = P; t < P + text; ++t) EXPECT_TRUE(std::count(kept.begin(), kept.end(), t)) << t;
  EXPECT_LE(distance(found, dense(decoder, all, kept, P + text, 2)), 8 * error + 1e-6);
  const std::string refused = message([&] { decoded(*model, tokens, 0, V, nullptr, image.slice(0, 1)); });
  EXPECT_NE(refused.find("wanted [19, 32]"), std::string::npos) << refused;
}

TEST(Prune, TheLayerOfTheLargestDropIsFound) {
  const torch::NoGradGuard no_grad;
  const Decoder decoder = pruned_decoder();
  // The queries of block 2 are those of one head: all heads of a token alike, and its entropy 0.
  const Tensor& weight = decoder->layers()[2].mixer->qkv.weight;
  for (int64_t h = 1; h < 4; ++h) weight.slice(0, h * 8, h * 8 + 8).copy_(weight.slice(0, 0, 8));
  const std::vector<std::vector<int64_t>> prompts{prompt_of(kPrompt, 29), prompt_of(9, 29)};
  EXPECT_EQ(with_layer({}, decoder, prompts).layer, 2);
  EXPECT_EQ(with_layer({.layer = 1}, decoder, prompts).layer, 1);
  // Where it falls nowhere: a model whose every block has these queries.
  for (int64_t l = 0; l < kLayers; ++l)
    for (int64_t h = 1; h < 4; ++h) {
      const Tensor& w = decoder->layers()[l].mixer->qkv.weight;
      w.slice(0, h * 8, h * 8 + 8).copy_(w.slice(0, 0, 8));
    }
  const std::string refused = message([&] { with_layer({}, decoder, prompts); });
  EXPECT_NE(refused.find("falls at no layer"), std::string::npos) << refused;
}

TEST(Prune, PagesOfLaterLayersAreThoseOfKeptTokensAndForkWithThem) {
  const torch::NoGradGuard no_grad;
  const Decoder decoder = pruned_decoder();
  const int64_t V = decoder->config().vocabulary;
  const auto tokens = prompt_of(kPrompt, V);
  const Pruning pruning(decoder, {.layer = 1, .keep = 0.5});
  const int64_t kept = kPrompt - pruning.dropped(kPrompt, 0);
  const auto model = make_decode_model(decoder);
  const Tensor alone = decoded(*model, tokens, kSteps, V, &pruning);
  // Two sequences of one prompt, whose last page is shared until one writes; later pages for the kept tokens alone.
  const auto session = model->session(3 * pages_of(kPrompt + kSteps), 5, 1, &pruning, 3 * pages_of(kept + kSteps));
  PageTable& pages = session->pages();
  const int64_t prompt = pages.open();
  pages.shorten(prompt, kPrompt - kept);
  ASSERT_TRUE(pages.extend(prompt, kPrompt));
  session->prefill(tokens, prompt);
  const int64_t one = pages.fork(prompt, kPrompt), two = pages.fork(prompt, kPrompt);
  EXPECT_EQ(pages.shorter(two), kPrompt - kept);
  pages.close(prompt);
  for (int64_t t = 0; t < kSteps; ++t) {
    for (const int64_t sequence : {one, two}) ASSERT_TRUE(pages.extend(sequence, kPrompt + t + 1));
    const std::vector<DecodeRow> rows{{(t * 7 + 3) % V, kPrompt + t, one}, {(t * 5 + 1) % V, kPrompt + t, two}};
    const Logits out = session->step(rows, 0);
    EXPECT_TRUE(torch::equal(torch::from_blob(const_cast<float*>(out.row(0)), {V}).to(torch::kFloat64), alone[t + 1]))
        << "step " << t;
  }
}

TEST(PageTable, ALaterTableFollowsAndIsAskedForRoom) {
  PageTable first(6, [](int32_t, int32_t) {}), later(2, [](int32_t, int32_t) {});
  first.lead(later);
  const int64_t a = first.open();
  first.shorten(a, 40);
  EXPECT_TRUE(first.extend(a, 50));
  EXPECT_EQ(later.length(a), 10);
  EXPECT_EQ(later.free_pages(), 1);
  const int64_t b = first.open();
  EXPECT_FALSE(first.extend(b, 20));  // one page is left for later layers
  EXPECT_EQ(first.length(b), 0);
  EXPECT_EQ(first.free_pages(), 2);
  EXPECT_FALSE(first.has_free(1, 2));
  first.close(b);
  const int64_t c = first.fork(a, 50);
  EXPECT_EQ(later.length(c), 10);
  EXPECT_TRUE(first.extend(c, 51));  // a copy of the last page of each
  EXPECT_EQ(later.free_pages(), 0);
  first.close(a);
  first.close(c);
  EXPECT_EQ(later.free_pages(), 2);
}

TEST(Prune, BadValuesAreNamed) {
  const Decoder decoder = pruned_decoder();
  EXPECT_EQ(refusal(decoder, {.layer = 4}), "prune.layer is 4, and the model has 4 layers; wanted 0 to 3, or auto");
  EXPECT_NE(refusal(decoder, {.layer = 1, .keep = 0}).find("prune.keep is 0.000000, wanted above 0, at most 1"),
            std::string::npos);
  const auto of = [](std::vector<std::string> mixers, int64_t layer) {
    return problem_of({.layer = layer}, small_mixers(std::move(mixers)));
  };
  EXPECT_NE(of({"linear", "softmax"}, 0).find("layer 0 is of kind linear; wanted softmax or softmax_rnn"),
            std::string::npos);
  EXPECT_EQ(of({"linear", "softmax"}, 1), "");
  EXPECT_NE(of({"softmax", "routed"}, 1).find("of kind routed"), std::string::npos);
  EXPECT_NE(of({"prefix_linear", "softmax"}, 1).find("prefix_linear"), std::string::npos);
  EXPECT_NE(problem_of({.layer = 1}, pruned_decoder([](DecoderConfig& c) { c.attention.window = 8; })->config())
                .find("sees a window of 8 tokens"),
            std::string::npos);
  EXPECT_NE(
      refusal(pruned_decoder([](DecoderConfig& c) { c.num_attention_heads = c.num_key_value_heads = 1; }), {.layer = 1})
          .find("one head"),
      std::string::npos);
}

}  // namespace ISENTROPE_UNIT
}  // namespace isentrope::model
