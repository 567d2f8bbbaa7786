#include "csrc/train/block_cache.h"

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <torch/types.h>
#include <unistd.h>

#include <atomic>
#include <cstring>
#include <random>
#include <thread>
#include <vector>

namespace isentrope::train {
namespace ISENTROPE_UNIT {

constexpr size_t MiB = size_t{1} << 20;

TEST(BlockCache, ATensorOfAboutTheSizeTakesTheBlockThatIsThere) {
  BlockCache& cache = BlockCache::of_process();
  cache.release();
  EXPECT_EQ(cache.kept(), 0);
  { const c10::DataPtr most = cache.allocate(64 * MiB); }
  void* const first = [&] {
    const c10::DataPtr block = cache.allocate(16 * MiB);
    return block.get();
  }();
  EXPECT_EQ(cache.used(), 0);
  EXPECT_EQ(cache.kept(), 16 * MiB) << "64 were in use at most: the block of 64 had to go for one of 16";
  EXPECT_EQ(cache.allocate(15 * MiB).get(), first);
  EXPECT_NE(cache.allocate(14 * MiB).get(), first) << "more than an eighth would lie idle";
  EXPECT_NE(cache.allocate(17 * MiB).get(), first);
}

TEST(BlockCache, SmallOnesAreOfTheHeap) {
  BlockCache& cache = BlockCache::of_process();
  const c10::DataPtr one = cache.allocate(BlockCache::kLeast - 1), none = cache.allocate(0);
  EXPECT_NE(one.get(), nullptr);
  EXPECT_EQ(cache.used(), 0);
}

TEST(BlockCache, OneDnnTakesAndGivesBackAddressesAlone) {
  BlockCache& cache = BlockCache::of_process();
  void *const small = cache.raw_allocate(64), *const large = cache.raw_allocate(3 * MiB);
  EXPECT_EQ(cache.used(), 3 * MiB);
  cache.raw_deallocate(small);
  cache.raw_deallocate(large);
  EXPECT_EQ(cache.used(), 0);
}

// Sizes that never come again: what is kept is given back, oldest first.
TEST(BlockCache, WhatIsKeptIsBoundByWhatWasUsed) {
  BlockCache& cache = BlockCache::of_process();
  std::vector<c10::DataPtr> live;
  std::mt19937 draw(1);
  for (int i = 0; i < 2000; ++i) {
    if (live.size() < 8)
      live.push_back(cache.allocate(MiB + draw() % (24 * MiB)));
    else
      live.erase(live.begin() + draw() % live.size());
    ASSERT_LE(cache.used() + cache.kept(), cache.most()) << "after " << i;
  }
  live.clear();
  EXPECT_EQ(cache.used(), 0);
}

TEST(BlockCache, NoTwoTensorsOfAnyThreadsHaveABlock) {
  BlockCache& cache = BlockCache::of_process();
  std::atomic<int> wrong = 0;
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t)
    threads.emplace_back([&, t] {
      std::mt19937 draw(t);
      for (int i = 0; i < 200; ++i) {
        const size_t bytes = MiB + draw() % (2 * MiB);
        const c10::DataPtr block = cache.allocate(bytes);
        auto* const words = static_cast<unsigned char*>(block.get());
        for (size_t b = 0; b < bytes; b += 4096) words[b] = static_cast<unsigned char>(t);
        words[bytes - 1] = static_cast<unsigned char>(t);
        for (size_t b = 0; b < bytes; b += 4096) wrong += words[b] != t;
      }
    });
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(wrong, 0);
  EXPECT_EQ(cache.used(), 0);
}

TEST(BlockCache, AForkWithinAnothersCallGoesOn) {
  BlockCache::hold_in_forks();
  BlockCache& cache = BlockCache::of_process();
  std::atomic<bool> ends = false;
  std::thread other([&] {
    while (!ends) cache.allocate(2 * MiB);
  });
  int hung = 0;
  for (int i = 0; i < 200; ++i) {
    const pid_t child = ::fork();
    if (child == 0) {
      ::alarm(5);  // ends a child that waits
      { const c10::DataPtr block = cache.allocate(2 * MiB); }
      ::_exit(0);
    }
    int status = 0;
    ASSERT_EQ(::waitpid(child, &status, 0), child);
    hung += status != 0;
    if (hung > 0) break;
  }
  ends = true;
  other.join();
  EXPECT_EQ(hung, 0);
}

// Of a trainer in another's process: what its thread makes while it is at work, and nothing else.
TEST(BlockCache, ATensorMemoryIsOfItsThreadAlone) {
  BlockCache& cache = BlockCache::of_process();
  cache.release();
  const auto made = [] { return torch::empty({3 * static_cast<int64_t>(MiB)}, torch::kByte); };
  torch::Tensor outlives;
  {
    const TensorMemory own(true);
    EXPECT_TRUE(keeps_tensor_memory());
    outlives = made();
    EXPECT_EQ(cache.used(), 3 * MiB);
    {
      const TensorMemory users(false);
      EXPECT_FALSE(keeps_tensor_memory());
      const torch::Tensor other = made();
      EXPECT_EQ(cache.used(), 3 * MiB);
    }
    std::thread([&] {
      const torch::Tensor other = made();
      EXPECT_EQ(cache.used(), 3 * MiB);
    }).join();
    const torch::Tensor second = made();
    EXPECT_EQ(cache.used(), 6 * MiB);
  }
  EXPECT_FALSE(keeps_tensor_memory());
  const torch::Tensor other = made();
  EXPECT_EQ(cache.used(), 3 * MiB);
  EXPECT_EQ(cache.kept(), 3 * MiB);
  outlives = torch::Tensor();
  EXPECT_EQ(cache.used(), 0);
  cache.release();
  EXPECT_EQ(cache.kept(), 0);
}

TEST(BlockCache, MoreThanThereIsIsRefused) {
  BlockCache& cache = BlockCache::of_process();
  EXPECT_THROW(cache.allocate(size_t{1} << 60), c10::OutOfMemoryError);
  EXPECT_EQ(cache.used(), 0);
  EXPECT_NE(cache.allocate(MiB).get(), nullptr);
}

}  // namespace ISENTROPE_UNIT
}  // namespace isentrope::train
