// What ranks share out and compare; what several of them do together: tests/python/test_ranks.py.
#include <gtest/gtest.h>

#include <numeric>

#include "csrc/train/gradients.h"
#include "csrc/train/objective.h"
#include "csrc/train/rank_check.h"

namespace isentrope::train {
namespace ISENTROPE_UNIT {

data::Batch batch_of(const std::vector<int64_t>& lengths) {
  const int64_t B = static_cast<int64_t>(lengths.size()), T = 9;
  data::Batch batch{.tokens = torch::arange(B * T).view({B, T}),
                    .target = torch::arange(B * T).view({B, T}),
                    .old_logprob = torch::ones({B, T}),
                    .advantage = torch::ones({B, T})};
  batch.lengths = torch::tensor(lengths, torch::kInt64);
  return batch;
}

TEST(Ranks, SharesAreRunsOfRowsOfAboutAsManyTokens) {
  const std::vector<int64_t> lengths{9, 1, 1, 1, 1, 1, 1, 1, 1, 1, 9, 9, 2, 3, 4};
  const data::Batch update = batch_of(lengths);
  for (int64_t ranks = 1; ranks <= 15; ++ranks) {
    std::vector<torch::Tensor> parts;
    for (int64_t rank = 0; rank < ranks; ++rank) {
      const data::Batch own = share_of_rank(update, rank, ranks);
      ASSERT_GE(own.size(), 1) << rank << " of " << ranks;
      parts.push_back(own.tokens);
      const auto tokens = own.lengths.sum().item<int64_t>();
      EXPECT_LE(tokens, 45 / ranks + 9) << rank << " of " << ranks << " ranks has " << tokens << " of 45 tokens";
    }
    EXPECT_TRUE(torch::cat(parts).equal(update.tokens)) << ranks;
  }
}

TEST(Ranks, OfFewerRowsTheLastHaveOneOfWhichNothingCounts) {
  const data::Batch update = batch_of({3, 5});
  EXPECT_TRUE(share_of_rank(update, 1, 4).tokens.equal(update.tokens.slice(0, 1, 2)));
  const data::Batch none = share_of_rank(update, 3, 4);
  EXPECT_EQ(none.size(), 1);
  EXPECT_TRUE((none.target == data::kIgnore).all().item<bool>());
  EXPECT_FALSE(none.real().any().item<bool>());
  EXPECT_EQ(none.advantage.abs().sum().item<float>(), 0);
}

TEST(Ranks, OwnersHaveAboutAsMuch) {
  const std::vector<int64_t> sizes{100, 7, 7, 50, 50, 33, 1, 1, 64};
  for (int64_t ranks = 1; ranks <= 4; ++ranks) {
    std::vector<int64_t> has(ranks, 0);
    const auto owners = owners_of(sizes, ranks);
    for (size_t i = 0; i < sizes.size(); ++i) has.at(owners[i]) += sizes[i];
    for (const int64_t one : has) EXPECT_LE(one, 313 / ranks + 34) << ranks;
  }
}

TEST(Ranks, DifferencesNameKeyAndBothValues) {
  EXPECT_EQ(difference({{"a", "1"}, {"b", "2"}}, {{"a", "1"}, {"b", "2"}}, 1), "");
  EXPECT_EQ(
      difference({{"a", "1"}, {"b", "2"}, {"the program", "isentrope 1"}},
                 {{"b", "3"}, {"c", "4"}, {"the program", "isentrope 2"}}, 2),
      "b is 2 on rank 0, and 3 on rank 2; c is not there on rank 0, and 4 on rank 2; the program is isentrope 1 on "
      "rank 0, and isentrope 2 on rank 2; a is 1 on rank 0, and not there on rank 2");
}

TEST(Ranks, OfOneVerbsGiveBackWhatTheyGot) {
  const Ranks one;
  torch::Tensor x = torch::tensor({1.5, 2.5});
  one.sum(x);
  one.max(x);
  EXPECT_TRUE(one.rows(x).equal(torch::tensor({1.5, 2.5})));
  EXPECT_EQ(one.sum(3.0), 3.0);
  EXPECT_EQ(one.max(int64_t{7}), 7);
  EXPECT_EQ(one.gather("a"), std::vector<std::string>{"a"});
  EXPECT_EQ(one.together([] { return 5; }), 5);
  const auto queue = one.queue();
  EXPECT_EQ(queue(), 0);
  EXPECT_EQ(queue(), 1);
  EXPECT_EQ(one.bytes_sent(), 0);
}

}  // namespace ISENTROPE_UNIT
}  // namespace isentrope::train
