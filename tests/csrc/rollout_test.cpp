#include "csrc/rl/rollout.h"

#include <ATen/Parallel.h>
#include <gtest/gtest.h>

#include <cmath>
#include <numeric>

#include "csrc/data/random.h"
#include "csrc/data/source.h"
#include "csrc/model/decode.h"
#include "csrc/rl/rollout_source.h"
#include "csrc/rl/sample.h"
#include "tests/csrc/message.h"

namespace isentrope::rl {
namespace ISENTROPE_UNIT {

using model::Decoder;
using model::DecoderConfig;
using torch::Tensor;

DecoderConfig small_config(int64_t heads = 4, int64_t kv_heads = 2, int64_t head_size = 16) {
  DecoderConfig config;
  config.num_hidden_layers = 2;
  config.hidden_size = heads * head_size;
  config.num_attention_heads = heads;
  config.num_key_value_heads = kv_heads;
  config.intermediate_size = 96;
  config.max_position_embeddings = 70;
  config.vocabulary = 27;
  return config;
}

// Weights four times larger than at the start: distributions far from uniform.
Decoder make(const DecoderConfig& config) {
  Decoder decoder(config, 5);
  torch::NoGradGuard no_grad;
  for (const auto& [name, weight] : decoder->named_weights())
    if (weight.dim() == 2)
      weight.mul_(name == "lm_head.weight" ? 20 : 2);
    else if (name.ends_with(".bias"))
      weight.copy_(torch::cos(torch::arange(weight.numel()) * 2.3) * 0.5);
    else if (name.ends_with("log_temperature"))
      weight.copy_(torch::sin(torch::arange(weight.numel()) * 1.7) * 0.5);
  return decoder;
}

std::vector<std::vector<int64_t>> ragged_prompts(std::vector<int64_t> lengths, int64_t V) {
  std::vector<std::vector<int64_t>> prompts;
  for (const int64_t length : lengths) {
    prompts.emplace_back();
    for (int64_t t = 0; t < length; ++t) prompts.back().push_back((prompts.size() * 11 + t * 7) % V);
  }
  return prompts;
}

const std::vector<int64_t> kLengths{1, 16, 31, 33, 2, 69, 24, 25, 17};

void expect_same(const Completion& a, const Completion& b) {
  EXPECT_EQ(a.tokens, b.tokens);
  EXPECT_EQ(a.logprob, b.logprob);
  EXPECT_EQ(a.entropy, b.entropy);
  EXPECT_EQ(a.stopped, b.stopped);
}

// Log-probabilities [n] and entropies [n] of a completion by the training forward pass.
std::pair<Tensor, Tensor> trained(Decoder& decoder, std::vector<int64_t> sequence, const Completion& c,
                                  double temperature) {
  torch::NoGradGuard no_grad;
  const int64_t start = sequence.size(), n = c.tokens.size();
  sequence.insert(sequence.end(), c.tokens.begin(), c.tokens.end());
  const Tensor logits = decoder(torch::tensor(sequence).unsqueeze(0))[0].slice(0, start - 1, start - 1 + n);
  const Tensor logp = (logits / temperature).log_softmax(-1);
  return {logp.gather(1, torch::tensor(c.tokens).unsqueeze(1)).squeeze(1).to(torch::kFloat64),
          -(logp.exp() * logp).sum(-1).to(torch::kFloat64)};
}

TEST(Rollout, LogprobsAreThoseOfTheTrainingForwardPass) {
  struct Case {
    int64_t heads, kv_heads, head_size;
    double temperature;
    model::AttentionConfig attention = {};
    std::string norm = "pre";
    std::vector<std::string> sigma = {"none"};
    int64_t hidden_size = 0;  // 0: heads · head_size
  };
  for (const auto& [heads, kv_heads, head_size, temperature, attention, norm, sigma, hidden_size] :
       {Case{4, 4, 16, 1.0}, Case{4, 2, 16, 0.7}, Case{3, 1, 8, 1.3}, Case{2, 2, 40, 1.0},
        Case{4, 2, 16, 1.0, {.window = 11}}, Case{4, 2, 16, 1.0, {.softcap = 1.5, .temperature = "head"}},
        Case{4, 2, 16, 1.0, {.window = 20, .softcap = 2, .qk_norm = true, .temperature = "row"}},
        Case{4, 2, 16, 1.0, {}, "pre", {"all"}}, Case{4, 2, 16, 1.0, {}, "post", {"q", "v", "up", "head"}},
        Case{4, 2, 16, 1.0, {}, "none", {"all"}}, Case{4, 2, 16, 1.0, {}, "post"},
        Case{4, 2, 24, 1.0, {.qk_norm = true}, "pre", {"all"}, 31}, Case{4, 2, 16, 1.0, {.bias = "all"}},
        Case{4, 2, 16, 1.0, {.window = 11, .layer_types = {"full_attention", "sliding_attention"}, .bias = "qkv"}}}) {
    DecoderConfig config = small_config(heads, kv_heads, head_size);
    if (hidden_size > 0) {
      config.hidden_size = hidden_size;
      config.head_dim = head_size;
    }
    config.attention = attention;
    config.mlp_bias = attention.bias == "all";
    config.norm = norm;
    config.sigma_reparam.layers = sigma;
    Decoder decoder = make(config), judge = make(config);
    judge->to(torch::kFloat64);
    const auto prompts = ragged_prompts(kLengths, config.vocabulary);
    SamplingConfig sampling;
    sampling.temperature = temperature;
    const auto completions = rollout(decoder, prompts, 5, sampling, {3}, {.seed = 9});
    ASSERT_EQ(completions.size(), prompts.size() * 5);
    double ours = 0, plain = 0, between = 0, entropy_ours = 0, entropy_plain = 0;
    for (const Completion& c : completions) {
      const auto [logp, entropy] = trained(decoder, prompts[c.prompt], c, temperature);
      const auto [true_logp, true_entropy] = trained(judge, prompts[c.prompt], c, temperature);
      const Tensor got = torch::tensor(c.logprob, torch::kFloat64), H = torch::tensor(c.entropy, torch::kFloat64);
      auto largest = [](const Tensor& x) { return x.abs().max().item<double>(); };
      ours = std::max(ours, largest(got - true_logp));
      plain = std::max(plain, largest(logp - true_logp));
      between = std::max(between, largest(got - logp));
      entropy_ours = std::max(entropy_ours, largest(H - true_entropy));
      entropy_plain = std::max(entropy_plain, largest(entropy - true_entropy));
    }
    std::cout << "largest difference of log-probabilities: rollout from training " << between
              << "; from double: rollout " << ours << ", training " << plain << "; entropies: " << entropy_ours << ", "
              << entropy_plain << "\n";
    EXPECT_LE(ours, 2 * plain);
    EXPECT_LE(entropy_ours, 2 * entropy_plain);
  }
}

TEST(Rollout, BothBackendsDrawTheSameTokens) {
  for (const char* norm : {"pre", "post", "none"}) {
    DecoderConfig config = small_config();
    config.hidden_size = 40;  // heads of 16 take 64
    config.head_dim = 16;
    config.attention = {.window = 13, .softcap = 2, .qk_norm = true, .temperature = "row"};
    config.norm = norm;
    if (norm == std::string("pre")) {
      config.attention.layer_types = {"sliding_attention", "full_attention"};
      config.attention.bias = "all";
      config.mlp_bias = true;
    }
    config.sigma_reparam.layers = {"q", "o", "mlp", "head"};
    const Decoder decoder = make(config);
    Decoder wide = make(config);
    wide->to(torch::kFloat64);  // no packed kernels: plain ATen
    const auto prompts = ragged_prompts(kLengths, config.vocabulary);
    const auto fast = rollout(decoder, prompts, 3, {}, {3}, {.seed = 2}),
               slow = rollout(wide, prompts, 3, {}, {3}, {.seed = 2});
    ASSERT_EQ(fast.size(), slow.size());
    for (size_t i = 0; i < fast.size(); ++i) EXPECT_EQ(fast[i].tokens, slow[i].tokens) << norm << " " << i;
  }
}

TEST(Rollout, BitsDependOnNeitherBatchNorThreads) {
  const DecoderConfig config = small_config();
  const Decoder decoder = make(config);
  const auto prompts = ragged_prompts(kLengths, config.vocabulary);
  const int threads = at::get_num_threads();
  at::set_num_threads(1);
  const auto all = rollout(decoder, prompts, 7, {}, {3}, {.seed = 2, .step = 4, .first_prompt = 100});
  for (const int count : {2, 3}) {
    at::set_num_threads(count);
    const auto again = rollout(decoder, prompts, 7, {}, {3}, {.seed = 2, .step = 4, .first_prompt = 100});
    for (size_t i = 0; i < all.size(); ++i) expect_same(all[i], again[i]);
  }
  for (size_t p = 0; p < prompts.size(); ++p) {
    const auto alone = rollout(decoder, {prompts[p]}, 2, {}, {3},
                               {.seed = 2, .step = 4, .first_prompt = 100 + static_cast<int64_t>(p)});
    for (size_t j = 0; j < alone.size(); ++j) expect_same(alone[j], all[p * 7 + j]);
  }
  at::set_num_threads(threads);
}

// The least engine: one sequence at a time, nothing shared.
TEST(Rollout, AgreesWithSequencesDrawnAlone) {
  const DecoderConfig config = small_config();
  const Decoder decoder = make(config);
  const auto prompts = ragged_prompts(kLengths, config.vocabulary);
  const std::vector<int64_t> samples{2, 5, 1, 3, 4, 1, 2, 6, 30};
  const auto all = rollout(decoder, prompts, samples, {}, {3}, {.seed = 2, .step = 4, .first_prompt = 100});
  const auto model = model::make_decode_model(decoder);
  Sampler sampler({}, config.vocabulary);
  size_t at = 0;
  for (size_t p = 0; p < prompts.size(); ++p)
    for (int64_t j = 0; j < samples[p]; ++j, ++at) {
      const auto session = model->session(model::pages_of(config.max_position_embeddings), 1);
      const int64_t table = session->pages().open();
      data::Stream stream(2, data::Purpose::rollout, 4, 100 + p, j);
      std::vector<int64_t> tokens = prompts[p];
      Completion alone;
      for (int64_t t = 0; t < config.max_position_embeddings && !alone.stopped; ++t) {
        session->pages().extend(table, t + 1);
        const model::DecodeRow row{tokens[t], t, table};
        const model::Logits logits = session->step({&row, 1}, 0);
        if (t + 1 < static_cast<int64_t>(tokens.size())) continue;
        if (t + 1 == config.max_position_embeddings) break;
        const Draw draw = sampler.draw(logits.row(0), stream.uniform());
        tokens.push_back(draw.token);
        alone.tokens.push_back(draw.token);
        alone.logprob.push_back(draw.logprob);
        alone.entropy.push_back(draw.entropy);
        alone.stopped = draw.token == 3;
      }
      expect_same(all[at], alone);
      EXPECT_EQ(all[at].prompt, static_cast<int64_t>(p));
      EXPECT_EQ(all[at].sample, j);
    }
  EXPECT_EQ(at, all.size());
}

void expect_all_same(const std::vector<Completion>& a, const std::vector<Completion>& b) {
  ASSERT_EQ(a.size(), b.size());
  for (size_t i = 0; i < a.size(); ++i) {
    expect_same(a[i], b[i]);
    EXPECT_EQ(std::tuple(a[i].prompt, a[i].sample, a[i].parent, a[i].begin),
              std::tuple(b[i].prompt, b[i].sample, b[i].parent, b[i].begin));
  }
}

TEST(Rollout, AFullCacheCostsTimeAlone) {
  const DecoderConfig config = small_config();
  const Decoder decoder = make(config);
  const auto prompts = ragged_prompts(kLengths, config.vocabulary);
  const std::vector<int64_t> samples(prompts.size(), 6);
  const RolloutKey key{.seed = 8};
  const int threads = at::get_num_threads();
  for (const auto& branching :
       {std::optional<Branching>(), std::optional<Branching>({.threshold = 1.0, .window = 3, .sequences = 20})}) {
    at::set_num_threads(1);
    RolloutCounts free, full;
    const auto roomy = rollout(decoder, prompts, samples, {}, {3}, key, {}, branching, &free);
    EXPECT_EQ(free.preempted, 0);
    // 70 tokens are five pages; two more are the least.
    for (const int64_t pages : {7, 8, 11, 14, 25, 40})
      for (const int count : {1, 2, 3}) {
        at::set_num_threads(count);
        const auto tight =
            rollout(decoder, prompts, samples, {}, {3}, key, {.cache_tokens = pages * 16}, branching, &full);
        expect_all_same(roomy, tight);
        EXPECT_EQ(std::tuple(free.drawn, free.branches, free.dropped),
                  std::tuple(full.drawn, full.branches, full.dropped));
        if (pages < 20) {
          EXPECT_GT(full.preempted, 0) << pages << " pages, " << count << " threads";
          EXPECT_GT(full.recomputed, 0);
        }
      }
  }
  at::set_num_threads(threads);
  const auto with = [&](int64_t tokens) { rollout(decoder, prompts, 1, {}, {3}, key, {.cache_tokens = tokens}); };
  EXPECT_NO_THROW(with(112));
  try {
    with(111);
    ADD_FAILURE() << "nothing was thrown";
  } catch (const std::exception& e) {
    EXPECT_NE(std::string(e.what()).find(
                  "rollout.cache_tokens: 111 cannot hold a sequence of 70 tokens; wanted at least 112"),
              std::string::npos)
        << e.what();
  }
}

double window_mean(const Completion& c, int64_t t, int64_t w) {
  double sum = 0;
  for (int64_t i = t; i < t + w; ++i) sum += c.entropy[i];
  return sum / static_cast<double>(w);
}

TEST(Rollout, BranchesLeaveWhereTheWindowIsHigh) {
  const DecoderConfig config = small_config();
  const Decoder decoder = make(config);
  const auto prompts = ragged_prompts({1, 16, 31, 2, 24}, config.vocabulary);
  const std::vector<int64_t> samples{4, 4, 4, 4, 1};
  const RolloutKey key{.seed = 8};
  SamplingConfig sampling;
  sampling.max_new_tokens = 30;
  const auto plain = rollout(decoder, prompts, samples, sampling, {3}, key);
  for (const Branching& b : {Branching{.threshold = 1.2, .window = 3, .sequences = 18},
                             Branching{.threshold = 0.8, .window = 1, .sequences = 64},
                             Branching{.threshold = 1.0, .window = 6, .sequences = 9, .tokens = 60}}) {
    RolloutCounts counts;
    const auto all = rollout(decoder, prompts, samples, sampling, {3}, key, {}, b, &counts);
    std::vector<int64_t> sequences(prompts.size()), tokens(prompts.size());
    size_t roots = 0;
    for (size_t i = 0; i < all.size(); ++i) {
      const Completion& c = all[i];
      ++sequences[c.prompt];
      if (c.parent < 0) {
        expect_same(c, plain[roots++]);  // a branch changes nothing of what it left
        EXPECT_EQ(c.begin, 0);
        continue;
      }
      tokens[c.prompt] += static_cast<int64_t>(c.tokens.size()) - c.begin;
      ASSERT_LT(c.parent, static_cast<int64_t>(i));
      const Completion& parent = all[c.parent];
      EXPECT_EQ(std::pair(c.prompt, c.sample), std::pair(parent.prompt, parent.sample));
      ASSERT_GE(static_cast<int64_t>(c.tokens.size()), c.begin + b.window);
      ASSERT_GE(static_cast<int64_t>(parent.tokens.size()), c.begin + b.window);
      for (int64_t t = 0; t < c.begin; ++t) {
        EXPECT_EQ(c.tokens[t], parent.tokens[t]);
        EXPECT_EQ(c.logprob[t], parent.logprob[t]);
      }
      EXPECT_EQ(c.entropy[c.begin], parent.entropy[c.begin]);  // of one distribution
      EXPECT_GE(window_mean(c, c.begin, b.window), b.threshold);
      EXPECT_GE(window_mean(parent, c.begin, b.window), b.threshold);
      if (parent.parent >= 0) {
        EXPECT_GE(c.begin, parent.begin + b.window);
      }
      for (size_t j = 0; j < i; ++j)
        if (all[j].parent == c.parent) {
          EXPECT_GE(std::abs(all[j].begin - c.begin), b.window);
        }
    }
    EXPECT_EQ(roots, plain.size());
    EXPECT_GT(counts.branches, 3);
    EXPECT_EQ(counts.branches, static_cast<int64_t>(all.size() - roots));
    if (b.window > 1)
      EXPECT_GT(counts.dropped, 0);
    else
      EXPECT_EQ(counts.dropped, 0) << "a window of one is the same for both";
    for (size_t p = 0; p < prompts.size(); ++p) {
      EXPECT_LE(sequences[p], b.sequences);
      if (b.tokens > 0) EXPECT_LE(tokens[p], b.tokens);
    }
  }
}

TEST(Rollout, NothingBranchesWithoutAHighWindowOrRoom) {
  const Decoder decoder = make(small_config());
  const auto prompts = ragged_prompts({1, 16, 31}, 27);
  const std::vector<int64_t> samples{3, 1, 4};
  SamplingConfig sampling;
  sampling.max_new_tokens = 12;
  const auto plain = rollout(decoder, prompts, samples, sampling, {3}, {.seed = 8});
  for (const Branching& b : {Branching{.threshold = 100, .sequences = 20},                // no window is as high
                             Branching{.threshold = 0, .window = 13, .sequences = 20},    // every completion is shorter
                             Branching{.threshold = 0, .sequences = 1},                   // the samples fill the cap
                             Branching{.threshold = 0, .sequences = 20, .tokens = 1}}) {  // no branch is as short
    RolloutCounts counts;
    expect_all_same(rollout(decoder, prompts, samples, sampling, {3}, {.seed = 8}, {}, b, &counts), plain);
    EXPECT_EQ(counts.branches + counts.dropped, 0);
  }
}

TEST(Rollout, Bfloat16ErrsNoMoreThanAModelOfThatType) {
  for (const auto& [heads, kv_heads, head_size] : {std::tuple{4, 2, 16}, std::tuple{6, 1, 8}, std::tuple{2, 2, 40}}) {
    const DecoderConfig config = small_config(heads, kv_heads, head_size);
    Decoder decoder = make(config), judge = make(config), narrow = make(config);
    judge->to(torch::kFloat64);
    narrow->to(torch::kBFloat16);
    const auto prompts = ragged_prompts(kLengths, config.vocabulary);
    double squares = 0, plain_squares = 0;
    for (const Completion& c : rollout(decoder, prompts, 5, {}, {3}, {.seed = 9}, {.dtype = "bfloat16"})) {
      const Tensor truth = trained(judge, prompts[c.prompt], c, 1.0).first;
      squares += (torch::tensor(c.logprob, torch::kFloat64) - truth).square().sum().item<double>();
      plain_squares += (trained(narrow, prompts[c.prompt], c, 1.0).first - truth).square().sum().item<double>();
    }
    std::cout << "error of log-probabilities in bfloat16: rollout " << std::sqrt(squares) << ", plain "
              << std::sqrt(plain_squares) << "\n";
    EXPECT_GT(squares, 0);
    EXPECT_LE(squares, plain_squares);
  }
}

// Products of few rows and of many may be different instructions (csrc/ops/bfloat16_product.cpp).
TEST(Rollout, Bfloat16LogitsDoNotDependOnTheRowsBeside) {
  const DecoderConfig config = small_config(4, 2, 16);
  const auto model = model::make_decode_model(make(config), true);
  const auto logits_of = [&](int64_t count) {  // of the first of count sequences, after three tokens
    const auto session = model->session(count * model::pages_of(8), count);
    std::vector<int64_t> sequences;
    for (int64_t i = 0; i < count; ++i) {
      sequences.push_back(session->pages().open());
      EXPECT_TRUE(session->pages().extend(sequences.back(), 3));
    }
    model::Logits logits{};
    for (int64_t t = 0; t < 3; ++t) {
      std::vector<model::DecodeRow> rows;
      for (int64_t i = 0; i < count; ++i) rows.push_back({(5 * t + i) % config.vocabulary, t, sequences[i]});
      logits = session->step(rows, 0);
    }
    return std::vector<float>(logits.row(0), logits.row(0) + config.vocabulary);
  };
  const std::vector<float> alone = logits_of(1);
  for (const int64_t count : {2, 5, 6, 7, 13, 64, 65, 130}) EXPECT_EQ(logits_of(count), alone) << count << " rows";
}

TEST(Rollout, EveryPartOfTheKeyChangesTheDraws) {
  const Decoder decoder = make(small_config());
  const auto prompts = ragged_prompts({16}, 27);
  const auto base = rollout(decoder, prompts, 2, {}, {}, {.seed = 2});
  EXPECT_NE(base[0].tokens, base[1].tokens);
  for (const RolloutKey& key : {RolloutKey{.seed = 3}, RolloutKey{.seed = 2, .step = 1},
                                RolloutKey{.seed = 2, .first_prompt = 1}, RolloutKey{.seed = 2, .evaluation = true}})
    EXPECT_NE(base[0].tokens, rollout(decoder, prompts, 2, {}, {}, key)[0].tokens);
}

TEST(Rollout, EndsAtStopTokensAndLimits) {
  const Decoder decoder = make(small_config());
  const auto prompts = ragged_prompts(kLengths, 27);
  SamplingConfig sampling;
  sampling.max_new_tokens = 20;
  const std::vector<int64_t> stops{3, 11};
  bool some_stopped = false, some_cut = false;
  for (const Completion& c : rollout(decoder, prompts, 6, sampling, stops, {.seed = 1})) {
    const int64_t limit = std::min<int64_t>(20, 70 - prompts[c.prompt].size());
    ASSERT_EQ(c.tokens.size(), c.logprob.size());
    ASSERT_EQ(c.tokens.size(), c.entropy.size());
    for (size_t t = 0; t < c.tokens.size(); ++t) {
      const bool stop = c.tokens[t] == 3 || c.tokens[t] == 11;
      EXPECT_EQ(stop, c.stopped && t + 1 == c.tokens.size());
    }
    if (!c.stopped) {
      EXPECT_EQ(static_cast<int64_t>(c.tokens.size()), limit);
    }
    (c.stopped ? some_stopped : some_cut) = true;
  }
  EXPECT_TRUE(some_stopped && some_cut);
  // The whole context where no limit is set.
  EXPECT_EQ(rollout(decoder, {{1, 2, 3}}, 1, {}, {}, {})[0].tokens.size(), 67u);
  EXPECT_TRUE(rollout(decoder, {}, 4, {}, {3}, {}).empty());
}

TEST(Rollout, StopTokensWaitForMinNewTokens) {
  const DecoderConfig config = small_config();
  const Decoder decoder = make(config);
  const auto prompts = ragged_prompts({5, 16, 31}, config.vocabulary);
  const std::vector<int64_t> stops{3, 7};
  SamplingConfig sampling;
  sampling.max_new_tokens = 24;
  const auto free = rollout(decoder, prompts, 8, sampling, stops, {.seed = 4});
  sampling.min_new_tokens = 12;
  const auto late = rollout(decoder, prompts, 8, sampling, stops, {.seed = 4});
  int64_t early = 0;
  for (size_t i = 0; i < free.size(); ++i) {
    early += free[i].tokens.size() < 12;
    const auto& tokens = late[i].tokens;
    ASSERT_GE(tokens.size(), 12u);
    for (size_t t = 0; t + 1 < tokens.size(); ++t)
      EXPECT_EQ(std::count(stops.begin(), stops.end(), tokens[t]), 0) << "token " << t;
  }
  EXPECT_GT(early, 0) << "nothing stopped early, so nothing was tested";
}

TEST(Rollout, GreedyTakesTheLikeliest) {
  Decoder decoder = make(small_config());
  const auto prompts = ragged_prompts(kLengths, 27);
  SamplingConfig sampling;
  sampling.temperature = 0;
  torch::NoGradGuard no_grad;
  for (const Completion& c : rollout(decoder, prompts, 1, sampling, {3}, {})) {
    std::vector<int64_t> sequence = prompts[c.prompt];
    const int64_t start = sequence.size(), n = c.tokens.size();
    sequence.insert(sequence.end(), c.tokens.begin(), c.tokens.end());
    const Tensor best = decoder(torch::tensor(sequence).unsqueeze(0))[0].slice(0, start - 1, start - 1 + n).argmax(-1);
    EXPECT_TRUE(torch::equal(best, torch::tensor(c.tokens))) << c.prompt;
    EXPECT_LE(
        torch::abs(torch::tensor(c.logprob) - trained(decoder, prompts[c.prompt], c, 1.0).first).max().item<double>(),
        1e-4);
  }
}

TEST(Rollout, ErrorsNameWhatIsWrong) {
  Decoder decoder = make(small_config());
  auto expect = [&](const std::vector<std::vector<int64_t>>& prompts, int64_t samples,
                    const std::vector<int64_t>& stops, const std::string& text) {
    try {
      rollout(decoder, prompts, samples, {}, stops, {});
      ADD_FAILURE() << "nothing was thrown, wanted: " << text;
    } catch (const std::exception& e) {
      EXPECT_NE(std::string(e.what()).find(text), std::string::npos) << e.what();
    }
  };
  expect({{1}, {}}, 1, {3}, "prompt 1 is empty");
  expect({std::vector<int64_t>(70, 1)}, 1, {3},
         "prompt 0 has 70 tokens and leaves no room in model.max_position_embeddings (70)");
  expect({{1, 27}}, 1, {3}, "prompt 0 holds token 27, outside the vocabulary 0 … 26");
  expect({{1}}, 1, {-1}, "stop token -1");
  expect({{1}}, 0, {3}, "samples is 0");
  torch::NoGradGuard no_grad;
  decoder->head().weight[4].fill_(NAN);
  expect({{1}}, 1, {3}, "not finite");
}

// ---- RolloutSource --------------------------------------------------------------------------------------------------

struct SourceOfSums {
  data::Tokenizer tokenizer{data::TokenizerConfig{}};
  bool flat = false;     // all rewards are equal
  int64_t failures = 0;  // the call of the reward, from now on, that fails
  RolloutConfig config;
  Methods methods;
  Decoder decoder = nullptr;

