// What cuts and changes a draw beside temperature, top-k and top-p: min_p, repetition_penalty, stop, bad_words.
#include <ATen/Parallel.h>
#include <gtest/gtest.h>

#include <cmath>
#include <numeric>
#include <set>

#include "csrc/rl/reward.h"
#include "csrc/rl/rollout.h"
#include "csrc/rl/sample.h"
#include "csrc/rl/text_rules.h"
#include "tests/csrc/message.h"

namespace isentrope::rl {
namespace ISENTROPE_UNIT {

using data::Tokenizer;
using model::Decoder;
using torch::Tensor;

// Uniforms in the middle of n equal intervals: a token of probability p is drawn n·p times, give or take one.
void expect_frequencies(const SamplingConfig& config, const std::vector<float>& logits,
                        const std::vector<double>& wanted, const std::vector<int64_t>& forbidden = {},
                        const std::vector<int64_t>& seen = {}) {
  Sampler sampler(config, static_cast<int64_t>(logits.size()));
  const int64_t n = 20000;
  const double sum = std::accumulate(wanted.begin(), wanted.end(), 0.0);
  std::vector<int64_t> count(logits.size());
  for (int64_t i = 0; i < n; ++i) ++count[sampler.draw(logits.data(), (i + 0.5) / n, forbidden, seen).token];
  for (size_t v = 0; v < logits.size(); ++v)
    EXPECT_NEAR(static_cast<double>(count[v]), n * wanted[v] / sum, 1.01) << "token " << v;
}

std::vector<float> logits_of(const std::vector<double>& p, double shift) {
  std::vector<float> logits;
  for (const double value : p) logits.push_back(static_cast<float>(std::log(value) + shift));
  return logits;
}

TEST(Sampler, MinPCutsBelowAShareOfTheLikeliest) {
  const std::vector<double> p{0.05, 0.3, 0.01, 0.2, 0.24, 0.2};
  const std::vector<float> logits = logits_of(p, 3);
  expect_frequencies({.min_p = 0.1}, logits, {0.05, 0.3, 0, 0.2, 0.24, 0.2});
  expect_frequencies({.min_p = 0.7}, logits, {0, 0.3, 0, 0, 0.24, 0});
  expect_frequencies({.min_p = 1}, logits, {0, 1, 0, 0, 0, 0});
  // After the temperature: the squares 0.09 and 0.04 … are 0.44 of the likeliest.
  expect_frequencies({.temperature = 0.5, .min_p = 0.5}, logits, {0, 0.09, 0, 0, 0.0576, 0});
  // After top_p, which counts all: 0.3 + 0.24 < 0.6 keeps the first of the twos, and min_p none of them.
  expect_frequencies({.top_p = 0.6}, logits, {0, 0.3, 0, 0.2, 0.24, 0});
  expect_frequencies({.top_p = 0.6, .min_p = 0.7}, logits, {0, 0.3, 0, 0, 0.24, 0});
  expect_frequencies({.top_k = 2, .min_p = 0.1}, logits, {0, 0.3, 0, 0, 0.24, 0});
  expect_frequencies({.top_k = 3, .top_p = 0.7, .min_p = 0.9}, logits, {0, 1, 0, 0, 0, 0});
  // Of the likeliest that is allowed.
  expect_frequencies({.min_p = 0.9}, logits, {0, 0, 0, 0, 1, 0}, {1});
  expect_frequencies({.temperature = 0, .min_p = 0.5}, logits, {0, 1, 0, 0, 0, 0});
}

TEST(Sampler, RepetitionPenaltyTakesEachTokenOnce) {
  const std::vector<float> logits{1.5, -0.5, 0.25, 2, -2, 0};
  const auto wanted = [&](const std::set<int64_t>& seen, float c, double temperature = 1) {
    std::vector<double> p;
    for (int64_t v = 0; v < 6; ++v) {
      const float x = logits[v];
      p.push_back(std::exp((seen.contains(v) ? (x < 0 ? x * c : x / c) : x) / temperature));
    }
    return p;
  };
  expect_frequencies({.repetition_penalty = 1.5}, logits, wanted({0, 1, 5}, 1.5), {}, {0, 1, 0, 0, 5});
  expect_frequencies({.repetition_penalty = 0.5}, logits, wanted({3, 4}, 0.5), {}, {4, 3, 4});
  expect_frequencies({.temperature = 2, .repetition_penalty = 3}, logits, wanted({3}, 3, 2), {}, {3});
  expect_frequencies({.repetition_penalty = 1.5}, logits, wanted({}, 1));
  expect_frequencies({.temperature = 0, .repetition_penalty = 2}, logits, {1, 0, 0, 0, 0, 0}, {}, {3});
  // A token that is forbidden stays so.
  std::vector<double> p = wanted({3}, 3);
  p[3] = 0;
  expect_frequencies({.repetition_penalty = 3}, logits, p, {3}, {3});
}

TEST(Sampler, WhatIsRecordedKnowsOfNoneOfThese) {
  std::vector<float> logits(311);
  for (size_t i = 0; i < logits.size(); ++i) logits[i] = 3 * std::sin(0.37f * i);
  const std::vector<int64_t> forbidden{4, 21, 300}, seen{1, 5, 5, 40, 200};
  for (const double temperature : {0.0, 0.6, 1.0}) {
    Sampler plain({.temperature = temperature}, 311);
    const Draw own = plain.draw(logits.data(), 0.5);
    const Tensor logp = (torch::tensor(logits, torch::kFloat64) / (temperature > 0 ? temperature : 1.0)).log_softmax(0);
    Sampler changed({.temperature = temperature, .min_p = 0.3, .repetition_penalty = 1.7}, 311);
    for (const double uniform : {0.1, 0.5, 0.9}) {
      const Draw draw = changed.draw(logits.data(), uniform, forbidden, seen);
      EXPECT_EQ(draw.entropy, own.entropy);
      EXPECT_NEAR(draw.logprob, logp[draw.token].item<double>(), 1e-5);
    }
  }
}

// π(token) / μ(token) of a token that a cut leaves is the mass of π that it leaves, whatever the token.
TEST(Sampler, RecordsTheDistributionThatTheTokenWasDrawnFrom) {
  const std::vector<double> p{0.05, 0.3, 0.01, 0.2, 0.24, 0.2};
  const std::vector<float> logits = logits_of(p, 3);
  const auto expect = [&](const SamplingConfig& config, const std::vector<double>& kept,
                          const std::vector<int64_t>& forbidden = {}, const std::vector<int64_t>& seen = {},
                          double whole = 1) {
    Sampler sampler(config, 6);
    const double mass = std::accumulate(kept.begin(), kept.end(), 0.0);
    for (int i = 0; i < 50; ++i) {
      const Draw draw = sampler.draw(logits.data(), (i + 0.5) / 50, forbidden, seen);
      EXPECT_NEAR(std::exp(static_cast<double>(draw.sampling_logprob)), kept[draw.token] / mass, 1e-6) << draw.token;
      if (seen.empty()) {
        EXPECT_NEAR(std::exp(static_cast<double>(draw.logprob - draw.sampling_logprob)), mass / whole, 1e-6);
      }
    }
  };
  expect({.top_p = 0.5}, {0, 0.3, 0, 0, 0.24, 0});  // weights of 0.54
  expect({.top_k = 3}, {0, 0.3, 0, 0.2, 0.24, 0});
  expect({.top_k = 3, .top_p = 0.7}, {0, 0.3, 0, 0, 0.24, 0});
  expect({.min_p = 0.1}, {0.05, 0.3, 0, 0.2, 0.24, 0.2});
  expect({.top_p = 0.6, .min_p = 0.7}, {0, 0.3, 0, 0, 0.24, 0});
  expect({.min_p = 0.9}, {0, 0, 0, 0, 0.24, 0}, {1});
  expect({}, {0.05, 0.3, 0.01, 0.2, 0, 0.2}, {4});
  expect({.temperature = 0.5, .top_p = 0.6}, {0, 0.09, 0, 0, 0.0576, 0}, {}, {},
         0.0025 + 0.09 + 0.0001 + 0.0976 + 0.04);
  // x / 2 of a logit above 0: e^(log(0.3) / 2 + 1.5), beside 0.24 e³ and so on.
  const double e = std::exp(3.0);
  expect({.repetition_penalty = 2}, {0.05 * e, std::sqrt(0.3 * e), 0.01 * e, 0.2 * e, 0.24 * e, 0.2 * e}, {}, {1, 1});
  for (const double temperature : {0.7, 1.0})  // nothing is cut: the same bits
    for (const SamplingConfig& config : {SamplingConfig{.temperature = temperature},
                                         SamplingConfig{.temperature = temperature, .repetition_penalty = 2}}) {
      const Draw draw = Sampler(config, 6).draw(logits.data(), 0.4);
      EXPECT_EQ(draw.logprob, draw.sampling_logprob);
    }
  EXPECT_EQ(Sampler({.temperature = 0, .min_p = 0.5}, 6).draw(logits.data(), 0.4).sampling_logprob, 0);
}

TEST(Sampler, SaysWhyNothingIsLeft) {
  const std::vector<float> logits{1, -INFINITY, 2};
  const auto refused = [&](const SamplingConfig& config, const std::vector<int64_t>& forbidden) {
    Sampler sampler(config, 3);
    return message([&] { sampler.draw(logits.data(), 0.5, forbidden, std::vector<int64_t>{2}); });
  };
  EXPECT_THROW(Sampler({}, 3).draw(logits.data(), 0.5, std::vector<int64_t>{0, 2}), NothingAllowed);
  expect_all(refused({}, {0, 2}), {"every token that the logits allow is forbidden"});
  expect_all(refused({.repetition_penalty = 1e-39}, {}), {"float32", "repetition_penalty (1e-39)"});
  EXPECT_EQ(refused({}, {0}), "no error");
}

// ---- texts ------------------------------------------------------------------------------------------------------

const Tokenizer& bytes() {
  static const Tokenizer tokenizer({.kind = "bytes"});
  return tokenizer;
}

TEST(TextRules, AStopTextSpansTokens) {
  const TextRules rules({"end", "\n\n", "é"}, {}, bytes());
  const auto ends_at = [&](const std::string& text) {
    const std::vector<int64_t> ids = bytes().encode(text);
    for (size_t n = 1; n <= ids.size(); ++n)
      if (rules.stops({ids.data(), n})) return static_cast<int64_t>(n);
    return int64_t{-1};
  };
  EXPECT_EQ(ends_at("the end."), 7);
  EXPECT_EQ(ends_at("enend"), 5);
  EXPECT_EQ(ends_at("eenndd"), -1);
  EXPECT_EQ(ends_at("a\n\n\n"), 3);
  EXPECT_EQ(ends_at("café"), 5);
  EXPECT_EQ(ends_at("en"), -1);
  // A text that was there before, which min_new_tokens let pass, ends nothing later.
  const std::vector<int64_t> later = bytes().encode("end.x");
  for (const size_t n : {4, 5}) EXPECT_FALSE(rules.stops({later.data(), n}));
  EXPECT_FALSE(rules.stops({}));
  EXPECT_FALSE(TextRules({}, {"x"}, bytes()).stops(later));
  // Padding and the end of sequence, which have no text or another.
  std::vector<int64_t> padded = bytes().encode("end");
  padded.insert(padded.begin() + 1, bytes().pad_id());
  EXPECT_TRUE(rules.stops(padded));
  padded.push_back(bytes().pad_id());
  EXPECT_FALSE(rules.stops(padded));
}

TEST(TextRules, BadWordsAreForbiddenAtTheirLastToken) {
  const TextRules rules({}, {"cat", "q"}, bytes());
  const auto forbidden = [&](const std::string& before) {
    std::vector<int64_t> ids;
    rules.forbid(bytes().encode(before), ids);
    return std::set<int64_t>(ids.begin(), ids.end());
  };
  const int64_t q = 1 + 'q', t = 1 + 't';
  EXPECT_EQ(forbidden(""), (std::set{q}));
  EXPECT_EQ(forbidden("the ca"), (std::set{q, t}));
  EXPECT_EQ(forbidden("ca"), (std::set{q, t}));
  EXPECT_EQ(forbidden("cac"), (std::set{q}));
  EXPECT_EQ(rules.bad_sequences().size(), 4u) << "cat, q, and both behind a space";
  // An alphabet without a space has the word alone.
  EXPECT_EQ(TextRules({}, {"a+"}, Tokenizer({})).bad_sequences(), (std::vector<std::vector<int64_t>>{{11, 19}}));
}

TEST(TextRules, RefusesWhatCannotBeMeant) {
  const Tokenizer sums({}), one({.characters = "A."});
  const auto refused = [](const std::vector<std::string>& stop, const std::vector<std::string>& bad,
                          const Tokenizer& tokenizer) {
    return message<std::invalid_argument>([&] { TextRules(stop, bad, tokenizer); });
  };
  expect_all(refused({"a", ""}, {}, sums), {"stop.1: the text is empty"});
  expect_all(refused({"a\n"}, {}, sums), {"stop.0: no tokens of the tokenizer can write", "a\\n"});
  EXPECT_EQ(refused({"a+:b"}, {}, sums), "no error");
  EXPECT_EQ(refused({"\xff\n"}, {}, bytes()), "no error");
  expect_all(refused({}, {""}, sums), {"bad_words.0: the text is empty"});
  expect_all(refused({}, {"a", "Z"}, sums), {"bad_words.1: ", "'Z'", "is not in the alphabet"});
  expect_all(refused({}, {"."}, sums), {"bad_words.0: ", "ends a sequence", "min_new_tokens"});
  EXPECT_EQ(refused({}, {"a."}, sums), "no error");
  expect_all(refused({}, {"A"}, one), {"bad_words: together they are all tokens"});
  EXPECT_EQ(refused({}, {"AA"}, one), "no error");
}

// ---- rollouts ---------------------------------------------------------------------------------------------------

struct Drawer {
  Tokenizer tokenizer{data::TokenizerConfig{}};
  Decoder decoder = nullptr;
  std::vector<std::vector<int64_t>> prompts;
  std::vector<int64_t> stops{24};

