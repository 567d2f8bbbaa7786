#include "csrc/rl/tree.h"

#include <gtest/gtest.h>

#include <cmath>

namespace isentrope::rl {
namespace ISENTROPE_UNIT {

Completion leaf(int64_t parent, int64_t begin, int64_t length) {
  return {.prompt = 0, .parent = parent, .begin = begin, .tokens = std::vector<int64_t>(length, 1)};
}

void expect_segments(const std::vector<Segment>& got, const std::vector<Segment>& wanted) {
  ASSERT_EQ(got.size(), wanted.size());
  for (size_t i = 0; i < got.size(); ++i) {
    EXPECT_EQ(std::pair(got[i].begin, got[i].end), std::pair(wanted[i].begin, wanted[i].end)) << "segment " << i;
    EXPECT_DOUBLE_EQ(got[i].value, wanted[i].value) << "segment " << i;
    EXPECT_DOUBLE_EQ(got[i].weight, wanted[i].weight) << "segment " << i;
  }
}

TEST(Tree, LeavesAreAveragedUpwards) {
  //  0 ── 3 ───── 8 ─── 12        reward 1
  //       │       └──── 11        reward 0    (child 2)
  //       └── 5 ─── 9             reward 4    (child 1)
  //           └──── 10            reward 8    (grandchild)
  const std::vector<Completion> tree{leaf(-1, 0, 12), leaf(0, 3, 9), leaf(0, 8, 11), leaf(1, 5, 10), leaf(-1, 0, 2)};
  const auto got = segments(tree, std::vector<double>{1, 4, 0, 8, 7});
  expect_segments(got[0], {{0, 3, (0.5 + 6) / 2, 1}, {3, 8, 0.5, 0.5}, {8, 12, 1, 0.25}});
  expect_segments(got[1], {{3, 5, 6, 0.5}, {5, 9, 4, 0.25}});
  expect_segments(got[2], {{8, 11, 0, 0.25}});
  expect_segments(got[3], {{5, 10, 8, 0.25}});
  expect_segments(got[4], {{0, 2, 7, 1}});
}

// Over many trees of a fixed policy, the values of trees have the mean of the first samples' rewards; a mean of all leaves does
// not, since the reward speaks of the entropy that branches are made by.
TEST(Tree, ValuesHaveNoBias) {
  model::DecoderConfig config;
  config.num_hidden_layers = 1;
  config.hidden_size = 16;
  config.num_attention_heads = config.num_key_value_heads = 2;
  config.intermediate_size = 24;
  config.max_position_embeddings = 16;
  config.vocabulary = 7;
  config.initializer_range = 1.2;  // distributions from near certain to near uniform
  const model::Decoder decoder(config, 3);
  SamplingConfig sampling;
  sampling.max_new_tokens = 10;
  double difference = 0, squares = 0, naive = 0, naive_squares = 0, values = 0, value_squares = 0, rewards = 0,
         reward_squares = 0;
  int64_t trees = 0, branches = 0;
  RolloutCounts counts;
  for (int64_t step = 0; step < 200; ++step) {
    const auto all = rollout(decoder, {{1, 2}}, {200}, sampling, {6}, {.seed = 5, .step = step}, {},
                             Branching{.threshold = 0.7, .window = 3, .sequences = 800}, &counts);
    branches += counts.branches;
    std::vector<double> reward;
    for (const Completion& c : all) {
      double sum = 0;
      for (size_t t = 0; t < c.tokens.size(); ++t) sum += c.entropy[t];
      reward.push_back(sum);
    }
    const auto found = segments(all, reward);
    for (size_t i = 0; i < all.size();) {
      size_t end = i + 1;
      double leaves = reward[i];
      for (; end < all.size() && all[end].parent >= 0; ++end) leaves += reward[end];
      const double value = found[i].front().value, d = value - reward[i],
                   n = leaves / static_cast<double>(end - i) - reward[i];
      difference += d, squares += d * d, naive += n, naive_squares += n * n;
      values += value, value_squares += value * value, rewards += reward[i], reward_squares += reward[i] * reward[i];
      ++trees;
      i = end;
    }
  }
  const auto T = static_cast<double>(trees);
  const auto error = [&](double sum, double sum_squares) { return std::sqrt((sum_squares - sum * sum / T) / T / T); };
  const double variance = value_squares / T - values * values / T / T,
               plain = reward_squares / T - rewards * rewards / T / T;
  std::cout << trees << " trees, " << branches << " branches: value − reward " << difference / T << " ± "
            << error(difference, squares) << ", mean of leaves − reward " << naive / T << " ± "
            << error(naive, naive_squares) << "; variance of values " << variance << ", of rewards " << plain << "\n";
  EXPECT_GT(branches, trees / 4);
  EXPECT_GT(naive, 5 * T * error(naive, naive_squares)) << "the plain mean has no bias to see here";
  EXPECT_LT(std::abs(difference), 4 * T * error(difference, squares));
  EXPECT_LT(variance, plain);
}

}  // namespace ISENTROPE_UNIT
}  // namespace isentrope::rl
