#include "csrc/model/page_table.h"

#include <algorithm>

namespace isentrope::model {

PageTable::PageTable(int64_t pages, std::function<void(int32_t, int32_t)> copy,
                     std::function<void(int64_t, int64_t)> forked)
    : copy_(std::move(copy)), forked_(std::move(forked)), references_(pages) {
  for (int64_t page = pages; page-- > 0;) free_.push_back(static_cast<int32_t>(page));  // the first page is taken first
}

int32_t PageTable::take() {
  const int32_t page = free_.back();
  free_.pop_back();
  references_[page] = 1;
  return page;
}

void PageTable::release(int32_t page) {
  if (--references_[page] == 0) free_.push_back(page);
}

int64_t PageTable::open() {
  if (later_) later_->open();  // the same number: both have opened and closed the same
  return number();
}

int64_t PageTable::number() {
  if (closed_.empty()) {
    sequences_.emplace_back();
    return static_cast<int64_t>(sequences_.size()) - 1;
  }
  const int64_t sequence = closed_.back();
  closed_.pop_back();
  return sequence;
}

int64_t PageTable::fork(int64_t sequence, int64_t count) {
  if (later_) later_->fork(sequence, count - shorter(sequence));
  const int64_t child = number();  // may move sequences_
  Sequence& to = sequences_[child];
  const Sequence& from = sequences_[sequence];
  to.pages.assign(from.pages.begin(), from.pages.begin() + pages_of(count));
  to.length = count;
  to.shorter = from.shorter;
  for (const int32_t page : to.pages) ++references_[page];
  if (forked_) forked_(sequence, child);
  return child;
}

void PageTable::close(int64_t sequence) {
  if (later_) later_->close(sequence);
  for (const int32_t page : sequences_[sequence].pages) release(page);
  sequences_[sequence] = {};
  closed_.push_back(sequence);
}

bool PageTable::extend(int64_t sequence, int64_t count) {
  Sequence& s = sequences_[sequence];
  const int64_t held = static_cast<int64_t>(s.pages.size()), wanted = pages_of(count);
  // Of the pages held, only one that is partly filled is written to again.
  const bool shared = count > s.length && s.length % kPagePositions != 0 && references_[s.pages.back()] > 1;
  if (std::max<int64_t>(wanted - held, 0) + shared > free_pages()) return false;
  if (later_ && !later_->extend(sequence, count - s.shorter)) return false;
  if (shared) {
    const int32_t own = take();
    copy_(s.pages.back(), own);
    release(s.pages.back());
    s.pages.back() = own;
  }
  while (static_cast<int64_t>(s.pages.size()) < wanted) s.pages.push_back(take());
  s.length = std::max(s.length, count);
  return true;
}

}  // namespace isentrope::model
