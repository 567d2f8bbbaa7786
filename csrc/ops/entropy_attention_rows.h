// The rows, keys and blocks of the CPU backend of entropy_attention, and the passes over rows of scores.
//
// The queries of all heads of a key head are one list of rows, taken in blocks of kRows; the keys are taken in strips. A strip
// is packed once for all blocks. Block by strip, products of whole blocks alternate with passes over rows:
//
//   forward    s = q·kᵀ     softmax_row: p in place of s     out += p·v
//   backward   s = q·kᵀ     dp = dout·vᵀ    gradient_row: p in place of s, ds of dp
//              dq += ds·k   dv += pᵀ·dout   dk += dsᵀ·q'
//
// Products are of q as it is; the passes over rows take s = factor · (q·k), factor = scale/τ (scale/softcap), and q' is q times
// factor, so that dk needs none afterwards. Both directions form s by the same products: what the backward pass recomputes is
// what the forward pass had, bit for bit, and anchor, the largest q·k (or capped logit) of a row, is one of them.
//
// The one mask is the span of keys that a row sees. Products skip tiles that see nothing of a panel and sum over the keys that
// some row of the tile sees; there p and ds are 0 for a row that does not. If a summed operand is not finite, where 0 · NaN
// would be NaN, tiles are one row high and sum over the row's own span alone. A block mask leaves it so: the keys that a block of
// rows keeps are moved together (csrc/ops/entropy_attention_runs.h).
#pragma once
#include <cmath>
#include <limits>

#include "csrc/ops/cpu_product.h"
#include "csrc/ops/cpu_rows.h"
#include "kernels/entropy_attention.h"

namespace isentrope::ops::CPU_CAPABILITY::attention {

using kernels::AttentionShape;
using kernels::HeadStrides;

constexpr double kInfinity = std::numeric_limits<double>::infinity(), kNaN = std::numeric_limits<double>::quiet_NaN();
constexpr double kLog2e = 1.4426950408889634074, kLn2 = 0.69314718055994530942;
constexpr double kLowest =
    -1100;  // 2^kLowest is 0 in double too; kept in place of -inf so that p · log p is 0, not NaN

constexpr int64_t kRows = 96;  // a multiple of every kTile
constexpr int64_t kMostHeadSize = 256;
// Longer strips go over out less often: 512 is 3 % faster than 256 at T = 2048 (1024: 1 % more, for twice the scratch).
constexpr int64_t kForwardStrip = 512;
constexpr int64_t kBackwardStrip = 128;  // packed keys, gradients and two blocks of scores: 270 KB at D = 64, within L2
constexpr int64_t kPad = 16;  // added to the width of a block, so that rows do not fall on the same cache sets
static_assert(kRows % kTile == 0 && kForwardStrip % kPanel<float> == 0 && kBackwardStrip % kPanel<float> == 0);
constexpr int64_t kKeptBytes = int64_t{32} << 20;  // scratch above this goes back to the system after a task

inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }
inline int64_t within(int64_t x, int64_t low, int64_t high) { return x < low ? low : x > high ? high : x; }
inline int64_t parts(int64_t n, int64_t size) { return (n + size - 1) / size; }

inline thread_local Scratch own_scratch, shared_scratch;  // of a task, and of the thread that hands out the tasks

struct Lease {
  Scratch& scratch;
  ~Lease() {
    if (scratch.bytes > kKeptBytes) scratch.release();
  }
};
// ---- elements in memory ---------------------------------------------------------------------------------------------

inline int64_t offset(const HeadStrides& s, int64_t b, int64_t h, int64_t t) {
  return b * s.batch + h * s.head + t * s.row;
}

// Fetches a row that is read a panel later: the hardware's own prefetch ends at each page.
inline void prefetch_row(DType dtype, const void* base, int64_t at, int64_t n) {
  const int64_t size = static_cast<int64_t>(kernels::size_of(dtype));
  const char* from = static_cast<const char*>(base) + at * size;
  for (int64_t i = 0; i < n * size; i += 64) __builtin_prefetch(from + i);
}

template <class Real>
Real statistic(const void* base, int64_t at) {
  return base == nullptr ? Real(0) : static_cast<const Real*>(base)[at];
}

template <class Real>
void multiply(Real* x, int64_t n, Real factor) {
  for (int64_t i = 0; i < n; ++i) x[i] *= factor;
}

// ---- what a row sees ------------------------------------------------------------------------------------------------