  Drawer() {
    model::DecoderConfig config;
    config.num_hidden_layers = 2;
    config.hidden_size = 64;
    config.num_attention_heads = 4;
    config.num_key_value_heads = 2;
    config.intermediate_size = 96;
    config.max_position_embeddings = 70;
    config.vocabulary = tokenizer.size();
    decoder = Decoder(config, 5);
    torch::NoGradGuard no_grad;  // far from uniform
    for (const auto& [name, weight] : decoder->named_weights())
      if (weight.dim() == 2) weight.mul_(name == "lm_head.weight" ? 20 : 2);
    for (const int64_t length : {1, 16, 31, 2, 40, 24}) {
      prompts.emplace_back();
      for (int64_t t = 0; t < length; ++t) prompts.back().push_back(1 + (length * 11 + t * 7) % 23);
    }
  }
  std::vector<Completion> draw(SamplingConfig sampling, const CacheConfig& cache = {},
                               const std::optional<Branching>& branching = {}, RolloutCounts* counts = nullptr,
                               int64_t samples = 6) {
    return rollout(decoder, prompts, std::vector<int64_t>(prompts.size(), samples), with_rules(sampling, tokenizer),
                   stops, {.seed = 8}, cache, branching, counts);
  }
  std::string text(const Completion& c) const { return tokenizer.decode(c.tokens); }
};

void expect_all_same(const std::vector<Completion>& a, const std::vector<Completion>& b) {
  ASSERT_EQ(a.size(), b.size());
  for (size_t i = 0; i < a.size(); ++i) {
    EXPECT_EQ(a[i].tokens, b[i].tokens);
    EXPECT_EQ(a[i].logprob, b[i].logprob);
    EXPECT_EQ(a[i].sampling_logprob, b[i].sampling_logprob);
    EXPECT_EQ(a[i].entropy, b[i].entropy);
    EXPECT_EQ(std::tuple(a[i].prompt, a[i].sample, a[i].parent, a[i].begin, a[i].stopped),
              std::tuple(b[i].prompt, b[i].sample, b[i].parent, b[i].begin, b[i].stopped));
  }
}

TEST(Rollout, AStopTextEndsACompletionWhereTheSameDrawWroteIt) {
  Drawer drawer;
  const std::vector<std::string> stop{"0", "ab", "+d"};
  const auto free = drawer.draw({}), cut = drawer.draw({.stop = stop});
  int64_t ended = 0, spanning = 0;
  for (size_t i = 0; i < free.size(); ++i) {
    const std::string text = drawer.text(free[i]);
    size_t end = std::string::npos;
    for (const std::string& one : stop)
      if (const size_t at = text.find(one); at != std::string::npos && at + one.size() < end) {
        end = at + one.size();
        spanning += one.size() > 1;
      }
    EXPECT_EQ(drawer.text(cut[i]), text.substr(0, end)) << i;
    EXPECT_TRUE(std::equal(cut[i].logprob.begin(), cut[i].logprob.end(), free[i].logprob.begin()));
    EXPECT_EQ(cut[i].stopped, free[i].stopped || end != std::string::npos);
    if (end == std::string::npos) continue;
    ++ended;
    const Answer answer = answer_of(cut[i].tokens, cut[i].stopped, drawer.tokenizer);
    EXPECT_TRUE(answer.finished);
    EXPECT_EQ(answer.text, text.substr(0, end)) << "the text stays";
  }
  EXPECT_GT(ended, 5);
  EXPECT_GT(spanning, 0);
}

TEST(Rollout, StopTextsWaitForMinNewTokens) {
  Drawer drawer;
  const std::vector<std::string> stop{"a", "0", "1"};
  const auto early = drawer.draw({.max_new_tokens = 25, .stop = stop}),
             late = drawer.draw({.max_new_tokens = 25, .min_new_tokens = 12, .stop = stop});
  int64_t short_ones = 0, passed = 0, ended = 0;
  for (size_t i = 0; i < late.size(); ++i) {
    short_ones += early[i].tokens.size() <= 12;
    ASSERT_GT(late[i].tokens.size(), 12u);
    const std::string text = drawer.text(late[i]);
    passed += text.substr(0, 12).find_first_of("a01") != std::string::npos;
    const size_t at = text.find_first_of("a01", 12);
    if (at == std::string::npos) continue;
    ++ended;
    EXPECT_TRUE(late[i].stopped);
    EXPECT_EQ(at + 1, text.size());
  }
  EXPECT_TRUE(short_ones > 0 && passed > 0 && ended > 0) << short_ones << " " << passed << " " << ended;
}

TEST(Rollout, BadWordsAreNeverWrittenBehindThePromptEither) {
  Drawer drawer;
  const std::vector<std::string> bad{"ab", "0", "cd", "+b", "11"};
  const auto has = [&](const std::string& text, size_t from) {
    for (const std::string& word : bad)
      if (text.find(word, from > word.size() ? from - word.size() + 1 : 0) != std::string::npos) return true;
    return false;
  };
  const auto any = [&](const std::vector<Completion>& all) {
    int64_t count = 0;
    for (const Completion& c : all) {
      const std::string prompt = drawer.tokenizer.decode(drawer.prompts[c.prompt]);
      count += has(prompt + drawer.text(c), prompt.size());
    }
    return count;
  };
  EXPECT_GT(any(drawer.draw({})), 3) << "no bad word was drawn, so that nothing is tested";
  EXPECT_EQ(any(drawer.draw({.bad_words = bad})), 0);
  EXPECT_EQ(any(drawer.draw({.temperature = 0, .bad_words = bad})), 0);
}

TEST(Rollout, RulesAreFunctionsOfTheTokensAlone) {
  Drawer drawer;
  const SamplingConfig all{.temperature = 1.2,
                           .top_k = 20,
                           .top_p = 0.98,
                           .min_p = 0.001,
                           .repetition_penalty = 1.3,
                           .min_new_tokens = 5,
                           .stop = {"ab", "h=", "70"},
                           .bad_words = {"cc", "-d", "9"}};
  const int threads = at::get_num_threads();
  for (const auto& branching :
       {std::optional<Branching>(), std::optional<Branching>({.threshold = 1.0, .window = 3, .sequences = 14})}) {
    at::set_num_threads(1);
    RolloutCounts free, full;
    const auto roomy = drawer.draw(all, {}, branching, &free);
    EXPECT_TRUE(!branching || free.branches > 0);
    int64_t by_text = 0;
    for (const Completion& c : roomy) {
      ASSERT_EQ(c.sampling_logprob.size(), c.tokens.size());
      for (int64_t t = 0; c.parent >= 0 && t < c.begin; ++t)  // a branch has its parent's
        EXPECT_EQ(c.sampling_logprob[t], roomy[c.parent].sampling_logprob[t]);
    }
    for (const Completion& c : roomy) by_text += c.stopped && c.tokens.back() != 24;
    EXPECT_GT(by_text, 0);
    for (const int64_t pages : {7, 11})
      for (const int count : {1, 2, 3}) {
        at::set_num_threads(count);
        expect_all_same(roomy, drawer.draw(all, {.cache_tokens = pages * 16}, branching, &full));
        EXPECT_GT(full.preempted, 0);
        EXPECT_GT(full.recomputed, 0);
      }
    at::set_num_threads(2);
    expect_all_same(roomy, drawer.draw(all, {}, branching));
  }
  at::set_num_threads(threads);
  for (const SamplingConfig& one :
       {SamplingConfig{.repetition_penalty = 1.3}, SamplingConfig{.bad_words = {"9"}}, SamplingConfig{.min_p = 0.2}}) {
    std::vector<std::vector<int64_t>> with, without;
    for (const Completion& c : drawer.draw(one)) with.push_back(c.tokens);
    for (const Completion& c : drawer.draw({})) {
      without.push_back(c.tokens);
      EXPECT_TRUE(c.sampling_logprob.empty());  // the policy's own: nothing is kept twice
    }
    EXPECT_NE(with, without);
  }
}

TEST(Rollout, RecordedLogprobsAreThePolicysOwn) {
  Drawer drawer;
  for (const Completion& c :
       drawer.draw({.temperature = 0.8, .min_p = 0.1, .repetition_penalty = 1.5, .bad_words = {"9", "ab"}})) {
    torch::NoGradGuard no_grad;
    std::vector<int64_t> sequence = drawer.prompts[c.prompt];
    const auto start = static_cast<int64_t>(sequence.size()), n = static_cast<int64_t>(c.tokens.size());
    sequence.insert(sequence.end(), c.tokens.begin(), c.tokens.end());
    const Tensor logits = drawer.decoder(torch::tensor(sequence).unsqueeze(0))[0].slice(0, start - 1, start - 1 + n);
    const Tensor logp = (logits / 0.8).log_softmax(-1).gather(1, torch::tensor(c.tokens).unsqueeze(1)).squeeze(1);
    EXPECT_LE((torch::tensor(c.logprob) - logp).abs().max().item<double>(), 1e-3);
  }
}

TEST(Rollout, SaysWhereNoTokenIsLeft) {
  Drawer drawer;
  drawer.tokenizer = Tokenizer({.characters = "0123456789abcdefgh+-=:A."});
  std::vector<std::string> most;  // behind a 0 anything
  for (const char c : std::string("123456789abcdefgh+-=:A")) most.emplace_back(1, c);
  const auto refused = [&](const SamplingConfig& sampling) { return message([&] { drawer.draw(sampling); }); };
  {
    torch::NoGradGuard no_grad;  // padding is out of the question, and so is it in a trained model
    drawer.decoder->head().weight[0].fill_(0);
  }
  // The end of sequence may not come, one digit is left, and twice in a row it is a bad word; padding is a token too.
  most.emplace_back("00");
  SamplingConfig sampling{.min_new_tokens = 5, .bad_words = most};
  drawer.stops = {24, 0};
  expect_all(refused(sampling), {"token 2 of a completion of prompt ", "min_new_tokens and bad_words together forbid",
                                 "every token that the logits allow"});
  drawer.stops.clear();
  for (int64_t id = 0; id < 25; ++id) drawer.stops.push_back(id);
  expect_all(refused({.min_new_tokens = 1}),
             {"token 1 of a completion of prompt 0: min_new_tokens forbids every token"});
  // Texts without rules are refused, not passed over.
  expect_all(message([&] { rollout(drawer.decoder, drawer.prompts, 1, {.stop = {"a"}}, {24}, {}); }), {"with_rules()"});
}

}  // namespace ISENTROPE_UNIT
}  // namespace isentrope::rl
