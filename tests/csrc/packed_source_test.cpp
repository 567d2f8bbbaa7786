// Windows over a row of tokens: every token once an epoch, the same stream however it is cut.
#include "csrc/data/packed_source.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <numeric>
#include <string>
#include <vector>

#include "tests/csrc/message.h"

namespace isentrope::data {
namespace ISENTROPE_UNIT {

// The row 0, 1, … n − 1: a token tells its place.
std::shared_ptr<const TokenShard> row_of(int64_t n) {
  const std::string file = ::testing::TempDir() + "isentrope_row_" + std::to_string(::getpid());
  std::vector<int64_t> tokens(static_cast<size_t>(n));
  std::iota(tokens.begin(), tokens.end(), 0);
  TokenShardWriter writer(file, 0, 0);
  writer.write(tokens);
  writer.commit();
  auto shard = std::make_shared<const TokenShard>(file);
  std::filesystem::remove(file);
  return shard;
}

Windows windows_of(int64_t n, int64_t context, uint64_t seed = 1) { return {row_of(n), context, seed, "training"}; }

TEST(Windows, EveryTokenIsATargetOnceAnEpoch) {
  for (const auto& [n, context] :
       std::vector<std::pair<int64_t, int64_t>>{{2, 1}, {97, 8}, {96, 8}, {33, 32}, {1000, 31}}) {
    const Windows windows = windows_of(n, context);
    EXPECT_EQ(windows.size(), (n + context - 1) / context);
    for (const int64_t epoch : {0, 1, 5}) {
      const Batch batch = windows.take(epoch * windows.size(), windows.size());
      ASSERT_EQ(batch.tokens.sizes(), (std::vector<int64_t>{windows.size(), context}));
      std::vector<int> seen(static_cast<size_t>(n));
      const torch::Tensor tokens = batch.tokens.flatten(), target = batch.target.flatten();
      for (int64_t i = 0; i < target.numel(); ++i) {
        const auto next = target[i].item<int64_t>();
        if (next == kIgnore) continue;
        EXPECT_EQ(next, (tokens[i].item<int64_t>() + 1) % n);
        ++seen[static_cast<size_t>(next)];
      }
      EXPECT_EQ(seen, std::vector<int>(static_cast<size_t>(n), 1)) << n << " tokens, context " << context;
    }
  }
}

TEST(Windows, AWindowIsARunOfTheRow) {
  const Batch batch = windows_of(100, 7).take(0, 40);
  for (int64_t w = 0; w < 40; ++w)
    for (int64_t t = 1; t < 7; ++t)
      EXPECT_EQ(batch.tokens[w][t].item<int64_t>(), (batch.tokens[w][t - 1].item<int64_t>() + 1) % 100);
}

TEST(Windows, EpochsDifferInOrderAndOffset) {
  const Windows windows = windows_of(640, 64);
  const auto first_tokens = [](const Windows& w, int64_t epoch) {
    const torch::Tensor first = w.take(epoch * w.size(), w.size()).tokens.select(1, 0).contiguous();
    return std::vector<int64_t>(first.data_ptr<int64_t>(), first.data_ptr<int64_t>() + first.numel());
  };
  const auto a = first_tokens(windows, 0), b = first_tokens(windows, 1);
  EXPECT_NE(a, b);
  EXPECT_NE(a[0] % 64, b[0] % 64) << "the offset";
  EXPECT_EQ(a, first_tokens(windows_of(640, 64), 0));
  EXPECT_NE(a, first_tokens(windows_of(640, 64, 2), 0));
}

TEST(Windows, TakeIsOneStreamHoweverItIsCut) {
  const Windows windows = windows_of(50, 6);
  const Batch whole = windows.take(0, 60);
  for (const int64_t piece : {1, 4, 9, 60}) {
    std::vector<torch::Tensor> tokens, target;
    for (int64_t first = 0; first < 60; first += piece) {
      const Batch part = windows.take(first, std::min(piece, 60 - first));
      tokens.push_back(part.tokens);
      target.push_back(part.target);
    }
    EXPECT_TRUE(torch::equal(torch::cat(tokens), whole.tokens)) << "in pieces of " << piece;
    EXPECT_TRUE(torch::equal(torch::cat(target), whole.target)) << "in pieces of " << piece;
  }
  EXPECT_EQ(windows.take(3, 0).size(), 0);
  EXPECT_THROW(windows.take(-1, 1), std::invalid_argument);
}

TEST(Windows, TooFewTokensAreAnError) {
  expect_all(message<std::runtime_error>([] { windows_of(8, 8); }),
             {"training", "8", "takes 9", "model.max_position_embeddings"});
  EXPECT_EQ(windows_of(9, 8).size(), 2);
}

TEST(PackedSource, StepsAreCutFromTheStream) {
  PackedSource source(row_of(50), 4, 6, 3);
  const Windows windows(row_of(50), 6, 3, "training");
  for (int64_t step = 0; step < 3; ++step) {
    source.next(step);  // of a step that was broken off: it is taken again
    const StepData data = source.next(step);
    ASSERT_EQ(data.updates.size(), 1u);
    EXPECT_TRUE(torch::equal(data.updates[0].tokens, windows.take(4 * step, 4).tokens));
    EXPECT_EQ(source.state().at("taken").item<int64_t>(), 4 * step);
    source.commit();
  }
  PackedSource wider(row_of(50), 5, 6, 3);  // goes on where the other stopped, with batches of another size
  wider.restore(source.state());
  EXPECT_TRUE(torch::equal(wider.next(3).updates[0].tokens, windows.take(12, 5).tokens));
}

TEST(PackedSource, AResumedRunWantsTheSameTokens) {
  const auto state = PackedSource(row_of(50), 4, 6, 3).state();
  PackedSource same(row_of(50), 4, 6, 3), longer(row_of(51), 4, 6, 3);
  EXPECT_NO_THROW(same.restore(state));
  expect_all(message<std::runtime_error>([&] { longer.restore(state); }), {"corpus", "51 tokens", "new run"});
  expect_all(message<std::runtime_error>([&] { same.restore({}); }), {"corpus"});
}

}  // namespace ISENTROPE_UNIT
}  // namespace isentrope::data