// Batch entry b: T queries and n_b keys; its rows begin at row `first` of a packed array.
struct Sequence {
  int64_t first = 0, queries = 0, keys = 0, start = 0;
  const int64_t* places = nullptr;  // [T] up to `most`, or null
  int64_t most = 0;
  int64_t place(int64_t t) const { return places ? within(places[t], -1, most) : start + t; }
};

inline Sequence sequence_of(const AttentionShape& s, int64_t b) {
  if (s.cu_seqlens != nullptr) {
    const int64_t from = within(s.cu_seqlens[b], 0, s.total), to = within(s.cu_seqlens[b + 1], from, s.total);
    const int64_t rows = smaller(to - from, smaller(s.queries, s.keys));
    return {from, rows, rows, 0};
  }
  return {0,
          s.queries,
          s.key_lengths ? within(s.key_lengths[b], 0, s.keys) : s.keys,
          s.query_start ? within(s.query_start[b], 0, s.keys) : s.keys - s.queries,
          s.places ? s.places + b * s.queries : nullptr,
          s.keys};
}

inline Span visible(const AttentionShape& s, const Sequence& sequence, int64_t t) {
  if (!s.causal) return {0, sequence.keys};
  const int64_t place = sequence.place(t);
  return {s.window > 0 ? larger(0, place - s.window + 1) : 0, smaller(sequence.keys, place + 1)};
}

// The rows of one key head g: query t of its i-th head is row i·T + t.
struct Group {
  int64_t b, g, heads;
  Sequence sequence;
  Group(const AttentionShape& s, int64_t index)
      : b(index / s.kv_heads), g(index % s.kv_heads), heads(s.heads / s.kv_heads), sequence(sequence_of(s, b)) {}
  int64_t rows() const { return heads * sequence.queries; }
  int64_t at(const HeadStrides& strides, int64_t row) const {
    return offset(strides, b, g * heads + row / sequence.queries, sequence.first + row % sequence.queries);
  }
  int64_t key(const HeadStrides& strides, int64_t j) const { return offset(strides, b, g, sequence.first + j); }
};

inline Span join(Span a, Span b) {
  if (b.empty()) return a;
  return a.empty() ? b : Span{smaller(a.from, b.from), larger(a.to, b.to)};
}

// The keys that each of some rows sees.
template <int64_t kMost = kRows>
struct Sights {
  int64_t count;
  Span keys[kMost], tile_keys[(kMost + kTile - 1) / kTile], all;

  void join_spans() {
    all = {};
    for (int64_t m = 0; m < count; m += kTile) {
      Span& tile = tile_keys[m / kTile] = {};
      for (int64_t r = m; r < smaller(m + kTile, count); ++r) tile = join(tile, keys[r]);
      all = join(all, tile);
    }
  }
  void fill(Span with) {
    all = with;
    for (int64_t r = 0; r < count; ++r) keys[r] = with;
    for (int64_t m = 0; m < count; m += kTile) tile_keys[m / kTile] = with;
  }
  Span seen(int64_t m, int64_t height) const { return height == 1 ? keys[m] : tile_keys[m / kTile]; }
};

// The rows of a group in blocks of at most kMost; with a block mask those of a block are of one head and one row block.
template <int64_t kMost = kRows>
struct Blocks {
  int64_t rows, queries, row_block, pieces;  // pieces: blocks that a row block is cut into; 0: no mask
  Blocks(const AttentionShape& s, int64_t queries)
      : rows(s.heads / s.kv_heads * queries),
        queries(queries),
        row_block(s.block_size),
        pieces(s.block_mask ? parts(smaller(s.block_size, larger(1, queries)), kMost) : 0) {}
  int64_t count() const {
    return pieces == 0 || rows == 0 ? parts(rows, kMost) : rows / queries * parts(queries, row_block) * pieces;
  }
  // The rows of the i-th; none where there is nothing left for it.
  Span operator[](int64_t i) const {
    if (pieces == 0 || rows == 0) return {i * kMost, smaller((i + 1) * kMost, rows)};
    const int64_t each = parts(queries, row_block) * pieces, begin = i / each * queries;
    const int64_t from = i % each / pieces * row_block, to = smaller(from + row_block, queries);
    return {begin + from + i % pieces * kMost, begin + smaller(from + (i % pieces + 1) * kMost, to)};
  }
  // All that have rows, in order.
  struct Iterator {
    const Blocks& blocks;
    int64_t i;
    Span operator*() const { return blocks[i]; }
    void operator++() {
      do ++i;
      while (i < blocks.count() && blocks[i].empty());
    }
    bool operator!=(const Iterator& other) const { return i < other.i; }
  };
  Iterator begin() const { return {*this, 0}; }
  Iterator end() const { return {*this, count()}; }
};

