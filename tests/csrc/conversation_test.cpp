#include "csrc/rl/conversation.h"

#include <ATen/Parallel.h>
#include <gtest/gtest.h>

#include <numeric>

#include "csrc/data/random.h"
#include "csrc/model/page_table.h"
#include "csrc/rl/policy_batch.h"
#include "csrc/rl/reference_logprob.h"
#include "csrc/rl/rollout_source.h"
#include "csrc/rl/shared_rollout.h"
#include "csrc/rl/text_rules.h"
#include "tests/csrc/message.h"

namespace isentrope::rl {
namespace ISENTROPE_UNIT {

using model::Decoder;
using model::DecoderConfig;
using torch::Tensor;

constexpr int64_t kContext = 96;

Decoder make(int64_t vocabulary) {
  DecoderConfig config;
  config.num_hidden_layers = 2;
  config.hidden_size = 32;
  config.num_attention_heads = 4;
  config.num_key_value_heads = 2;
  config.intermediate_size = 48;
  config.max_position_embeddings = kContext;
  config.vocabulary = vocabulary;
  Decoder decoder(config, 5);
  torch::NoGradGuard no_grad;
  for (const auto& [name, weight] : decoder->named_weights())
    if (weight.dim() == 2) weight.mul_(name == "lm_head.weight" ? 20 : 2);
  return decoder;
}

// Answers every turn with so many of its last characters, and counts; over after `most` turns. Of a turn of more than four it knows
// nothing.
class Echo : public Environment {
 public:
  explicit Echo(size_t length, int64_t most = 1000) : length_(length), most_(most) {}
  std::unique_ptr<Episode> reset(const data::Example& example, uint64_t seed, std::string* prompt) const override {
    struct Side : Episode {
      size_t length;
      int64_t most, turns = 0;
      Reply step(const std::string& text) override {
        scores["turns"] = static_cast<double>(++turns);
        std::string answer(length, 'z');
        for (size_t i = 0; i < std::min(length, text.size()); ++i) answer[i] = text[text.size() - 1 - i];
        return {.text = answer, .done = turns >= most, .error = text.size() > 4};
      }
    };
    seeds.push_back(seed);
    if (prompt && example.prompt == "own") *prompt = "abc";
    auto side = std::make_unique<Side>();
    side->length = length_;
    side->most = most_;
    side->scores["turns"] = 0;
    return side;
  }
  mutable std::vector<uint64_t> seeds;  // of tests on one thread

 private:
  size_t length_;
  int64_t most_;
};

struct Table {
  data::Tokenizer tokenizer{data::TokenizerConfig{.characters = "abcdefghijklmnopqrstuvwxyz."}};
  Decoder decoder = make(28);
  std::vector<data::Example> examples;
  std::vector<std::vector<int64_t>> prompts;

