#include "csrc/model/page_table.h"

#include <gtest/gtest.h>

#include <map>

#include "csrc/data/random.h"

namespace isentrope::model {
namespace ISENTROPE_UNIT {

// A page table beside plain copies: every position written is a number of its own, in a page of the table and in a vector.
class Checked {
 public:
  explicit Checked(int64_t pages)
      : memory_(pages * kPagePositions, -1), table_(pages, [this](int32_t from, int32_t to) {
          std::copy_n(memory_.begin() + from * kPagePositions, kPagePositions, memory_.begin() + to * kPagePositions);
        }) {}

  int64_t open() { return adopt(table_.open(), {}); }
  int64_t fork(int64_t sequence, int64_t count) {
    const std::vector<int64_t>& from = plain_.at(sequence);
    return adopt(table_.fork(sequence, count), {from.begin(), from.begin() + count});
  }
  bool extend(int64_t sequence, int64_t count) {
    const int64_t free = table_.free_pages(), length = table_.length(sequence);
    if (!table_.extend(sequence, count)) {
      EXPECT_EQ(table_.free_pages(), free);
      EXPECT_EQ(table_.length(sequence), length);
      return false;
    }
    for (int64_t t = length; t < count; ++t) {
      memory_[table_.pages(sequence)[t / kPagePositions] * kPagePositions + t % kPagePositions] = ++written_;
      plain_[sequence].push_back(written_);
    }
    return true;
  }
  void close(int64_t sequence) {
    table_.close(sequence);
    plain_.erase(sequence);
  }

  // No page is lost, freed twice or written to by another, and every sequence reads what its plain copy holds.
  void check() const {
    std::vector<int64_t> holders(table_.size());
    for (const auto& [sequence, tokens] : plain_) {
      const auto pages = table_.pages(sequence);
      ASSERT_EQ(table_.length(sequence), static_cast<int64_t>(tokens.size()));
      ASSERT_EQ(static_cast<int64_t>(pages.size()), pages_of(table_.length(sequence)));
      for (const int32_t page : pages) ++holders[page];
      for (size_t t = 0; t < tokens.size(); ++t)
        ASSERT_EQ(memory_[pages[t / kPagePositions] * kPagePositions + t % kPagePositions], tokens[t])
            << "sequence " << sequence << ", position " << t;
    }
    int64_t free = 0;
    for (int32_t page = 0; page < table_.size(); ++page) {
      ASSERT_EQ(table_.references(page), holders[page]) << "page " << page;
      free += holders[page] == 0;
    }
    ASSERT_EQ(table_.free_pages(), free);
  }

  const PageTable& table() const { return table_; }
  const std::map<int64_t, std::vector<int64_t>>& plain() const { return plain_; }

 private:
  int64_t adopt(int64_t sequence, std::vector<int64_t> tokens) {
    EXPECT_TRUE(plain_.emplace(sequence, std::move(tokens)).second) << "sequence " << sequence << " was given twice";
    return sequence;
  }

  std::vector<int64_t> memory_;
  PageTable table_;
  std::map<int64_t, std::vector<int64_t>> plain_;
  int64_t written_ = 0;
};

TEST(PageTable, RandomUseLosesNothing) {
  int64_t refused = 0, shared = 0;
  for (uint64_t seed = 0; seed < 20; ++seed) {
    data::Stream random(seed, data::Purpose::example);
    Checked cache(5 + random.below(30));
    const auto any = [&] { return std::next(cache.plain().begin(), random.below(cache.plain().size()))->first; };
    for (int i = 0; i < 600; ++i) {
      const uint32_t what = random.below(10);
      if (cache.plain().empty() || what == 0) {
        cache.open();
      } else if (what < 6) {  // a prompt, a token, nothing
        const int64_t s = any();
        refused += !cache.extend(s, cache.table().length(s) + std::vector<int64_t>{1, 1, 3, 40, 0}[random.below(5)]);
      } else if (what < 8) {  // a sample of a prompt, a branch that rolls back
        const int64_t s = any();
        cache.fork(s, random.below(static_cast<uint32_t>(cache.table().length(s)) + 1));
      } else {  // a sequence that ends or gives its pages up
        cache.close(any());
      }
      for (int32_t page = 0; page < cache.table().size(); ++page) shared += cache.table().references(page) > 1;
      cache.check();
      if (testing::Test::HasFatalFailure()) FAIL() << "seed " << seed << ", step " << i;
    }
    while (!cache.plain().empty()) cache.close(any());
    EXPECT_EQ(cache.table().free_pages(), cache.table().size());
  }
  EXPECT_GT(refused, 100);
  EXPECT_GT(shared, 1000);
}

TEST(PageTable, APageIsCopiedWhenItIsWrittenAndHeldByAnother) {
  Checked cache(6);
  const int64_t prompt = cache.open();
  ASSERT_TRUE(cache.extend(prompt, 20));
  const int64_t a = cache.fork(prompt, 20), b = cache.fork(prompt, 16);
  EXPECT_EQ(cache.table().free_pages(), 4);
  ASSERT_TRUE(cache.extend(a, 21));  // a copy of the page of position 16 …
  ASSERT_TRUE(cache.extend(b, 17));  // a page of its own
  EXPECT_EQ(cache.table().free_pages(), 2);
  EXPECT_EQ(cache.table().references(cache.table().pages(prompt)[0]), 3);
  cache.check();
  cache.close(prompt);
  cache.check();
  EXPECT_EQ(cache.table().free_pages(), 3);
  ASSERT_FALSE(cache.extend(a, 81));
  ASSERT_TRUE(cache.extend(a, 80));
  cache.check();
}

}  // namespace ISENTROPE_UNIT
}  // namespace isentrope::model