// Rows first … first + count - 1 of a group.
template <class Real, int64_t kMost = kRows>
struct Block : Sights<kMost> {
  using Sights<kMost>::count;
  using Sights<kMost>::keys;
  int64_t first, block_size;
  bool capped, biased;
  Real temperature[kMost];
  Real factor[kMost];           // s = factor · (q·k)
  Real cap[kMost];              // with softcap s = cap · tanh(factor · (q·k))
  const bool* kept = nullptr;   // [⌈S/b⌉] of the block mask, for all of the rows
  const Real* gates = nullptr;  // [⌈S/b⌉]
  Real slope[kMost];            // biased: the row's, in the unit of scores
  const Sequence* sequence;

  template <class Params>
  Block(const Params& p, const Group& group, Span rows)
      : first(rows.from),
        block_size(p.shape.block_size),
        capped(p.shape.softcap > 0),
        biased(p.bias.slopes != nullptr || p.bias.gates != nullptr),
        sequence(&group.sequence) {
    const AttentionShape& s = p.shape;
    count = rows.to - rows.from;
    for (int64_t r = 0; r < count; ++r) {
      keys[r] = visible(s, group.sequence, query(r));
      temperature[r] = p.temperature == nullptr
                           ? Real(1)
                           : statistic<Real>(p.temperature, group.at(p.temperature_strides, first + r));
      factor[r] = static_cast<Real>(s.scale / (s.softcap > 0 ? s.softcap : temperature[r]));
      cap[r] = static_cast<Real>(s.softcap / temperature[r]);
      if (biased) slope[r] = statistic<Real>(p.bias.slopes, head(group, r)) / (temperature[r] * row_factor(r));
    }
    if (s.block_mask != nullptr) {
      const int64_t h = head(group), row_block = query(0) / block_size;
      kept = s.block_mask + offset(s.block_strides, group.b, h, row_block);
      if (p.bias.gates != nullptr)
        gates = static_cast<const Real*>(p.bias.gates) + offset(p.bias.gate_strides, group.b, h, row_block);
    }
    this->join_spans();
  }
  int64_t query(int64_t r) const { return (first + r) % sequence->queries; }
  int64_t head(const Group& group, int64_t r = 0) const {
    return group.g * group.heads + (first + r) / sequence->queries;
  }
  // Whether the row block keeps a block of columns.
  bool keeps(int64_t column) const { return kept[column] && (gates == nullptr || gates[column] != 0); }
  // What a row's scores are to be multiplied with, once they are capped.
  Real row_factor(int64_t r) const { return capped ? Real(1) : factor[r]; }
};

// The part of a span that lies in the strip from key `first` on, counted from there.
inline Span within_strip(Span keys, int64_t first, int64_t strip) {
  const Span part = overlap(keys, {first, first + strip});
  return {part.from - first, part.to - first};
}

inline Span whole_panels(Span keys, int64_t panel) { return {keys.from / panel * panel, round_up(keys.to, panel)}; }

// ---- blocks ---------------------------------------------------------------------------------------------------------

// Sizes that follow from D: elements of a row in a block, and columns that products compute.
template <class Real>
struct Widths {
  int64_t row, columns;
  explicit Widths(int64_t D) : row(round_up(D, kPanel<Real>)), columns(round_up(D, kLanes<Real>)) {}
};

// to [count, row] = the block's rows of x, times factor if not null.
template <class Real, int64_t kMost>
void load_rows(DType dtype, const void* x, const HeadStrides& strides, const Group& group,
               const Block<Real, kMost>& block, int64_t D, const Real* factor, Real* to) {
  const int64_t width = Widths<Real>(D).row;
  for (int64_t r = 0; r < block.count; ++r, to += width) {
    load_row(dtype, x, group.at(strides, block.first + r), D, to);
    if (factor != nullptr) multiply(to, D, factor[r]);
    for (int64_t d = D; d < width; ++d) to[d] = 0;
  }
}
// ---- rows of scores -------------------------------------------------------------------------------------------------

template <class Real>
Span whole_vectors(Span seen, Span panels) {
  if (seen.empty()) return {panels.from, panels.from};
  return {seen.from / kWidth<Real> * kWidth<Real>, round_up(seen.to, kWidth<Real>)};
}

// Whole vectors hold keys that the row does not see before and after those that it does.
template <class Real>
void fill_unseen(Real* x, Span seen, Span vectors, double value) {
  if (seen.empty()) return;
  for (int64_t j = vectors.from; j < seen.from; ++j) x[j] = static_cast<Real>(value);
  for (int64_t j = seen.to; j < vectors.to; ++j) x[j] = static_cast<Real>(value);
}

