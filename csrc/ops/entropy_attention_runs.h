// Runs of keys that a block of rows keeps, for the CPU backend of entropy_attention, and what is added to their scores.
//
// With a block mask the rows of a block keep the same blocks of columns. Their scores are moved together in the rows of a strip,
// so that products and passes over rows meet what is kept alone, and a row still sees one span of places: keys stay in order. A
// run lies in the panels of places as its keys do in theirs, and its keys in one strip of packed keys. Where the blocks are no
// whole panels, gaps are left between runs; their scores are computed, and not seen.
#pragma once
#include "csrc/ops/entropy_attention_rows.h"

namespace isentrope::ops::CPU_CAPABILITY::attention {

// Keys key … key + count - 1 of one block of columns at places at …
struct Run {
  int64_t key, at, count, column;
  Span places() const { return {at, at + count}; }
};
struct Runs {
  static constexpr int64_t kMost = kForwardStrip / 16 + 2;  // blocks have at least 16 columns
  Run run[kMost];
  int64_t count = 0;
  const Run* begin() const { return run; }
  const Run* end() const { return run + count; }

  // The places of what is seen of keys; a run that is not seen is skipped.
  Span places_of(Span keys) const {
    int64_t i = 0, n = count;
    while (i < n && run[i].key + run[i].count <= keys.from) ++i;
    while (n > i && run[n - 1].key >= keys.to) --n;
    if (i == n) return {};
    const Run &low = run[i], &high = run[n - 1];
    return {low.at + larger(0, keys.from - low.key), high.at + smaller(high.count, keys.to - high.key)};
  }
};

// Calls pass(sights, first, runs) for the keys that the block sees, at most `strip` places at a time: sights are of places
// first … Without a mask the places are the keys themselves, strip by strip.
template <class Real, int64_t kMost, class Pass>
void for_passes(const Block<Real, kMost>& block, int64_t strip, int64_t panel, const Pass& pass) {
  Runs runs;
  if (block.kept == nullptr) {
    runs.count = 1;
    for (int64_t first = block.all.from / strip * strip; first < block.all.to; first += strip) {
      runs.run[0] = {first, 0, strip, 0};
      pass(static_cast<const Sights<kMost>&>(block), first, runs);
    }
    return;
  }
  int64_t filled = 0;  // places, in whole panels
  const auto flush = [&] {
    if (runs.count == 0) return;
    Sights<kMost> moved;
    moved.count = block.count;
    for (int64_t r = 0; r < block.count; ++r) moved.keys[r] = runs.places_of(block.keys[r]);
    moved.join_spans();
    if (!moved.all.empty()) pass(moved, int64_t{0}, runs);
    runs.count = filled = 0;
  };
  const int64_t b = block.block_size;
  for (int64_t key = block.all.from; key < block.all.to;) {
    const int64_t column = key / b;
    if (!block.keeps(column)) {
      key = (column + 1) * b;
      continue;
    }
    const int64_t limit = smaller(block.all.to, (key / strip + 1) * strip);
    int64_t end = (column + 1) * b;  // gates differ from block to block: each is a run
    while (block.gates == nullptr && end < limit && block.keeps(end / b)) end += b;
    const Run* last = runs.count > 0 ? runs.end() - 1 : nullptr;
    const bool same_panel = last != nullptr && (last->key + last->count - 1) / panel == key / panel;
    const int64_t at = same_panel ? last->at + key - last->key : filled + key % panel;
    if (at >= strip || runs.count == Runs::kMost) {
      flush();
      continue;
    }
    const int64_t count = smaller(smaller(end, limit) - key, strip - at);
    runs.run[runs.count++] = {key, at, count, column};
    filled = round_up(at + count, panel);
    key += count;
  }
  flush();
}

// Calls function(part, run) for what lies in each of the runs of a pass.
template <int64_t kMost, class Function>
void for_parts(const Sights<kMost>& sights, int64_t first, const Runs& runs, const Function& function) {
  if (runs.count == 1) return function(sights, runs.run[0]);
  Span common = sights.keys[0];  // what all rows see: most runs lie in it
  for (int64_t r = 1; r < sights.count; ++r) common = overlap(common, sights.keys[r]);
  Sights<kMost> part;
  part.count = sights.count;
  for (const Run& run : runs) {
    const Span all{first + run.at, first + run.at + run.count};
    if (common.from <= all.from && all.to <= common.to) {
      part.fill(all);
    } else {
      for (int64_t r = 0; r < sights.count; ++r) part.keys[r] = overlap(sights.keys[r], all);
      part.join_spans();
    }
    if (!part.all.empty()) function(part, run);
  }
}

// The keys of a run that lie in a part of a pass.
template <int64_t kMost>
Span keys_of(const Sights<kMost>& part, int64_t first, int64_t strip, const Run& run) {
  const Span here = within_strip(part.all, first, strip);
  return {here.from + run.key - run.at, here.to + run.key - run.at};
}

// Places of x between the runs, if any, get a value.
template <class Real>
void fill_between(Real* x, Span seen, const Runs& runs, double value) {
  for (int64_t i = 1; i < runs.count; ++i) {
    const Span gap = overlap(seen, {runs.run[i - 1].places().to, runs.run[i].at});
    for (int64_t j = gap.from; j < gap.to; ++j) x[j] = static_cast<Real>(value);
  }
}

template <class Real, int64_t kMost>
Real log_gate(const Block<Real, kMost>& block, const Run& run) {
  return block.gates == nullptr ? Real(0) : static_cast<Real>(::log(static_cast<double>(block.gates[run.column])));
}

// s[place] += log gate - slope · |place of the query - key|, in the unit of scores.
template <class Real, int64_t kMost>
void add_bias(Real* s, Span seen, const Block<Real, kMost>& block, const Runs& runs, int64_t r) {
  if (!block.biased) return;
  const int64_t place = block.sequence->place(block.query(r));
  for (const Run& run : runs) {
    const Span here = overlap(seen, run.places());
    const Real gate = log_gate<Real>(block, run) / block.row_factor(r), slope = block.slope[r];
    const int64_t shift = run.key - run.at - place;
    for (int64_t j = here.from; j < here.to; ++j) {
      const int64_t distance = j + shift;
      s[j] += gate - slope * static_cast<Real>(distance < 0 ? -distance : distance);
    }
  }
}

}  // namespace isentrope::ops::CPU_CAPABILITY::attention
