// Conversations that go on from their middle, which steps of them branch, and which completions make a pair.
#include "csrc/rl/mined_pairs.h"

#include <ATen/Parallel.h>
#include <gtest/gtest.h>

#include "csrc/data/collate.h"
#include "csrc/model/page_table.h"
#include "csrc/rl/conversation.h"
#include "csrc/rl/text_rules.h"
#include "tests/csrc/message.h"

namespace isentrope::rl {
namespace ISENTROPE_UNIT {

// Answers every turn with the number of turns so far, in letters, and remembers what was said.
class Counting : public Environment {
 public:
  std::unique_ptr<Episode> reset(const data::Example&, uint64_t seed, std::string*) const override {
    struct Side : Episode {
      uint64_t seed = 0;
      std::string heard = {};
      Reply step(const std::string& text) override {
        heard += text + "|";
        scores["turns"] += 1;
        scores["heard"] = static_cast<double>(std::hash<std::string>()(heard) % 1009 + seed % 7);
        return {.text = std::string(1 + static_cast<size_t>(scores["turns"]) % 3, 'z')};
      }
    };
    auto side = std::make_unique<Side>();
    side->seed = seed;
    side->scores = {{"turns", 0}, {"heard", 0}};
    return side;
  }
};

struct Room {
  data::Tokenizer tokenizer{data::TokenizerConfig{.characters = "abcdefghijklmnopqrstuvwxyz."}};
  model::Decoder decoder = nullptr;
  std::vector<data::Example> examples;
  std::vector<std::vector<int64_t>> prompts;
  SamplingConfig sampling;