  Table() {
    for (const char* text : {"a", "hello", "thequickbrownfoxjumpsoverit", "xy"}) {
      examples.push_back({text, "", "", ""});
      prompts.push_back(tokenizer.encode(text));
    }
  }
  SamplingConfig sampling(std::shared_ptr<const Environment> environment, ConversationConfig limits) const {
    SamplingConfig sampling;
    limits.stop = {"e", "qu"};
    sampling.stop = limits.stop;
    sampling.conversing = std::make_shared<Conversing>(environment, limits, tokenizer);
    return with_rules(sampling, tokenizer);
  }
  std::vector<Completion> draw(const SamplingConfig& sampling, int64_t samples = 5, RolloutCounts* counts = nullptr,
                               const CacheConfig& cache = {}) const {
    return rollout(decoder, prompts, std::vector<int64_t>(prompts.size(), samples), sampling, tokenizer.end_ids(),
                   {.seed = 9}, cache, {}, counts, Peers(), examples);
  }
};

void expect_same(const Completion& a, const Completion& b) {
  EXPECT_EQ(a.tokens, b.tokens);
  EXPECT_EQ(a.said(), b.said());
  EXPECT_EQ(a.logprob, b.logprob);
  EXPECT_EQ(a.entropy, b.entropy);
  EXPECT_EQ(a.stopped, b.stopped);
  EXPECT_EQ(a.scores, b.scores);
  EXPECT_EQ(a.at_limit, b.at_limit);
}

Kept keep(const Table& table, std::vector<Completion> completions) {
  Kept kept;
  kept.prompts = table.prompts;
  for (size_t i = 0; i < completions.size(); ++i) {
    if (i + 1 == completions.size() || completions[i + 1].prompt != completions[i].prompt)
      kept.groups.push_back(static_cast<int64_t>(i) + 1);
    kept.rewards.push_back(static_cast<double>(i % 3));
    kept.right.push_back(false);
  }
  kept.completions = std::move(completions);
  return kept;
}

TEST(Conversation, TurnsEndAtTheirTextsAndAreAnswered) {
  const Table table;
  const auto all = table.draw(table.sampling(std::make_shared<Echo>(3), {.turns = 4}));
  ASSERT_EQ(all.size(), table.prompts.size() * 5);
  int64_t turns = 0, errors = 0;
  for (const Completion& c : all) {
    int64_t begin = 0;
    for (const Exchange& turn : c.turns) {
      const std::string text = table.tokenizer.decode({c.tokens.begin() + begin, c.tokens.begin() + turn.end});
      EXPECT_TRUE(text.ends_with('e') || text.ends_with("qu") || text.ends_with('.')) << text;
      EXPECT_EQ(text.find('e'), text.ends_with('e') ? text.size() - 1 : std::string::npos) << text;
      EXPECT_EQ(turn.error, (text.ends_with('.') ? text.size() - 1 : text.size()) > 4);
      EXPECT_EQ(turn.scores.at("turns"), static_cast<double>(++turns));
      errors += turn.error;
      begin = turn.end;
    }
    turns = 0;
    EXPECT_EQ(c.logprob.size(), c.tokens.size());
    EXPECT_EQ(c.entropy.size(), c.tokens.size());
    EXPECT_LE(c.turns.size(), 4u);
    EXPECT_TRUE(c.at_limit);
    EXPECT_FALSE(c.stopped);
    EXPECT_EQ(c.scores.at("limit"), 0);
    if (c.turns.size() == 4) EXPECT_TRUE(c.turns.back().given.empty()) << "nothing follows the last turn";
  }
  EXPECT_GT(errors, 0);
}

// What is drawn is trained, token for token, under the log-probability that it was drawn with.
TEST(Conversation, LogprobsAreThoseOfTheTrainingForwardPass) {
  const Table table;
  Decoder decoder = table.decoder, judge = make(28);
  judge->to(torch::kFloat64);
  double ours = 0, plain = 0;
  int64_t behind = 0;
  for (const Completion& c : table.draw(table.sampling(std::make_shared<Echo>(7), {}))) {
    std::vector<int64_t> places, row = table.prompts[c.prompt];
    const int64_t start = std::ssize(row);
    const std::vector<int64_t> said = c.said(&places);
    EXPECT_EQ(std::ssize(said), c.size());
    row.insert(row.end(), said.begin(), said.end());
    const auto logp = [&](Decoder& model) {
      torch::NoGradGuard no_grad;
      return model(torch::tensor(row).unsqueeze(0))[0].log_softmax(-1).to(torch::kFloat64);
    };
    const Tensor mine = logp(decoder), truth = logp(judge);
    for (size_t t = 0; t < c.tokens.size(); ++t) {
      ASSERT_EQ(said[places[t]], c.tokens[t]);
      const double right = truth[start + places[t] - 1][c.tokens[t]].item<double>();
      ours = std::max(ours, std::abs(c.logprob[t] - right));
      plain = std::max(plain, std::abs(mine[start + places[t] - 1][c.tokens[t]].item<double>() - right));
      behind += !c.turns.empty() && static_cast<int64_t>(t) >= c.turns.front().end;
    }
  }
  EXPECT_GT(behind, 100) << "tokens behind an answer";
  EXPECT_LE(ours, 2 * plain);
}

TEST(Conversation, NothingIsFedTwice) {
  const Table table;
  const int threads = at::get_num_threads();
  at::set_num_threads(1);
  RolloutCounts counts;
  const auto all = table.draw(table.sampling(std::make_shared<Echo>(5), {.turns = 6}), 5, &counts);
  at::set_num_threads(threads);
  int64_t positions = 0, turns = 0;
  for (const auto& prompt : table.prompts) positions += std::ssize(prompt);  // once for the group
  for (const Completion& c : all)
    positions += c.size() - 1, turns += std::ssize(c.turns);  // the last token is never fed
  EXPECT_GT(turns, std::ssize(all));
  EXPECT_EQ(counts.fed, positions);
  EXPECT_EQ(counts.recomputed, 0);
}

TEST(Conversation, BitsDependOnNeitherBatchNorThreadsNorCache) {
  const Table table;
  const auto sampling = table.sampling(std::make_shared<Echo>(4), {.turns = 7});
  const int threads = at::get_num_threads();
  const auto all = table.draw(sampling);
  for (const int count : {1, 2, 3}) {
    at::set_num_threads(count);
    for (const int64_t pages : {0, 8, 9, 13, 40}) {
      RolloutCounts counts;
      const auto again = table.draw(sampling, 5, &counts, {.cache_tokens = pages * model::kPagePositions});
      ASSERT_EQ(all.size(), again.size());
      for (size_t i = 0; i < all.size(); ++i) expect_same(all[i], again[i]);
      if (pages == 8) EXPECT_GT(counts.recomputed, 0);
    }
  }
  at::set_num_threads(threads);
  for (size_t p = 0; p < table.prompts.size(); ++p) {
    const auto alone = rollout(table.decoder, {table.prompts[p]}, std::vector<int64_t>{2}, sampling,
                               table.tokenizer.end_ids(), {.seed = 9, .first_prompt = static_cast<int64_t>(p)}, {}, {},
                               nullptr, Peers(), {&table.examples[p], 1});
    for (int64_t j = 0; j < 2; ++j) EXPECT_EQ(alone[j].said(), all[p * 5 + j].said());
  }
}

TEST(Conversation, LimitsEndIt) {
  const Table table;
  const auto with = [&](ConversationConfig limits, int64_t most = 0, int64_t over = 1000) {
    auto sampling = table.sampling(std::make_shared<Echo>(3, over), limits);
    sampling.max_new_tokens = most;
    return table.draw(sampling, 8);
  };
  bool short_turn = false, by_tokens = false;
  for (const Completion& c : with({.turn_tokens = 4})) {
    int64_t begin = 0;
    for (const Exchange& turn : c.turns) EXPECT_LE(turn.end - std::exchange(begin, turn.end), 4);
    EXPECT_LE(std::ssize(c.tokens) - begin, 4);
    short_turn = short_turn || std::ssize(c.tokens) - begin == 4;
  }
  EXPECT_TRUE(short_turn);
  for (const Completion& c : with({.tokens = 20})) {
    EXPECT_LE(c.size(), 20);
    by_tokens = by_tokens || c.size() == 20;
  }
  EXPECT_TRUE(by_tokens);
  for (const Completion& c : with({}, 9)) EXPECT_LE(c.tokens.size(), 9u);
  for (const Completion& c : with({.turns = 1, .at_limit = "end"})) {
    EXPECT_TRUE(c.stopped);
    EXPECT_TRUE(c.at_limit);
    EXPECT_LE(c.turns.size(), 1u);
    EXPECT_EQ(c.scores.at("limit"), 0);
  }
  for (const Completion& c : with({.turns = 1, .at_limit = "penalise"})) EXPECT_EQ(c.scores.at("limit"), -1);
  // An environment whose first step is its last: the completion of a task of one turn.
  for (const Completion& c : with({.at_limit = "penalise"}, 0, 1)) {
    EXPECT_EQ(c.scores.at("limit"), c.at_limit ? -1 : 0);
    EXPECT_LE(c.turns.size(), 1u);
    EXPECT_EQ(c.size(), std::ssize(c.tokens));
  }
}

// As a task without an environment draws them, bit for bit.
TEST(Conversation, OneTurnIsACompletion) {
  const Table table;
  SamplingConfig plain = table.sampling(std::make_shared<Echo>(1, 1), {});
  const auto talks = table.draw(plain);
  plain.conversing = nullptr;
  const auto writes = table.draw(plain);
  for (size_t i = 0; i < talks.size(); ++i) {
    EXPECT_EQ(talks[i].tokens, writes[i].tokens);
    EXPECT_EQ(talks[i].logprob, writes[i].logprob);
    EXPECT_EQ(talks[i].stopped, writes[i].stopped);
  }
}

// The end of sequence decodes to a text that is other tokens, and padding to none: a batch made by decoding and encoding would be another.
TEST(Conversation, TrainsOnTheTokensThatWereDrawn) {
  const data::Tokenizer bytes(data::TokenizerConfig{.kind = "bytes"});
  Decoder decoder = make(bytes.size());
  {
    torch::NoGradGuard no_grad;  // of 258 tokens some are drawn often
    const Tensor head = decoder->named_weights().back().second;
    head.mul_(0.2);
  }
  SamplingConfig sampling;
  sampling.max_new_tokens = 60;
  sampling.conversing =
      std::make_shared<Conversing>(std::make_shared<Echo>(2), ConversationConfig{.stop = {}, .turns = 20}, bytes);
  const std::vector<std::vector<int64_t>> prompts{bytes.encode("one"), bytes.encode("another")};
  const std::vector<data::Example> examples{{"one", "", "", ""}, {"another", "", "", ""}};
  std::vector<int64_t> ends;  // many tokens end a turn
  for (int64_t id = 200; id < bytes.size(); ++id) ends.push_back(id);
  Kept kept;
  kept.prompts = prompts;
  kept.completions = rollout(decoder, prompts, {6, 6}, sampling, ends, {.seed = 3}, {}, {}, nullptr, Peers(), examples);
  kept.groups = {0, 6, 12};
  kept.rewards.assign(12, 1.0);
  kept.right.assign(12, false);
  methods::Completions c = completions_of(kept, 1, 60, false);
  c.advantage = c.mask.to(torch::kFloat32);
  const data::Batch batch = policy_batches(kept, c, 1).front();
  int64_t otherwise = 0, given = 0;
  for (int64_t i = 0; i < 12; ++i) {
    const Completion& one = kept.completions[i];
    std::vector<int64_t> places, row = prompts[one.prompt];
    const int64_t start = std::ssize(row);
    const std::vector<int64_t> said = one.said(&places);
    row.insert(row.end(), said.begin(), said.end());
    const int64_t* got = batch.tokens.const_data_ptr<int64_t>() + i * batch.tokens.size(1);
    EXPECT_EQ(row, std::vector<int64_t>(got, got + row.size()));
    std::vector<int64_t> target(batch.tokens.size(1), data::kIgnore);
    std::vector<float> logprob(batch.tokens.size(1), 0.f);
    for (size_t t = 0; t < places.size(); ++t) {
      target[start + places[t] - 1] = one.tokens[t];
      logprob[start + places[t] - 1] = one.logprob[t];
    }
    EXPECT_TRUE(torch::equal(batch.target[i], torch::tensor(target)));
    EXPECT_TRUE(torch::equal(batch.old_logprob[i], torch::tensor(logprob)));
    EXPECT_TRUE(torch::equal(batch.advantage[i], (torch::tensor(target) != data::kIgnore).to(torch::kFloat32)));
    EXPECT_EQ(batch.lengths[i].item<int64_t>(), std::ssize(row));
    otherwise += bytes.encode(bytes.decode(said)) != said;
    given += one.size() - std::ssize(one.tokens);
  }
  EXPECT_GT(otherwise, 0) << "conversations that decode to a text of other tokens";
  EXPECT_GT(given, 0);
}

// What the environment says is context, and nothing else: other lengths of it leave the count of learnt tokens to the policy's own.
TEST(Conversation, GivenTokensAreNotLearnt) {
  const Table table;
  for (const size_t length : {1, 9}) {
    const Kept kept = keep(table, table.draw(table.sampling(std::make_shared<Echo>(length), {})));
    const methods::Completions c = completions_of(kept, 1, 0, false);
    int64_t drawn = 0;
    for (const Completion& one : kept.completions) drawn += std::ssize(one.tokens);
    EXPECT_EQ(c.mask.sum().item<int64_t>(), drawn);
    EXPECT_EQ(c.length.sum().item<int64_t>(), drawn) << "rewards for length count what was drawn";
    methods::Completions learnt = c;
    learnt.advantage = torch::ones_like(c.logprob);
    int64_t targets = 0;
    for (const data::Batch& batch : policy_batches(kept, learnt, 2))
      targets += (batch.target != data::kIgnore).sum().item<int64_t>();
    EXPECT_EQ(targets, drawn);
    // A reference that is the policy itself finds the log-probabilities of the drawn tokens.
    const Tensor same = reference_logprob(kept, {table.decoder}, 1.0, 1), d = (same - c.logprob).abs();
    EXPECT_LT(d.max().item<double>(), 1e-3) << "one place off, and log-probabilities are those of other tokens";
  }
}

TEST(Conversation, TalliesTurns) {
  TurnTally tally;
  std::map<std::string, double> stats;
  tally.tell(stats);
  EXPECT_TRUE(stats.empty());
  tally.add({.prompt = 0,
             .tokens = {1, 2, 3, 4, 5},
             .logprob = {0, 0, 0, 0, 0},
             .entropy = {1, 2, 3, 4, 8},
             .stopped = true,
             .turns = {{.end = 2, .given = {7, 7, 7}, .scores = {}},
                       {.end = 3, .given = {}, .scores = {}, .error = true},
                       {.end = 5, .given = {}, .scores = {}}}});
  tally.add({.prompt = 0, .tokens = {1}, .logprob = {0}, .entropy = {9}, .at_limit = true});
  tally.tell(stats);
  const std::map<std::string, double> wanted{
      {"turns/mean", 2},     {"turns/calls", 0.5},      {"turns/given", 1.5},          {"turns/limit", 0.5},
      {"turns/tokens", 1.5}, {"turns/errors", 1.0 / 3}, {"turns/entropy_before", 1.5}, {"turns/entropy_after", 3}};
  EXPECT_EQ(stats, wanted);
}

TEST(Conversation, PassesBetweenRanks) {
  const Table table;
  auto completions = table.draw(table.sampling(std::make_shared<Echo>(3), {.turns = 4}));
  for (Completion& c : completions) {
    c.sampling_logprob.assign(c.tokens.size(), -0.5f - static_cast<float>(c.sample));
    c.kept = {0, 2 + c.sample};
  }
  const auto before = completions;
  Rewards rewards{std::vector<double>(completions.size(), 1.0), {}, {}};
  rewards.first.resize(completions.size());
  RolloutCounts counts;
  gather(Peers(), completions, rewards, counts);
  ASSERT_EQ(before.size(), completions.size());
  for (size_t i = 0; i < before.size(); ++i) {
    expect_same(before[i], completions[i]);
    EXPECT_EQ(before[i].sampling_logprob, completions[i].sampling_logprob);
    EXPECT_EQ(before[i].kept, completions[i].kept);
    for (size_t t = 0; t < before[i].turns.size(); ++t) {
      EXPECT_EQ(before[i].turns[t].scores, completions[i].turns[t].scores);
      EXPECT_EQ(before[i].turns[t].error, completions[i].turns[t].error);
    }
  }
}

TEST(Conversation, BeginsWithTheEnvironmentsOwnText) {
  const Table table;
  const auto echo = std::make_shared<Echo>(3);
  const auto sampling = table.sampling(echo, {});
  const RolloutKey key{.seed = 4, .first_prompt = 10};
  EXPECT_EQ(opened(table.examples[1], sampling, key, 2).prompt, "hello");
  EXPECT_EQ(opened({"own", "", "", ""}, sampling, key, 2).prompt, "abc");
  EXPECT_EQ(echo->seeds[0], echo->seeds[1]);
  EXPECT_NE(conversation_seed(key, 2), conversation_seed(key, 3));
  EXPECT_EQ(conversation_seed(key, 2), conversation_seed({.seed = 4, .first_prompt = 12}, 0));
}

TEST(Conversation, RefusesWhatDoesNotGoTogether) {
  const Table table;
  const auto sampling = table.sampling(std::make_shared<Echo>(3), {});
  expect_all(message([&] { rollout(table.decoder, table.prompts, 1, sampling, {3}, {}); }),
             {"examples", "one a prompt"});
  class Foreign : public Environment {
    std::unique_ptr<Episode> reset(const data::Example&, uint64_t, std::string*) const override {
      struct Side : Episode {
        Reply step(const std::string&) override { return {.text = "A!"}; }
      };
      return std::make_unique<Side>();
    }
  };
  expect_all(message([&] { table.draw(table.sampling(std::make_shared<Foreign>(), {})); }),
             {"environment", "A!", "alphabet"});
}

}  // namespace ISENTROPE_UNIT
}  // namespace isentrope::rl