  SourceOfSums() {
    DecoderConfig model = small_config();
    model.vocabulary = tokenizer.size();
    decoder = make(model);
    config.prompts = 6;
    config.num_generations = 4;
    config.mini_batches = 2;
    config.sampling.max_new_tokens = 12;
  }
  RolloutSource make_source() {
    data::DataConfig sums;
    sums.tint.emplace().terms = {2};
    const RewardFunction even = [this](const auto&, const std::vector<Answer>& completions, const auto&, double) {
      if (failures > 0 && --failures == 0) throw std::runtime_error("the reward failed");
      std::vector<double> scores;
      for (const Answer& answer : completions) scores.push_back(flat || answer.text[0] % 2 == 0);
      return scores;
    };
    return {config,
            decoder,
            tokenizer,
            data::make_source(sums, 1, data::Split::train),
            RewardSum({{.kind = "even", .weight = 0.5}}, tokenizer.eos(), {{"even", even}}),
            methods,
            7};
  }
};

TEST(RolloutSource, AresGoesOnFromItsState) {
  SourceOfSums sums;
  RolloutSource plain = sums.make_source();
  const data::StepData unshaped = plain.next(0);
  EXPECT_FALSE(unshaped.updates[0].ref_kl_weight.defined() || unshaped.updates[0].ref_kl_part.defined());

  sums.methods.reward = {methods::AresConfig{.window = 2, .kl = methods::AresKlConfig{.every = 1, .inside = 0.5}}};
  RolloutSource whole = sums.make_source(), resumed = sums.make_source();
  const auto step = [](RolloutSource& source, int64_t s) {
    data::StepData data = source.next(s);
    for (size_t u = 0; u < data.updates.size(); ++u)
      source.observe({{"ref_kl/hard", 0.004 * static_cast<double>(s)}, {"ref_kl/easy", 0.02}, {"loss", 1}});
    source.commit();
    return data;
  };
  double shaped = 0;
  for (int64_t s = 0; s < 3; ++s) {
    const data::StepData data = step(whole, s);
    if (s > 0) continue;
    for (int u = 0; u < 2; ++u) {
      EXPECT_TRUE(torch::equal(data.updates[u].target, unshaped.updates[u].target));
      shaped += (data.updates[u].advantage - unshaped.updates[u].advantage).abs().sum().item<double>();
    }
  }
  EXPECT_GT(shaped, 0) << "no reward was shaped";
  resumed.restore(whole.state());
  bool inside = false, steered = false;
  for (int64_t s = 3; s < 5; ++s) {
    const data::StepData a = step(whole, s), b = step(resumed, s);
    EXPECT_EQ(a.stats, b.stats);
    for (int u = 0; u < 2; ++u) {
      const data::Batch &x = a.updates[u], &y = b.updates[u];
      EXPECT_TRUE(torch::equal(x.tokens, y.tokens) && torch::equal(x.advantage, y.advantage) &&
                  torch::equal(x.ref_kl_weight, y.ref_kl_weight) && torch::equal(x.ref_kl_part, y.ref_kl_part));
      EXPECT_EQ(x.ref_kl_part.sizes(), (std::vector<int64_t>{12}));
      EXPECT_TRUE(x.ref_kl_weight.masked_select(x.target == data::kIgnore).eq(1).all().item<bool>());
      const Tensor hard = x.ref_kl_weight.index({x.ref_kl_part == methods::kHard})
                              .masked_select(x.target.index({x.ref_kl_part == methods::kHard}) != data::kIgnore);
      const float beta = static_cast<float>(a.stats.at("ares/beta/hard"));
      EXPECT_TRUE(
          hard.eq(beta).logical_or(hard.eq(static_cast<float>(a.stats.at("ares/beta/hard") * 0.5))).all().item<bool>());
      inside = inside || hard.ne(beta).any().item<bool>();
      steered = steered || beta != 1;
    }
  }
  EXPECT_TRUE(inside && steered) << "no window was high, or no weight moved: nothing was tested";

  EXPECT_THROW(resumed.restore(plain.state()), std::runtime_error);
}

void expect_same_step(const data::StepData& a, const data::StepData& b) {
  EXPECT_EQ(a.stats, b.stats);
  ASSERT_EQ(a.updates.size(), b.updates.size());
  for (size_t u = 0; u < a.updates.size(); ++u)
    EXPECT_TRUE(torch::equal(a.updates[u].tokens, b.updates[u].tokens) &&
                torch::equal(a.updates[u].advantage, b.updates[u].advantage));
}

void expect_same_state(const std::map<std::string, Tensor>& a, const std::map<std::string, Tensor>& b) {
  ASSERT_EQ(a.size(), b.size());
  for (const auto& [name, x] : a)  // NaN stands for what is not there yet
    EXPECT_TRUE(torch::equal(torch::nan_to_num(x, -1), torch::nan_to_num(b.at(name), -1))) << name;
}

// A step that breaks off, wherever it does, is as if it had not begun: with all that passes from step to step.
TEST(RolloutSource, AStepThatBreaksOffLeavesNothingBehind) {
  SourceOfSums sums;
  // several draws a step, so that a failure can be in the middle of one
  sums.methods.reward = {methods::FilterGroups{.by = "right"},
                         methods::AresConfig{.kl = methods::AresKlConfig{.every = 1}}};
  sums.config.branch.emplace().quantile = 0.5;
  sums.config.allocation.emplace().least = 1;
  RolloutSource whole = sums.make_source(), broken = sums.make_source();
  const std::map<std::string, double> seen{{"ref_kl/hard", 0.02}, {"ref_kl/medium", 0.03}, {"ref_kl/easy", 0.04}};
  int64_t second_draws = 0;
  for (int64_t s = 0; s < 3; ++s) {
    const auto before = broken.state();
    for (const int64_t at : {1, 2}) {
      sums.failures = at;
      try {
        broken.next(s);
        sums.failures = 0;  // this step has one draw
      } catch (const std::runtime_error&) {
        second_draws += at == 2;
      }
      expect_same_state(broken.state(), before);
    }
    broken.next(s);  // an update fails after this one
    broken.observe(seen);
    expect_same_state(broken.state(), before);

    const data::StepData a = whole.next(s), b = broken.next(s);
    expect_same_step(a, b);
    for (RolloutSource* source : {&whole, &broken}) source->observe(seen), source->commit();
    expect_same_state(whole.state(), broken.state());
    EXPECT_FALSE(torch::equal(broken.state().at("taken"), before.at("taken")));
    EXPECT_FALSE(torch::equal(broken.state().at("reward/1/ares"), before.at("reward/1/ares")));
  }
  EXPECT_GT(second_draws, 0) << "no failure was in the middle of a step";
}

// Empty steps in a row are counted over a resumed run, and however often the one that is too many is tried again.
TEST(RolloutSource, EmptyStepsAreCountedToTheLimitAndBeyond) {
  SourceOfSums sums;
  sums.flat = true;
  sums.methods.reward = {methods::FilterGroups{.max_draws = 1, .max_empty_steps = 2}};
  RolloutSource source = sums.make_source();
  EXPECT_TRUE(source.next(0).updates.empty());
  source.commit();
  const auto stops = [&](RolloutSource& s) {
    expect_all(message([&] { s.next(1); }), {"reward, filter_groups", "steps in a row", "max_draws"});
  };
  stops(source);
  stops(source);
  RolloutSource resumed = sums.make_source();
  resumed.restore(source.state());
  stops(resumed);
  sums.methods.reward = {methods::FilterGroups{.max_draws = 1, .max_empty_steps = 1}};  // below what was counted
  RolloutSource stricter = sums.make_source();
  stricter.restore(source.state());
  stops(stricter);
}

TEST(RolloutSource, APromptThatDoesNotFitIsShown) {
  SourceOfSums sums;
  struct One : data::ExampleSource {
    std::string prompt;
    std::vector<data::Example> take(int64_t, int64_t count) const override {
      return std::vector<data::Example>(count, {.prompt = prompt, .completion = "", .answer = ""});
    }
  };
  const auto refused = [&](const std::string& prompt) {
    auto examples = std::make_shared<One>();
    examples->prompt = prompt;
    RolloutSource source(sums.config, sums.decoder, sums.tokenizer, examples, RewardSum({{}}, sums.tokenizer.eos()), {},
                         7);
    return message([&] { source.next(0); });
  };
  expect_all(refused(std::string(70, '1')),
             {"the prompt \"111", "70 tokens", "model.max_position_embeddings (70)", "data.truncation"});
  EXPECT_LT(refused(std::string(1 << 20, '1')).size(), 500u);
  expect_all(refused("1+Z="), {"the prompt \"1+Z=\"", "'Z'"});
  expect_all(refused(""), {"the prompt \"\" is empty"});
}

// Each estimator and what it asks of the rollouts: greedy completions, Σ p²; and each that changes advantages, behind one. The
// advantages stand where targets are.
TEST(RolloutSource, EveryEstimatorMakesAdvantages) {
  SourceOfSums sums;
  sums.config.num_generations = 6;
  methods::Advantage::each([&]<class Method>(const Method& method) {
    if constexpr (std::is_base_of_v<methods::OwnMethod, Method>) return;
    SCOPED_TRACE(Method::kKind);
    if constexpr (std::is_same_v<Method, methods::Hicra>) return;  // needs a file: tests/python/test_method_configs.py
    constexpr bool makes = requires(methods::Rewarded r) { method.estimate(r); }
    || requires(methods::Completions c) { method.estimate_tokens(c); };
    if constexpr (makes) {
      sums.methods.advantage = {method};
    } else {
      Method one = method;
      if constexpr (std::is_same_v<Method, methods::Empg>) one.marker = "1";
      sums.methods.advantage = {methods::DrGrpo(), one};
    }
    EXPECT_EQ(sums.methods.problem(sums.config), "");
    const data::StepData data = sums.make_source().next(0);
    double sum = 0;
    for (const data::Batch& batch : data.updates) {
      EXPECT_TRUE(batch.advantage.isfinite().all().item<bool>());
      EXPECT_TRUE(batch.advantage.masked_select(batch.target == data::kIgnore).eq(0).all().item<bool>());
      sum += batch.advantage.abs().sum().item<double>();
    }
    EXPECT_GT(sum, 0);
  });
}

TEST(RolloutSource, AMarkerThatCannotBeWrittenIsRefused) {
  SourceOfSums sums;
  sums.methods.advantage = {methods::DrGrpo(), methods::Empg()};
  expect_all(message([&] { sums.make_source(); }), {"marker: the tokenizer cannot write \"\n\n\""});
  sums.methods.advantage = {};
  sums.methods.reward = {methods::Pear()};
  expect_all(message([&] { sums.make_source(); }), {"tag: the tokenizer cannot write \"</think>\""});
}

// A method with a window of steps, and one with a state that a checkpoint holds.
TEST(RolloutSource, ShapingKnowsTheStepAndKeepsItsState) {
  SourceOfSums sums;
  const auto advantages = [&](RolloutSource& source, int64_t step) {
    std::vector<float> all;
    for (const data::Batch& batch : source.next(step).updates) {
      const Tensor flat = batch.advantage.flatten();
      all.insert(all.end(), flat.const_data_ptr<float>(), flat.const_data_ptr<float>() + flat.numel());
    }
    source.commit();
    return all;
  };
  sums.methods.advantage = {methods::DrGrpo()};
  RolloutSource plain = sums.make_source();
  methods::Position late;
  late.start_step = 1;
  sums.methods.advantage = {methods::DrGrpo(), late};
  RolloutSource shaped = sums.make_source();
  EXPECT_EQ(advantages(plain, 0), advantages(shaped, 0));
  EXPECT_NE(advantages(plain, 1), advantages(shaped, 1));

  // One whose state grows with the prompts that it has seen.
  sums.methods.reward = {methods::CeehReward()};
  RolloutSource grown = sums.make_source(), again = sums.make_source();
  advantages(grown, 0);
  const Tensor record = grown.state().at("reward/0/ceeh");
  EXPECT_GT(record.numel(), 3);
  again.restore(grown.state());
  EXPECT_EQ(advantages(grown, 1), advantages(again, 1));
  EXPECT_TRUE(torch::allclose(grown.state().at("reward/0/ceeh"), again.state().at("reward/0/ceeh"), 0, 0, true));
  sums.methods.reward = {};

  sums.methods.advantage = {methods::DrGrpo(), methods::Gepo{.rate = 0.5}};
  RolloutSource first = sums.make_source(), resumed = sums.make_source();
  advantages(first, 0);
  const auto state = first.state();
  EXPECT_TRUE(state.contains("advantage/1/gepo"));
  resumed.restore(state);
  EXPECT_EQ(advantages(first, 1), advantages(resumed, 1));
  EXPECT_TRUE(torch::equal(first.state().at("advantage/1/gepo"), resumed.state().at("advantage/1/gepo")));
  EXPECT_FALSE(torch::equal(first.state().at("advantage/1/gepo"), state.at("advantage/1/gepo")));
}

// The advantages of ReMax: what a completion has more than the greedy one of its prompt, by hand.
TEST(RolloutSource, RemaxComparesWithTheGreedyCompletion) {
  SourceOfSums sums;
  sums.methods.advantage = {methods::Remax()};
  RolloutSource source = sums.make_source();
  const data::StepData data = source.next(0);
  int64_t rows = 0;
  for (const data::Batch& batch : data.updates)
    for (int64_t row = 0; row < batch.size(); ++row, ++rows) {
      const int64_t prompt =
          batch.lengths[row].item<int64_t>() - (batch.target[row] != data::kIgnore).sum().item<int64_t>();
      const Tensor tokens = batch.tokens[row].slice(0, 0, prompt).contiguous();
      SamplingConfig greedy = sums.config.sampling;
      greedy.temperature = 0;
      const std::vector<int64_t> ids(tokens.const_data_ptr<int64_t>(), tokens.const_data_ptr<int64_t>() + prompt);
      const auto drawn = rollout(sums.decoder, {ids}, 1, greedy, sums.tokenizer.end_ids(), {});
      const auto right = [&](int64_t token) { return sums.tokenizer.decode({token})[0] % 2 == 0 ? 0.5f : 0.0f; };
      const Tensor targets = batch.target[row].masked_select(batch.target[row] != data::kIgnore);
      const float wanted = right(targets[0].item<int64_t>()) - right(drawn[0].tokens[0]);
      EXPECT_TRUE(batch.advantage[row].masked_select(batch.target[row] != data::kIgnore).eq(wanted).all().item<bool>());
    }
  EXPECT_EQ(rows, 24);
}

// Which groups a filter keeps, it decides by right and wrong: shaped rewards would differ in nearly all.
TEST(RolloutSource, TheFilterOfGroupsLooksAtAccuracies) {
  SourceOfSums sums;
  sums.methods.reward = {methods::AresConfig{.window = 2}, methods::FilterGroups{.by = "right"}};
  const data::StepData data = sums.make_source().next(0);
  EXPECT_GT(data.stats.at("groups/flat"), 0) << "no group was flat, so nothing was tested";
  EXPECT_EQ(data.stats.at("ares/groups/easy") + data.stats.at("ares/groups/medium") + data.stats.at("ares/groups/hard"),
            6);
  for (const data::Batch& batch : data.updates)
    for (int64_t group = 0; group < 3; ++group) {
      int64_t right = 0;
      for (int64_t row = 4 * group; row < 4 * group + 4; ++row) {
        const Tensor drawn = batch.target[row].masked_select(batch.target[row] != data::kIgnore);
        right += sums.tokenizer.decode({drawn[0].item<int64_t>()})[0] % 2 == 0;
        // The last token of a row is a target and, beside padding, the last that is no padding.
        const int64_t last = (batch.target[row] != data::kIgnore).nonzero().max().item<int64_t>();
        EXPECT_EQ(batch.lengths[row].item<int64_t>(), last + 2);
        EXPECT_EQ(batch.real()[row].sum().item<int64_t>(), last + 2);
      }
      EXPECT_TRUE(0 < right && right < 4) << right << " of 4 are right";
    }
}

// Uniforms in the middle of n equal intervals: a token of probability p is drawn n·p times, give or take one.
void expect_frequencies(const SamplingConfig& config, const std::vector<float>& logits,
                        const std::vector<double>& wanted, const std::vector<int64_t>& forbidden = {}) {
  Sampler sampler(config, logits.size());
  const int64_t n = 20000;
  std::vector<int64_t> count(logits.size());
  for (int64_t i = 0; i < n; ++i) ++count[sampler.draw(logits.data(), (i + 0.5) / n, forbidden).token];
  for (size_t v = 0; v < logits.size(); ++v)
    EXPECT_NEAR(static_cast<double>(count[v]), n * wanted[v], 1.01) << "token " << v;
}

TEST(Sampler, FrequenciesAreExact) {
  const double z = -INFINITY;
  const std::vector<double> p{0.05, 0.3, 0.0, 0.2, 0.25, 0.2};
  std::vector<float> logits;
  for (const double value : p)
    logits.push_back(value > 0 ? static_cast<float>(std::log(value) + 3) : static_cast<float>(z));
  expect_frequencies({}, logits, p);
  // Temperature 0.5 squares the probabilities.
  std::vector<double> squares;
  for (const double value : p) squares.push_back(value * value);
  const double sum = std::accumulate(squares.begin(), squares.end(), 0.0);
  for (double& value : squares) value /= sum;
  expect_frequencies({.temperature = 0.5}, logits, squares);
  expect_frequencies({.top_k = 2}, logits, {0, 0.3 / 0.55, 0, 0, 0.25 / 0.55, 0});
  // Equal probabilities rank by token: 3 is kept, 5 is not.
  expect_frequencies({.top_k = 3}, logits, {0, 0.3 / 0.75, 0, 0.2 / 0.75, 0.25 / 0.75, 0});
  expect_frequencies({.top_p = 0.5}, logits, {0, 0.3 / 0.55, 0, 0, 0.25 / 0.55, 0});
  expect_frequencies({.top_p = 0.9}, logits, {0, 0.3 / 0.95, 0, 0.2 / 0.95, 0.25 / 0.95, 0.2 / 0.95});
  expect_frequencies({.top_p = 0}, logits, {0, 1, 0, 0, 0, 0});
  // top_p counts what top_k left as 1: 0.3 / 0.75 = 0.4 < 0.7 < 0.55 / 0.75.
  expect_frequencies({.top_k = 3, .top_p = 0.7}, logits, {0, 0.3 / 0.55, 0, 0, 0.25 / 0.55, 0});
  expect_frequencies({.temperature = 0}, logits, {0, 1, 0, 0, 0, 0});
  expect_frequencies({.top_k = 100}, logits, p);
  expect_frequencies({}, logits, {0.05 / 0.7, 0, 0, 0.2 / 0.7, 0.25 / 0.7, 0.2 / 0.7}, {1});
  expect_frequencies({.top_k = 2}, logits, {0, 0, 0, 0.5, 0, 0.5}, {1, 4});
  expect_frequencies({.temperature = 0}, logits, {0, 0, 0, 0, 1, 0}, {1});
}

TEST(Sampler, SaysWhatIsNotFinite) {
  const auto refused = [](double temperature, std::vector<float> logits) {
    return message([&] { Sampler({.temperature = temperature}, logits.size()).draw(logits.data(), 0.5); });
  };
  expect_all(refused(1e-320, {1, 2}), {"temperature (", "e-321)", "float32"});  // 1 / temperature is infinite
  expect_all(refused(1e-38, {100, 2}), {"temperature (1e-38)", "float32"});
  for (const float bad : {NAN, INFINITY}) expect_all(refused(1, {bad, 2}), {"weights are not finite"});
  expect_all(refused(1, {-INFINITY, -INFINITY}), {"weights are not finite"});
  EXPECT_EQ(refused(1e-37, {1, 2}), "no error");
}

TEST(Sampler, LogprobAndEntropyAreOfTheWholeDistribution) {
  std::vector<float> logits(1009);
  for (size_t i = 0; i < logits.size(); ++i) logits[i] = 8 * std::sin(0.37f * i);
  logits[100] = -INFINITY;
  for (const double temperature : {0.0, 0.6, 1.0, 2.0}) {
    const double T = temperature == 0 ? 1.0 : temperature;
    double top = -INFINITY, sum = 0, H = 0;
    for (const float x : logits) top = std::max(top, x / T);
    for (const float x : logits) sum += std::exp(x / T - top);
    for (const float x : logits)
      if (std::isfinite(x)) H -= std::exp(x / T - top) / sum * (x / T - top - std::log(sum));
    for (const int64_t top_k : {0, 3}) {
      const Draw draw = Sampler({.temperature = temperature, .top_k = top_k}, logits.size())
                            .draw(logits.data(), 0.61, std::vector<int64_t>{4, 21});
      const double wanted = logits[draw.token] / T - top - std::log(sum);
      // Sums of 1009 floats in vectors: a few units in the last place of the largest term.
      EXPECT_NEAR(draw.logprob, wanted, 8 * 0x1p-23 * std::abs(top)) << temperature;
      EXPECT_NEAR(draw.entropy, H, 8 * 0x1p-23 * H) << temperature;
    }
  }
}

}  // namespace ISENTROPE_UNIT
}  // namespace isentrope::rl