  explicit Room(ConversationConfig limits = {.turns = 6}) {
    model::DecoderConfig config;
    config.num_hidden_layers = 2, config.hidden_size = 32, config.num_attention_heads = 4;
    config.num_key_value_heads = 2, config.intermediate_size = 48, config.max_position_embeddings = 96;
    config.vocabulary = 28;
    decoder = model::Decoder(config, 5);
    torch::NoGradGuard no_grad;
    for (const auto& [name, weight] : decoder->named_weights())
      if (weight.dim() == 2) weight.mul_(name == "lm_head.weight" ? 20 : 2);
    for (const char* text : {"a", "hello", "thequickbrownfox", "xy", "no", "yes"}) {
      examples.push_back({text, "", "", ""});
      prompts.push_back(tokenizer.encode(text));
    }
    limits.stop = {"e", "qu", "t", "s"};
    sampling.stop = limits.stop;
    sampling.conversing = std::make_shared<Conversing>(std::make_shared<Counting>(), limits, tokenizer);
    sampling = with_rules(sampling, tokenizer);
  }
  std::vector<Completion> draw(const SamplingConfig& with, const std::vector<int64_t>& samples,
                               std::span<const Completion> begun = {}, const CacheConfig& cache = {},
                               RolloutCounts* counts = nullptr) const {
    return rollout(decoder, prompts, samples, with, tokenizer.end_ids(), {.seed = 9}, cache, {}, counts, Peers(),
                   examples, begun);
  }
};

Completion first_turns(const Completion& chain, size_t turns) {
  Completion c;
  c.prompt = chain.prompt;
  const int64_t end = chain.turns[turns - 1].end;
  c.tokens.assign(chain.tokens.begin(), chain.tokens.begin() + end);
  c.logprob.assign(chain.logprob.begin(), chain.logprob.begin() + end);
  c.entropy.assign(chain.entropy.begin(), chain.entropy.begin() + end);
  c.turns.assign(chain.turns.begin(), chain.turns.begin() + static_cast<std::ptrdiff_t>(turns));
  return c;
}

void expect_equal(const Completion& a, const Completion& b) {
  EXPECT_EQ(a.said(), b.said());
  EXPECT_EQ(a.logprob, b.logprob);
  EXPECT_EQ(a.entropy, b.entropy);
  EXPECT_EQ(a.scores, b.scores);
  EXPECT_EQ(a.stopped, b.stopped);
  EXPECT_EQ(a.at_limit, b.at_limit);
  ASSERT_EQ(a.turns.size(), b.turns.size());
  for (size_t i = 0; i < a.turns.size(); ++i) {
    EXPECT_EQ(a.turns[i].end, b.turns[i].end);
    EXPECT_EQ(a.turns[i].given, b.turns[i].given);
    EXPECT_EQ(a.turns[i].scores, b.turns[i].scores);
  }
}

// Where the likeliest token is taken, a conversation that goes on is the one that it was cut from: its tokens bit for bit, its limits, and
// what its environment has heard.
TEST(MinedPairs, AConversationGoesOnWhereItWasCut) {
  const Room room;
  SamplingConfig greedy = room.sampling;
  greedy.temperature = 0;
  const auto whole = room.draw(greedy, std::vector<int64_t>(room.prompts.size(), 1));
  std::vector<Completion> begun;
  std::vector<int64_t> samples;
  std::vector<const Completion*> of;
  for (const Completion& chain : whole) {
    size_t cuts = 0;
    for (size_t turns = 1; turns < chain.turns.size(); ++turns, ++cuts) {
      begun.push_back(first_turns(chain, turns));
      of.push_back(&chain);
    }
    samples.push_back(static_cast<int64_t>(cuts));
  }
  ASSERT_GT(begun.size(), 8u);
  const int threads = at::get_num_threads();
  for (const int count : {1, 3})
    for (const int64_t pages : {0, 9}) {
      at::set_num_threads(count);
      const auto again = room.draw(greedy, samples, begun, {.cache_tokens = pages * model::kPagePositions});
      ASSERT_EQ(again.size(), begun.size());
      for (size_t i = 0; i < again.size(); ++i) {
        expect_equal(again[i], *of[i]);
        EXPECT_EQ(again[i].begin, std::ssize(begun[i].tokens));
      }
    }
  at::set_num_threads(threads);
}

TEST(MinedPairs, BranchesDifferAndRepeatThemselves) {
  const Room room;
  const auto whole = room.draw(room.sampling, std::vector<int64_t>(room.prompts.size(), 1));
  std::vector<Completion> begun;
  std::vector<int64_t> samples;
  for (const Completion& chain : whole) {
    const bool cut = chain.turns.size() > 1;
    samples.push_back(cut ? 4 : 0);
    if (cut) begun.insert(begun.end(), 4, first_turns(chain, 1));
  }
  const auto branches = room.draw(room.sampling, samples, begun), again = room.draw(room.sampling, samples, begun);
  size_t differ = 0;
  for (size_t i = 0; i < branches.size(); ++i) {
    expect_equal(branches[i], again[i]);
    const Completion &chain = whole[branches[i].prompt], &before = begun[i];
    EXPECT_TRUE(std::equal(before.tokens.begin(), before.tokens.end(), branches[i].tokens.begin()));
    differ += branches[i].tokens != chain.tokens && (i % 4 == 0 || branches[i].tokens != branches[i - 1].tokens);
  }
  EXPECT_GT(differ, branches.size() / 2) << "branches draw for themselves";
}

TEST(MinedPairs, RefusesWhatCannotGoOn) {
  const Room room;
  const auto whole = room.draw(room.sampling, std::vector<int64_t>(room.prompts.size(), 1));
  std::vector<int64_t> samples(room.prompts.size(), 0);
  samples[0] = 2;
  const std::vector<Completion> one{first_turns(whole[0], 1)};
  expect_all(message([&] { room.draw(room.sampling, samples, one); }), {"1 conversations", "2 samples"});
  samples[0] = 1;
  Completion torn = one[0];
  torn.tokens.push_back(3);
  expect_all(message([&] { room.draw(room.sampling, samples, {{torn}}); }), {"behind a turn that was answered"});
  SamplingConfig plain = room.sampling;
  plain.conversing = nullptr;
  expect_all(message([&] { room.draw(plain, samples, one); }), {"without an environment"});
}

// Prefix means of 10, 20, … tokens: the second step begins calmly and then hesitates, the third is short.
TEST(MinedPairs, StepsBranchWhereTheyBeginWithTheMostEntropy) {
  Completion chain;
  const auto say = [&](const std::vector<float>& entropy, std::vector<int64_t> given) {
    chain.entropy.insert(chain.entropy.end(), entropy.begin(), entropy.end());
    chain.tokens.resize(chain.entropy.size(), 1);
    chain.turns.push_back({.end = std::ssize(chain.tokens), .given = std::move(given), .scores = {}});
  };
  say(std::vector<float>(12, 9.f), {5});  // before the first answer: no step
  std::vector<float> late(25, 0.1f);
  for (size_t i = 10; i < 20; ++i) late[i] = 2.1f;  // first 10: 0.1, first 20: 1.1, all 25: 0.9
  say(late, {5});
  say({1.f, 1.f}, {5});                   // 1.0
  say(std::vector<float>(11, 0.5f), {});  // not answered: nothing is behind it but what follows
  say({3.f, 3.f}, {});                    // behind a turn without an answer: no step
  EXPECT_EQ(branching_turns(chain, 10), (std::vector<size_t>{0, 1, 2}));
  EXPECT_EQ(branching_turns(chain, 2), (std::vector<size_t>{0, 1}));
  chain.entropy[12 + 25] = 1.3f;  // 1.15 against 1.1
  EXPECT_EQ(branching_turns(chain, 2), (std::vector<size_t>{1, 0}));
  EXPECT_TRUE(branching_turns(chain, 0).empty());
}

using Found = std::vector<std::pair<size_t, size_t>>;

TEST(MinedPairs, RulesOfPairs) {
  const auto right = [](int64_t calls, int64_t tokens, double entropy) {
    return PairCandidate{.right = true, .finished = true, .calls = calls, .tokens = tokens, .entropy = entropy};
  };
  const auto wrong = [](int64_t calls, int64_t tokens, size_t text) {
    return PairCandidate{
        .right = false, .finished = true, .calls = calls, .tokens = tokens, .entropy = 0, .text = text};
  };
  std::vector<PairCandidate> all{right(2, 9, 0.1), right(1, 9, 0.4), right(1, 30, 0.2), wrong(1, 50, 3), wrong(2, 8, 4),
                                 wrong(3, 8, 5),   wrong(3, 9, 6),   wrong(0, 3, 7),    wrong(3, 9, 6)};
  // The fewest calls, then the least entropy; wrong ones of more calls, the most first, of equal ones the longest, no text twice.
  EXPECT_EQ(pairs_of(all, false, 9), (Found{{2, 6}, {2, 5}, {2, 4}}));
  EXPECT_EQ(pairs_of(all, false, 1), (Found{{2, 6}}));
  // The most calls; wrong ones of no more, the fewest first.
  EXPECT_EQ(pairs_of(all, true, 9), (Found{{0, 7}, {0, 3}, {0, 4}}));
  all[0].calls = 1;  // then the most tokens
  EXPECT_EQ(pairs_of(all, true, 9), (Found{{2, 7}, {2, 3}}));
  for (PairCandidate& one : all) one.finished = !one.right;
  EXPECT_TRUE(pairs_of(all, false, 9).empty()) << "what was cut is never the better one";
  for (PairCandidate& one : all) one.right = false;
  EXPECT_TRUE(pairs_of(all, true, 9).empty());
}

RewardSum odd_lengths() {
  return RewardSum({{.kind = "odd"}}, ".",
                   {{"odd", [](const auto&, const std::vector<Answer>& answers, const auto&, double) {
                       std::vector<double> scores;
                       for (const Answer& one : answers) scores.push_back(static_cast<double>(one.text.size() % 2));
                       return Scores(scores);
                     }}});
}

TEST(MinedPairs, PairsAreThoseOfTheSeedWhateverTheThreads) {
  const Room room({.turns = 5, .at_limit = "end"});
  PairsConfig config;
  config.samples = 6, config.steps = 2, config.branches = 2, config.per_prompt = 4, config.rule = "difficulty";
  config.sampling = room.sampling;
  const auto mine = [&](int threads, uint64_t seed, int64_t pages = 0) {
    at::set_num_threads(threads);
    config.cache.cache_tokens = pages * model::kPagePositions;
    return mine_pairs(config, room.decoder, room.tokenizer, room.examples, odd_lengths(), seed);
  };
  const int before = at::get_num_threads();
  const MinedPairs one = mine(1, 3), other = mine(1, 4);
  ASSERT_GT(one.pairs.size(), 3u);
  EXPECT_EQ(one.stats.at("pairs/found"), static_cast<double>(one.pairs.size()));
  EXPECT_GT(one.stats.at("pairs/completions"), 6.0 * static_cast<double>(room.prompts.size())) << "branches count";
  for (const auto& [threads, pages] : {std::pair{2, 0}, {3, 9}}) {
    const MinedPairs again = mine(threads, 3, pages);
    ASSERT_EQ(again.pairs.size(), one.pairs.size());
    for (size_t i = 0; i < one.pairs.size(); ++i) {
      expect_equal(again.pairs[i].better, one.pairs[i].better);
      expect_equal(again.pairs[i].worse, one.pairs[i].worse);
    }
  }
  bool differs = one.pairs.size() != other.pairs.size();
  for (size_t i = 0; !differs && i < one.pairs.size(); ++i)
    differs = one.pairs[i].better.tokens != other.pairs[i].better.tokens;
  EXPECT_TRUE(differs);
  at::set_num_threads(before);
}

TEST(MinedPairs, HardPairsAreAsManyAsAsked) {
  const Room room({.turns = 5, .at_limit = "end"});
  PairsConfig config;
  config.samples = 6, config.steps = 0, config.rule = "difficulty", config.per_prompt = 6;
  config.sampling = room.sampling;
  const auto counts = [&](std::optional<double> share) {
    config.hard_share = share;
    std::pair<int64_t, int64_t> found{0, 0};
    for (const MinedPair& one : mine_pairs(config, room.decoder, room.tokenizer, room.examples, odd_lengths(), 3).pairs)
      ++(one.hard ? found.first : found.second);
    return found;
  };
  const auto [hard, easy] = counts({});
  ASSERT_GT(hard, 1);
  ASSERT_GT(easy, 1);
  for (const double share : {0.25, 0.5, 0.75}) {
    const auto [h, e] = counts(share);
    EXPECT_TRUE(h == hard || e == easy) << "one class is whole";
    EXPECT_NEAR(static_cast<double>(h), share / (1 - share) * static_cast<double>(e), 1.5) << share;
  }
}

// The tokens that were drawn are the targets, those that were given are none, and no end is put behind what did not draw one.
TEST(MinedPairs, DrawnTokensAreLearntAsTheyAre) {
  const Room room;
  for (const Completion& c : room.draw(room.sampling, std::vector<int64_t>(room.prompts.size(), 2))) {
    const auto& prompt = room.prompts[c.prompt];
    const data::Example example = drawn_example("p", prompt, c, room.tokenizer);
    const data::Batch batch = data::collate({example}, room.tokenizer, 96);
    std::vector<int64_t> row = prompt, places;
    const std::vector<int64_t> said = c.said(&places);
    row.insert(row.end(), said.begin(), said.end());
    std::vector<int64_t> target(row.size() - 1, data::kIgnore);
    for (size_t t = 0; t < places.size(); ++t) target[prompt.size() + places[t] - 1] = c.tokens[t];
    row.pop_back();
    EXPECT_TRUE(torch::equal(batch.tokens[0], torch::tensor(row)));
    EXPECT_TRUE(torch::equal(batch.target[0], torch::tensor(target)));
  }
}

}  // namespace ISENTROPE_UNIT
}  // namespace isentrope::rl
