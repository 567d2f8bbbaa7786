// Which pages of a cache hold the positions of which sequence. A page is the room of kPagePositions positions in all layers;
// sequences that have a beginning in common hold its pages together, and one is copied when a sequence is about to write into
// it that does not hold it alone. It knows no floats: the owner of the memory copies.
#pragma once
#include <cstdint>
#include <functional>
#include <span>
#include <vector>

namespace isentrope::model {

// Two vectors of eight floats, which the scores of a page are summed in. A sequence leaves half of its last page unused in the mean.
inline constexpr int64_t kPagePositions = 16;

inline int64_t pages_of(int64_t positions) { return (positions + kPagePositions - 1) / kPagePositions; }

class PageTable {
 public:
  // copy(from, to): gives page `to` what page `from` holds. forked(from, to): sequence `to` begins with positions of `from`.
  PageTable(int64_t pages, std::function<void(int32_t from, int32_t to)> copy,
            std::function<void(int64_t from, int64_t to)> forked = {});

  // An empty sequence. Its number is free again after close().
  int64_t open();
  // A sequence that begins with the first `count` positions of another: their pages, by reference.
  int64_t fork(int64_t sequence, int64_t count);
  void close(int64_t sequence);
  // Makes room for the positions from length() up to count − 1, to be written by this sequence alone, and length() count.
  // False, and nothing has changed, where too few pages are free.
  bool extend(int64_t sequence, int64_t count);

  // Another table, of layers that hold fewer positions of the same sequences: what is done to this one is done to it. Both are new.
  void lead(PageTable& later) { later_ = &later; }
  // The later table holds so many positions of a sequence fewer, which has none yet; of what is forked from it too.
  void shorten(int64_t sequence, int64_t positions) { sequences_[sequence].shorter = positions; }
  int64_t shorter(int64_t sequence) const { return sequences_[sequence].shorter; }
  // Whether so many pages are free, and of the later table, if there is one, so many.
  bool has_free(int64_t pages, int64_t later) const {
    return pages <= free_pages() && (!later_ || later <= later_->free_pages());
  }

  int64_t length(int64_t sequence) const { return sequences_[sequence].length; }
  // Page i holds positions i · kPagePositions and on.
  std::span<const int32_t> pages(int64_t sequence) const { return sequences_[sequence].pages; }
  int64_t references(int32_t page) const { return references_[page]; }
  int64_t free_pages() const { return static_cast<int64_t>(free_.size()); }
  int64_t size() const { return static_cast<int64_t>(references_.size()); }

 private:
  struct Sequence {
    std::vector<int32_t> pages;
    int64_t length = 0, shorter = 0;
  };
  int64_t number();
  int32_t take();
  void release(int32_t page);

  PageTable* later_ = nullptr;
  std::function<void(int32_t, int32_t)> copy_;
  std::function<void(int64_t, int64_t)> forked_;
  std::vector<int32_t> references_;  // [pages]
  std::vector<int32_t> free_;
  std::vector<Sequence> sequences_;
  std::vector<int64_t> closed_;  // numbers that open() may give again
};

}  // namespace isentrope::model
