// Rollouts of pruned prompts: the same whatever shares a batch, a thread or a full cache; and what refuses to be pruned.
#include <gtest/gtest.h>

#include "csrc/rl/rollout.h"
#include "tests/csrc/message.h"

namespace isentrope::rl {
namespace ISENTROPE_UNIT {

using model::Decoder;

Decoder three_layers() {
  model::DecoderConfig config;
  config.num_hidden_layers = 3;
  config.hidden_size = 32;
  config.intermediate_size = 48;
  config.max_position_embeddings = 80;
  config.vocabulary = 27;
  const torch::NoGradGuard no_grad;
  Decoder decoder(config, 5);
  for (const auto& [name, weight] : decoder->named_weights())
    if (weight.dim() == 2) weight.mul_(name == "lm_head.weight" ? 20 : 2);
  return decoder;
}

std::vector<std::vector<int64_t>> three_prompts() {
  std::vector<std::vector<int64_t>> prompts;
  for (const int64_t length : {1, 33, 61}) {
    prompts.emplace_back();
    for (int64_t t = 0; t < length; ++t) prompts.back().push_back((length * 11 + t * t * 7) % 27);
  }
  return prompts;
}

void expect_equal(const std::vector<Completion>& a, const std::vector<Completion>& b) {
  ASSERT_EQ(a.size(), b.size());
  for (size_t i = 0; i < a.size(); ++i) {
    EXPECT_EQ(a[i].tokens, b[i].tokens) << i;
    EXPECT_EQ(a[i].logprob, b[i].logprob) << i;
    EXPECT_EQ(a[i].kept, b[i].kept) << i;
  }
}

TEST(PrunedRollout, NeitherTheBatchNorAFullCacheChangesWhatIsDrawn) {
  const Decoder decoder = three_layers();
  const auto prompts = three_prompts();
  const std::vector<int64_t> samples{3, 9, 6};
  SamplingConfig sampling;
  sampling.prune = {.layer = 1, .keep = 0.5};
  RolloutCounts counts;
  const auto all = rollout(decoder, prompts, samples, sampling, {3}, {.seed = 2}, {}, {}, &counts);
  EXPECT_EQ(counts.preempted, 0);
  for (const Completion& c : all) {
    const auto n = std::ssize(prompts[c.prompt]);
    EXPECT_EQ(std::ssize(c.kept), (n + 1) / 2);
    EXPECT_EQ(c.kept.back(), n - 1);
  }
  // A cache of little more than a sequence: others wait, give up their pages and are fed again, with their prompts pruned.
  const auto tight =
      rollout(decoder, prompts, samples, sampling, {3}, {.seed = 2}, {.cache_tokens = 9 * 16}, {}, &counts);
  EXPECT_GT(counts.preempted, 0);
  EXPECT_GT(counts.recomputed, 0);
  expect_equal(tight, all);
  for (size_t p = 0; p < prompts.size(); ++p) {
    const auto alone =
        rollout(decoder, {prompts[p]}, 1, sampling, {3}, {.seed = 2, .first_prompt = static_cast<int64_t>(p)});
    const size_t first = p == 0 ? 0 : p == 1 ? 3 : 12;
    EXPECT_EQ(alone[0].tokens, all[first].tokens);
    EXPECT_EQ(alone[0].logprob, all[first].logprob);
  }
  SamplingConfig plain;
  EXPECT_NE(rollout(decoder, prompts, samples, plain, {3}, {.seed = 2})[5].logprob, all[5].logprob);
}

TEST(PrunedRollout, EmbeddingsAreThoseOfTokensWhereTheyAreTheirRows) {
  const torch::NoGradGuard no_grad;
  const Decoder decoder = three_layers();
  auto prompts = three_prompts();
  prompts.erase(prompts.begin());
  SamplingConfig sampling;
  sampling.repetition_penalty = 1.3;
  const auto text = rollout(decoder, prompts, 2, {}, {3}, {.seed = 4});
  std::vector<std::vector<int64_t>> hidden = prompts;
  for (size_t p = 0; p < prompts.size(); ++p) {
    const int64_t P = 7 + static_cast<int64_t>(p);
    sampling.embeddings.push_back(decoder->embedding().index_select(
        0, torch::tensor(std::vector<int64_t>(prompts[p].begin(), prompts[p].begin() + P))));
    std::fill_n(hidden[p].begin(), P, model::kHidden);
  }
  rollout(decoder, hidden, 2, sampling, {3}, {.seed = 4});  // what was not said is not penalised
  sampling.repetition_penalty = 1;
  expect_equal(rollout(decoder, hidden, 2, sampling, {3}, {.seed = 4}), text);
}

TEST(PrunedRollout, RefusesWhatItCannotDo) {
  const Decoder decoder = three_layers();
  const auto prompts = three_prompts();
  const std::vector<int64_t> samples{1, 1, 1};
  const auto told = [&](const SamplingConfig& sampling, const std::optional<Branching>& branching = {}) {
    return message([&] { rollout(decoder, prompts, samples, sampling, {3}, {}, {}, branching); });
  };
  SamplingConfig sampling;
  sampling.prune = {.layer = 3};
  expect_all(told(sampling), {"prune.layer is 3, and the model has 3 layers"});
  sampling.prune = model::PruneConfig{};
  expect_all(told(sampling), {"prune has no layer"});
  sampling.prune = {.layer = 1};
  expect_all(told(sampling, Branching{.threshold = 1}), {"do not branch"});
  sampling.prune.reset();
  sampling.embeddings = {torch::zeros({1, 32})};
  expect_all(told(sampling), {"embeddings of 1 prompts for 3"});
  sampling.embeddings = {torch::zeros({1, 32}), torch::zeros({1, 32}), torch::zeros({1, 32})};
  expect_all(told(sampling), {"prompt 0", "at least one token behind them"});
}

}  // namespace ISENTROPE_UNIT
}  // namespace isentrope::rl