template <class Real>
void clear_around(Real* x, Span vectors, Span panels) {
  if (vectors.from > panels.from) std::memset(x + panels.from, 0, (vectors.from - panels.from) * sizeof(Real));
  if (vectors.to < panels.to) std::memset(x + vectors.to, 0, (panels.to - vectors.to) * sizeof(Real));
}

// The state of a row while its strips go by.
template <class Real>
struct Running {
  Real top = static_cast<Real>(-kInfinity);  // m / factor
  Real sum = 0;                              // l = Σ exp(s - m)
  Real sum_log = 0;                          // Σ exp(s - m) log2 exp(s - m)
};

// p = exp(factor·s - m) in place of s; out [row] follows m.
template <class Real, bool kEntropy>
void softmax_row(Real* s, Span vectors, Real factor, Running<Real>& state, Real* out, int64_t row) {
  using V = Vector<Real>;
  constexpr int64_t W = kWidth<Real>;
  if (vectors.empty()) return;
  V top[4];
  for (V& t : top) t = V(state.top);
  int64_t j = vectors.from;
  for (; j + 4 * W <= vectors.to; j += 4 * W)
    for (int64_t i = 0; i < 4; ++i) top[i] = max(top[i], load(s + j + i * W));
  for (; j < vectors.to; j += W) top[0] = max(top[0], load(s + j));
  const Real m = reduce_max(max(max(top[0], top[1]), max(top[2], top[3])));
  if (m != state.top && state.top != static_cast<Real>(-kInfinity)) {
    const double shift = (static_cast<double>(state.top) - m) * factor * kLog2e, scale = ::exp2(shift);
    state.sum_log = static_cast<Real>(scale * (state.sum_log + shift * state.sum));
    state.sum = static_cast<Real>(scale * state.sum);
    multiply(out, row, static_cast<Real>(scale));
  }
  state.top = m;
  const V from(m == static_cast<Real>(-kInfinity) ? Real(0) : m), log2e(static_cast<Real>(factor * kLog2e)),
      lowest(static_cast<Real>(kLowest));
  V sum[2] = {V(Real(0)), V(Real(0))}, sum_log[2] = {V(Real(0)), V(Real(0))};
  auto add = [&](int64_t at, int64_t i) {
    const V y = max(lowest, (load(s + at) - from) * log2e), p = exp2(y);
    sum[i] = sum[i] + p;
    if constexpr (kEntropy) sum_log[i] = fma(p, y, sum_log[i]);
    store(s + at, p);
  };
  for (j = vectors.from; j + 2 * W <= vectors.to; j += 2 * W) {
    add(j, 0);
    add(j + W, 1);
  }
  if (j < vectors.to) add(j, 0);
  state.sum += reduce_add(sum[0] + sum[1]);
  if constexpr (kEntropy) state.sum_log += reduce_add(sum_log[0] + sum_log[1]);
}

// What the gradient needs of a row.
template <class Real>
struct RowConstants {
  Real anchor, log_sum, entropy, dentropy;
  Real dot, shift;  // δ = dot + shift, dot = dout·out: taken off dP first, a row of one key has exactly ds = dlse
};

// p in place of s, ds in place of dp. Returns Σ ds (log p + entropy), if wanted.
template <class Real, bool kEntropy, bool kTemperature>
Real gradient_row(Real* s, Real* dp, Span vectors, Real factor, const RowConstants<Real>& row) {
  using V = Vector<Real>;
  const V scale(factor), anchor(row.anchor), minus_log_sum(-row.log_sum), entropy(row.entropy), dot(row.dot),
      shift(row.shift), minus_dentropy(-row.dentropy), log2e(static_cast<Real>(kLog2e)),
      lowest(static_cast<Real>(kLowest));
  V sum(Real(0));
  for (int64_t j = vectors.from; j < vectors.to; j += kWidth<Real>) {
    const V log_p = max(lowest, fma(load(s + j) - anchor, scale, minus_log_sum)), p = exp2(log_p * log2e);
    V t = (load(dp + j) - dot) - shift;
    if constexpr (kEntropy) t = fma(log_p, minus_dentropy, t);
    const V ds = p * t;
    if constexpr (kTemperature) sum = fma(ds, log_p + entropy, sum);
    store(s + j, p);
    store(dp + j, ds);
  }
  return kTemperature ? reduce_add(sum) : Real(0);
}

}  // namespace isentrope::ops::CPU_CAPABILITY::attention
