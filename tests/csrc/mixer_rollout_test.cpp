// Rollouts of models with states in the place of pages.
#include <gtest/gtest.h>

#include "csrc/rl/rollout.h"
#include "tests/csrc/mixer_kinds.h"

namespace isentrope::rl {
namespace ISENTROPE_UNIT {

using torch::Tensor;

std::vector<std::vector<int64_t>> some_prompts(int64_t V) {
  std::vector<std::vector<int64_t>> prompts;
  for (const int64_t length : {5, 1, 17, 30}) {
    prompts.emplace_back();
    for (int64_t i = 0; i < length; ++i) prompts.back().push_back((i * i + length) % V);
  }
  return prompts;
}

// A group shares its prompt's state, and branches leave from states before the last: what is drawn has the log-probabilities that
// the forward pass gives the same tokens.
TEST(MixerRollout, DrawsFromTheDistributionOfTheForwardPass) {
  for (const auto& [name, config] : model::mixer_cases())
    for (const bool branches : {false, true}) {
      const torch::NoGradGuard no_grad;
      model::Decoder decoder = model::made(config), exact = model::made(config);
      exact->to(torch::kFloat64);
      const auto prompts = some_prompts(config.vocabulary);
      std::optional<Branching> branching;
      if (branches) branching = Branching{.threshold = 0.5, .window = 3, .sequences = 9};
      RolloutCounts counts;
      const auto drawn = rollout(decoder, prompts, std::vector<int64_t>(prompts.size(), 4), {.max_new_tokens = 25}, {3},
                                 {.seed = 2}, {}, branching, &counts);
      if (branches) EXPECT_GT(counts.branches, 0) << name;
      double worst = 0, forward = 0;
      for (const Completion& c : drawn) {
        std::vector<int64_t> tokens = prompts[c.prompt];
        const auto length = static_cast<int64_t>(tokens.size()), count = static_cast<int64_t>(c.tokens.size());
        tokens.insert(tokens.end(), c.tokens.begin(), c.tokens.end());
        const Tensor row = torch::tensor(tokens).unsqueeze(0);
        const Tensor target = torch::tensor(c.tokens).unsqueeze(1);
        const auto logprob = [&](model::Decoder& of) {
          const model::Places places({}, torch::arange(row.size(1)).unsqueeze(0) < length);  // the prompt is the prefix
          const Tensor logits =
              of->forward(row, nullptr, places)[0].slice(0, length - 1, length - 1 + count).to(torch::kFloat64);
          return logits.log_softmax(-1).gather(1, target).squeeze(1);
        };
        const Tensor truth = logprob(exact);
        forward = std::max(forward, (logprob(decoder) - truth).abs().max().item<double>());
        worst = std::max(worst, (torch::tensor(c.logprob).to(torch::kFloat64) - truth).abs().max().item<double>());
      }
      EXPECT_LE(worst, 8 * forward) << name << (branches ? " with branches" : "");
    }
}

TEST(MixerRollout, DoesNotDependOnTheBatch) {
  for (const auto& [name, config] : model::mixer_cases()) {
    const model::Decoder decoder = model::made(config);
    const auto prompts = some_prompts(config.vocabulary);
    const auto all = rollout(decoder, prompts, 3, {.max_new_tokens = 20}, {3}, {.seed = 4});
    for (size_t p = 0; p < prompts.size(); ++p) {
      const auto alone = rollout(decoder, {prompts[p]}, 3, {.max_new_tokens = 20}, {3},
                                 {.seed = 4, .first_prompt = static_cast<int64_t>(p)});
      for (size_t j = 0; j < 3; ++j) {
        EXPECT_EQ(alone[j].tokens, all[3 * p + j].tokens) << name;
        EXPECT_EQ(alone[j].logprob, all[3 * p + j].logprob) << name;
      }
    }
  }
}

}  // namespace ISENTROPE_UNIT
}  // namespace isentrope::rl
