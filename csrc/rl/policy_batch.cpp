#include "csrc/rl/policy_batch.h"

#include <algorithm>

#include "csrc/rl/tree.h"

namespace isentrope::rl {
namespace {

using data::Batch;

// Advantages of the tokens of each completion's segments, their weights included: [completions][segments].
struct TokenAdvantage {
  int64_t begin, end;
  double value;
};
std::vector<std::vector<TokenAdvantage>> token_advantages(const Kept& kept, const AdvantageConfig& config) {
  const auto found = segments(kept.completions, kept.rewards);
  // A tree counts in its group as one completion: with its value, and the length of its first sample.
  std::vector<double> values;
  std::vector<int64_t> lengths, tree_of;
  Groups trees{0};
  for (int64_t g = 0; g < kept.size(); ++g) {
    for (int64_t i = kept.groups[g]; i < kept.groups[g + 1]; ++i) {
      const Completion& c = kept.completions[i];
      if (c.parent < 0) {
        values.push_back(found[i].front().value);
        lengths.push_back(static_cast<int64_t>(c.tokens.size()));
      }
      tree_of.push_back(static_cast<int64_t>(values.size()) - 1);
    }
    trees.push_back(static_cast<int64_t>(values.size()));
  }
  const Advantages a = advantages(values, lengths, trees, config);
  std::vector<std::vector<TokenAdvantage>> out(found.size());
  for (size_t i = 0; i < found.size(); ++i)
    for (const Segment& s : found[i]) {
      const int64_t j = tree_of[i];
      out[i].push_back({s.begin, s.end, s.weight * (a.value[j] + a.slope[j] * (s.value - values[j]))});
    }
  return out;
}

// Rows of a policy update from groups first … last − 1: prompt and completion padded on the right; target and statistics where
// the completion's own tokens are. ares: of all completions of the step, where there is any.
Batch collate(const Kept& kept, int64_t first, int64_t last, const std::vector<std::vector<TokenAdvantage>>& advantage,
              const AresStep& ares, bool mask_truncated) {
  const int64_t begin = kept.groups[first], B = kept.groups[last] - begin;
  int64_t T = 1;
  for (int64_t g = first; g < last; ++g)
    for (int64_t i = kept.groups[g]; i < kept.groups[g + 1]; ++i)
      T = std::max<int64_t>(T, kept.prompts[g].size() + kept.completions[i].tokens.size());
  Batch batch{torch::zeros({B, T}, torch::kInt64), torch::full({B, T}, data::kIgnore, torch::kInt64),
              torch::zeros({B, T}, torch::kFloat32), torch::zeros({B, T}, torch::kFloat32)};
  batch.lengths = torch::empty({B}, torch::kInt64);
  const bool weighs = !ares.kl_weight.empty();
  if (weighs) {
    batch.ref_kl_weight = torch::ones({B, T}, torch::kFloat32);
    batch.difficulty = torch::empty({B}, torch::kInt64);
  }
  auto tokens = batch.tokens.accessor<int64_t, 2>();
  auto target = batch.target.accessor<int64_t, 2>();
  auto logprob = batch.old_logprob.accessor<float, 2>();
  auto token_advantage = batch.advantage.accessor<float, 2>();
  for (int64_t g = first; g < last; ++g)
    for (int64_t i = kept.groups[g]; i < kept.groups[g + 1]; ++i) {
      const Completion& completion = kept.completions[i];
      const int64_t row = i - begin, start = kept.prompts[g].size();
      std::copy(kept.prompts[g].begin(), kept.prompts[g].end(), tokens[row].data());
      std::copy(completion.tokens.begin(), completion.tokens.end(), tokens[row].data() + start);
      batch.lengths.mutable_data_ptr<int64_t>()[row] = start + std::ssize(completion.tokens);
      if (weighs) batch.difficulty.mutable_data_ptr<int64_t>()[row] = ares.difficulty[i];
      if (mask_truncated && !completion.stopped) continue;
      for (const TokenAdvantage& part : advantage[i])
        for (int64_t t = part.begin; t < part.end; ++t) {
          const int64_t at = start + t - 1;  // the position whose logits predict the token
          target[row][at] = completion.tokens[t];
          logprob[row][at] = completion.logprob[t];
          token_advantage[row][at] = static_cast<float>(part.value);
          if (weighs) batch.ref_kl_weight.mutable_data_ptr<float>()[row * T + at] = ares.kl_weight[i][t];
        }
    }
  return batch;
}

}  // namespace

AresStep shape(Ares& ares, double weight, Kept& kept) {
  std::vector<AresCompletion> completions;
  for (size_t i = 0; i < kept.completions.size(); ++i)
    completions.push_back({kept.completions[i].tokens, kept.completions[i].entropy, kept.right[i]});
  AresStep shaped = ares.step(completions, kept.groups);
  for (size_t i = 0; i < kept.rewards.size(); ++i) kept.rewards[i] += weight * shaped.shaping[i];
  return shaped;
}

std::vector<Batch> policy_batches(const Kept& kept, int64_t updates, const AdvantageConfig& advantage,
                                  const AresStep& ares, bool mask_truncated) {
  const auto of_tokens = token_advantages(kept, advantage);
  std::vector<Batch> batches;
  for (int64_t u = 0; u < updates; ++u)
    batches.push_back(
        collate(kept, kept.size() * u / updates, kept.size() * (u + 1) / updates, of_tokens, ares, mask_truncated));
  return batches;
}

}  // namespace isentrope::rl
