// The CPU backend of entropy_attention.
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
// would be NaN, tiles are one row high and sum over the row's own span alone.
//
// The products are of two kinds (PlainProducts, PairProducts): multiply-adds of Real, into which bfloat16 and half are widened, or
// the processor's own for bfloat16.
#include "csrc/ops/entropy_attention_cpu.h"

#include <cmath>
#include <limits>
#include <type_traits>
#include <utility>

#include "csrc/ops/bfloat16_product.h"
#include "csrc/ops/cpu_parallel.h"
#include "csrc/ops/cpu_product.h"
#include "csrc/ops/cpu_rows.h"

namespace isentrope::ops::CPU_CAPABILITY {
namespace {

using kernels::AttentionShape;
using kernels::DType;
using kernels::EntropyAttentionBackward;
using kernels::EntropyAttentionForward;
using kernels::HeadStrides;

constexpr double kInfinity = std::numeric_limits<double>::infinity(), kNaN = std::numeric_limits<double>::quiet_NaN();
constexpr double kLog2e = 1.4426950408889634074, kLn2 = 0.69314718055994530942;
constexpr double kLowest =
    -1100;  // 2^kLowest is 0 in double too; kept in place of -inf so that p · log p is 0, not NaN

constexpr int64_t kRows = 96;  // a multiple of every kTile
// Longer strips go over out less often: 512 is 3 % faster than 256 at T = 2048 (1024: 1 % more, for twice the scratch).
constexpr int64_t kForwardStrip = 512;
constexpr int64_t kBackwardStrip = 128;  // packed keys, gradients and two blocks of scores: 270 KB at D = 64, within L2
constexpr int64_t kPad = 16;  // added to the width of a block, so that rows do not fall on the same cache sets
static_assert(kRows % kTile == 0 && kForwardStrip % kPanel<float> == 0 && kBackwardStrip % kPanel<float> == 0);

// The backward pass is cut into so many tasks at least, where there are strips for it: each takes the keys of a range.
constexpr int64_t kRangeTasks = 16, kRangeKeys = 512;
constexpr int64_t kKeptBytes = int64_t{32} << 20;  // scratch above this goes back to the system after a task

int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }
int64_t within(int64_t x, int64_t low, int64_t high) { return x < low ? low : x > high ? high : x; }
int64_t parts(int64_t n, int64_t size) { return (n + size - 1) / size; }

thread_local Scratch own_scratch, shared_scratch;  // of a task, and of the thread that hands out the tasks

struct Lease {
  Scratch& scratch;
  ~Lease() {
    if (scratch.bytes > kKeptBytes) scratch.release();
  }
};

// ---- elements in memory ---------------------------------------------------------------------------------------------

int64_t offset(const HeadStrides& s, int64_t b, int64_t h, int64_t t) { return b * s.batch + h * s.head + t * s.row; }

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
};

Sequence sequence_of(const AttentionShape& s, int64_t b) {
  if (s.cu_seqlens != nullptr) {
    const int64_t from = within(s.cu_seqlens[b], 0, s.total), to = within(s.cu_seqlens[b + 1], from, s.total);
    const int64_t rows = smaller(to - from, smaller(s.queries, s.keys));
    return {from, rows, rows, 0};
  }
  return {0, s.queries, s.key_lengths ? within(s.key_lengths[b], 0, s.keys) : s.keys,
          s.query_start ? within(s.query_start[b], 0, s.keys) : s.keys - s.queries};
}

Span visible(const AttentionShape& s, const Sequence& sequence, int64_t t) {
  if (!s.causal) return {0, sequence.keys};
  const int64_t place = sequence.start + t;
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

Span join(Span a, Span b) {
  if (b.empty()) return a;
  return a.empty() ? b : Span{smaller(a.from, b.from), larger(a.to, b.to)};
}

// Rows first … first + count - 1 of a group, at most kMost.
template <class Real, int64_t kMost = kRows>
struct Block {
  int64_t first, count;
  bool capped;
  Span keys[kMost], tile_keys[(kMost + kTile - 1) / kTile], all;
  Real temperature[kMost];
  Real factor[kMost];  // s = factor · (q·k)
  Real cap[kMost];     // with softcap s = cap · tanh(factor · (q·k))

  template <class Params>
  Block(const Params& p, const Group& group, int64_t index)
      : first(index * kMost), count(smaller(kMost, group.rows() - first)), capped(p.shape.softcap > 0) {
    const AttentionShape& s = p.shape;
    for (int64_t r = 0; r < count; ++r) {
      keys[r] = visible(s, group.sequence, (first + r) % group.sequence.queries);
      temperature[r] = p.temperature == nullptr
                           ? Real(1)
                           : statistic<Real>(p.temperature, group.at(p.temperature_strides, first + r));
      factor[r] = static_cast<Real>(s.scale / (s.softcap > 0 ? s.softcap : temperature[r]));
      cap[r] = static_cast<Real>(s.softcap / temperature[r]);
    }
    join_spans();
  }
  void join_spans() {
    all = {};
    for (int64_t m = 0; m < count; m += kTile) {
      Span& tile = tile_keys[m / kTile] = {};
      for (int64_t r = m; r < smaller(m + kTile, count); ++r) tile = join(tile, keys[r]);
      all = join(all, tile);
    }
  }
  // What a row's scores are to be multiplied with, once they are capped.
  Real row_factor(int64_t r) const { return capped ? Real(1) : factor[r]; }
  Span seen(int64_t m, int64_t height) const { return height == 1 ? keys[m] : tile_keys[m / kTile]; }
};

// The part of a span that lies in the strip from key `first` on, counted from there.
Span within_strip(Span keys, int64_t first, int64_t strip) {
  const Span part = overlap(keys, {first, first + strip});
  return {part.from - first, part.to - first};
}

Span whole_panels(Span keys, int64_t panel) { return {keys.from / panel * panel, round_up(keys.to, panel)}; }

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

// ---- products -------------------------------------------------------------------------------------------------------

// The products of a block with a strip of keys, and the operands that they take. Plain: multiply-adds of Real.
template <class R>
struct PlainProducts {
  using Real = R;
  using Operand = R;
  static constexpr int64_t kPanelKeys = kPanel<R>;

  // to [D, kPanelKeys] = x [kPanelKeys, width] transposed.
  static void pack_columns(int64_t D, const Real* x, int64_t width, Real* to) {
    CPU_CAPABILITY::pack_columns(D, x, width, to);
  }
  // Rows first … first + n - 1 of to [⌈D/kPanel⌉, length, kPanel] = x [n, width]. Returns whether they are finite.
  static bool pack_rows(int64_t n, int64_t D, const Real* x, int64_t width, Real* to, int64_t length, int64_t first) {
    return CPU_CAPABILITY::pack_rows(n, D, x, width, to + first * kPanel<Real>, length);
  }
  // A block's rows [count, row] as operands, in place.
  static const Real* narrow(int64_t, int64_t, Real* rows) { return rows; }
  static void end_task() {}

  // to [count, strip + kPad] = rows · columns, in the panels of `panels`; first is the strip's first key.
  static void scores(const Block<Real>& block, int64_t first, int64_t strip, Span panels, int64_t D, const Real* rows,
                     const Real* columns, Real* to) {
    product<false, false>(block.count, panels.to - panels.from, kTile, rows, Widths<Real>(D).row,
                          columns + panels.from * D, D * kPanel<Real>, to + panels.from, strip + kPad,
                          [&](int64_t m, int64_t n) {
                            const int64_t j = first + panels.from + n;
                            return overlap(block.seen(m, kTile), {j, j + kPanel<Real>}).empty() ? Span{} : Span{0, D};
                          });
  }

  // to [count, row] += weights [count, strip + kPad] · packed rows of the strip. The weights are lost.
  static void sum_over_keys(const Block<Real>& block, int64_t first, int64_t strip, Span, int64_t D, bool finite,
                            Real* weights, const Real* rows, Real* to) {
    const int64_t height = finite ? kTile : 1;
    const Widths<Real> width(D);
    product<false, true>(block.count, width.columns, height, weights, strip + kPad, rows, strip * kPanel<Real>, to,
                         width.row,
                         [&](int64_t m, int64_t) { return within_strip(block.seen(m, height), first, strip); });
  }

  // to [strip, row] += transposed weights · packed rows of the block, for the keys of `panels`.
  static void sum_over_queries(const Block<Real>& block, int64_t first, int64_t strip, Span panels, int64_t D,
                               bool finite, const Real* weights, const Real* rows, Real* to, Real*) {
    const Widths<Real> width(D);
    auto add = [&](Span keys, const auto& span_of) {
      product<true, true>(keys.to - keys.from, width.columns, kTile, weights + keys.from, strip + kPad, rows,
                          kRows * kPanel<Real>, to + keys.from * width.row, width.row, span_of);
    };
    if (!finite) {
      for (int64_t r = 0; r < block.count; ++r)
        add(within_strip(block.keys[r], first, strip), [&](int64_t, int64_t) { return Span{r, r + 1}; });
      return;
    }
    Span rows_of[kBackwardStrip / kTile + 1];  // that see a tile of keys
    for (int64_t j = panels.from; j < panels.to; j += kTile) {
      Span& seen_by = rows_of[(j - panels.from) / kTile] = {};
      for (int64_t m = 0; m < block.count; m += kTile)
        if (!overlap(block.seen(m, kTile), {first + j, first + j + kTile}).empty())
          seen_by = join(seen_by, {m, smaller(m + kTile, block.count)});
    }
    add(panels, [&](int64_t m, int64_t) { return rows_of[m / kTile]; });
  }
};

// The processor's products of bfloat16 (csrc/ops/bfloat16_product.h): operands are rounded to it, p and ds among them, sums are
// float. Few sizes: 64 keys, 32 rows. What a row does not see it takes 0 times, so all that is summed has to be finite.
struct PairProducts {
  using Real = float;
  using Operand = uint16_t;
  static constexpr int64_t kPanelKeys = 64, kGroup = 32;
  static_assert(kForwardStrip % kPanelKeys == 0 && kBackwardStrip % kPanelKeys == 0 && kRows % kGroup == 0);

  static uint16_t bits(float x) { return to_bfloat16(x).bits; }
  static void end_task() { end_bfloat16_products(); }

  // to [D / 2, kPanelKeys, 2] = x [kPanelKeys, width] transposed.
  static void pack_columns(int64_t D, const float* x, int64_t width, uint16_t* to) {
    for (int64_t d = 0; d < D; d += 2)
      for (int64_t j = 0; j < kPanelKeys; ++j)
        for (int64_t i = 0; i < 2; ++i) *to++ = bits(x[j * width + d + i]);
  }
  // Rows first … of to [length / 2, D, 2] = x [n, width], then zeros to a whole panel; first is even.
  static bool pack_rows(int64_t n, int64_t D, const float* x, int64_t width, uint16_t* to, int64_t, int64_t first) {
    to += first * D;
    for (int64_t j = 0; j < n; j += 2)
      for (int64_t d = 0; d < D; ++d, to += 2) {
        to[0] = bits(x[j * width + d]);
        to[1] = j + 1 < n ? bits(x[(j + 1) * width + d]) : 0;
      }
    std::memset(to, 0, (round_up(n, kPanelKeys) - round_up(n, 2)) * D * sizeof(uint16_t));
    return true;
  }
  // Row r stays where it began: rows of operands are 2 · row apart.
  static const uint16_t* narrow(int64_t count, int64_t row, float* rows) {
    for (int64_t r = 0; r < count; ++r) {
      BFloat16 narrowed[kForwardStrip];
      store_row(DType::kBFloat16, rows + r * row, row, narrowed, 0);
      std::memcpy(rows + r * row, narrowed, row * sizeof(BFloat16));
    }
    return reinterpret_cast<const uint16_t*>(rows);
  }

  // The keys of the strip that rows m … m + kGroup - 1 see, in whole panels.
  static Span panels_of(const Block<float>& block, int64_t m, int64_t first, int64_t strip) {
    Span keys{};
    for (int64_t r = m; r < smaller(m + kGroup, block.count); ++r) keys = join(keys, block.keys[r]);
    const Span part = within_strip(keys, first, strip);
    if (part.empty()) return {};
    return {part.from / kPanelKeys * kPanelKeys, round_up(part.to, kPanelKeys)};
  }

  static void scores(const Block<float>& block, int64_t first, int64_t strip, Span, int64_t D, const uint16_t* rows,
                     const uint16_t* columns, float* to) {
    const int64_t ld = 2 * Widths<float>(D).row, width = strip + kPad;
    for (int64_t m = 0; m < block.count; m += kGroup) {
      const Span panels = panels_of(block, m, first, strip);
      for (int64_t j = panels.from; j < panels.to; j += kPanelKeys)
        bfloat16_product(smaller(kGroup, block.count - m), kPanelKeys, D, rows + m * ld, ld, columns + j * D,
                         kPanelKeys, to + m * width + j, width, false);
    }
  }

  static void sum_over_keys(const Block<float>& block, int64_t first, int64_t strip, Span panels, int64_t D, bool,
                            float* weights, const uint16_t* rows, float* to) {
    const int64_t width = strip + kPad, row = Widths<float>(D).row;
    for (int64_t r = 0; r < block.count; ++r) narrow(1, panels.to - panels.from, weights + r * width + panels.from);
    for (int64_t m = 0; m < block.count; m += kGroup) {
      const Span keys = panels_of(block, m, first, strip);
      if (keys.empty()) continue;
      const uint16_t* from = reinterpret_cast<const uint16_t*>(weights + m * width + panels.from);
      bfloat16_product(smaller(kGroup, block.count - m), D, keys.to - keys.from, from + keys.from - panels.from,
                       2 * width, rows + keys.from * D, D, to + m * row, row, true);
    }
  }

  // staging: [kPanelKeys, kRows] of operands and kPanelKeys · kPanel floats.
  static void sum_over_queries(const Block<float>& block, int64_t, int64_t strip, Span panels, int64_t D, bool,
                               const float* weights, const uint16_t* rows, float* to, float* staging) {
    constexpr int64_t P = kPanel<float>;
    const int64_t width = strip + kPad, row = Widths<float>(D).row;
    uint16_t* transposed = reinterpret_cast<uint16_t*>(staging + kPanelKeys * P);
    for (int64_t j = panels.from; j < panels.to; j += kPanelKeys) {
      const int64_t count = round_up(block.count, kGroup);
      for (int64_t m = 0; m < block.count; m += P) {
        CPU_CAPABILITY::pack_columns(kPanelKeys, weights + m * width + j, width, staging);
        for (int64_t key = 0; key < kPanelKeys; ++key)
          store_row(DType::kBFloat16, staging + key * P, P, transposed + key * kRows, m);
      }
      for (int64_t key = 0; key < kPanelKeys; ++key)  // rows that the block does not have
        std::memset(transposed + key * kRows + block.count, 0, (count - block.count) * sizeof(uint16_t));
      bfloat16_product(kPanelKeys, D, count, transposed, kRows, rows, D, to + j * row, row, true);
    }
  }
};

// Packs keys [first, first + count) of x: transposed into columns and as they are into rows, as Products takes them; either may
// be null. staging: [kPanelKeys, row]. Returns whether the rows are finite.
template <class Products>
bool pack_keys(DType dtype, const void* x, const HeadStrides& strides, const Group& group, int64_t D, int64_t first,
               int64_t count, int64_t strip, typename Products::Operand* columns, typename Products::Operand* rows,
               typename Products::Real* staging) {
  using Real = typename Products::Real;
  constexpr int64_t P = Products::kPanelKeys;
  const int64_t width = Widths<Real>(D).row;
  bool finite = true;
  std::memset(staging, 0, P * width * sizeof(Real));
  for (int64_t j = 0; j < count; j += P) {
    const int64_t n = smaller(P, count - j);
    for (int64_t i = 0; i < n; ++i) {
      prefetch_row(dtype, x, group.key(strides, smaller(first + j + i + P, group.sequence.keys - 1)), D);
      load_row(dtype, x, group.key(strides, first + j + i), D, staging + i * width);
    }
    for (int64_t i = n; i < P; ++i) std::memset(staging + i * width, 0, D * sizeof(Real));
    if (columns != nullptr) Products::pack_columns(D, staging, width, columns + j * D);
    if (rows != nullptr) finite &= Products::pack_rows(n, D, staging, width, rows, strip, j);
  }
  return finite;
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
  std::memset(x + panels.from, 0, (vectors.from - panels.from) * sizeof(Real));
  std::memset(x + vectors.to, 0, (panels.to - vectors.to) * sizeof(Real));
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

// No processor with such products is served by the narrowest build: there they need not be compiled.
constexpr bool kPairs = kVectorBytes > 16;
template <class Parameters>
bool takes_pairs(const Parameters& p) {
  return kPairs && p.dtype == DType::kBFloat16 && has_bfloat16_products();
}

// x [D] of bfloat16 at an offset of base.
bool row_is_finite(const void* base, int64_t at, int64_t D) {
  const BFloat16* x = static_cast<const BFloat16*>(base) + at;
  int infinite = 0;
  for (int64_t d = 0; d < D; ++d) infinite |= (x[d].bits & 0x7f80) == 0x7f80;
  return infinite == 0;
}
bool keys_are_finite(const void* x, const HeadStrides& strides, const Group& group, int64_t D) {
  for (int64_t j = 0; j < group.sequence.keys; ++j)
    if (!row_is_finite(x, group.key(strides, j), D)) return false;
  return true;
}
bool rows_are_finite(const void* x, const HeadStrides& strides, const Group& group, int64_t D) {
  for (int64_t r = 0; r < group.rows(); ++r)
    if (!row_is_finite(x, group.at(strides, r), D)) return false;
  return true;
}

// ---- few rows -------------------------------------------------------------------------------------------------------

// Groups of at most so many rows, one query of a decoder above all, read their keys where they lie: packing is worth its time
// from about a tile of rows on. The backward pass packs all the same, but forms s as the forward pass did.
constexpr int64_t kFewRows = 4;
bool few_rows(const AttentionShape& s) { return s.heads / s.kv_heads * s.queries <= kFewRows; }

template <class Real>
struct PlacesOf {
  typedef typename std::conditional<sizeof(Real) == 4, int32_t, int64_t>::type Index;
  typedef Index type __attribute__((vector_size(kVectorBytes)));
};

// x[i] and x[i + kStep] folded onto each other: places without kStep keep the first, the others the second.
template <int kStep, class Real, int... i>
void fold(Lanes<Real>* x, std::integer_sequence<int, i...>) {
  using Places = typename PlacesOf<Real>::type;
  constexpr int kCount = sizeof...(i);
  constexpr Places straight = {(i & kStep ? kCount + i : i)...},
                   crossed = {(i & kStep ? kCount + (i ^ kStep) : i ^ kStep)...};
#pragma GCC unroll 16
  for (int n = 0; n < kCount; n += 2 * kStep)
    x[n] = __builtin_shuffle(x[n], x[n + kStep], straight) + __builtin_shuffle(x[n], x[n + kStep], crossed);
}

// Element i is the sum of x[i].
template <class Real>
Lanes<Real> sums_of(Lanes<Real>* x) {
  constexpr int kCount = kLanes<Real>;
  constexpr std::make_integer_sequence<int, kCount> all{};
  fold<1, Real>(x, all);
  if constexpr (kCount > 2) fold<2, Real>(x, all);
  if constexpr (kCount > 4) fold<4, Real>(x, all);
  if constexpr (kCount > 8) fold<8, Real>(x, all);
  return x[0];
}

// The keys [first, …) of a group as rows of Real, ld apart: where they lie, if that is what they are, else copied into memory.
template <class Real>
struct KeyRows {
  const Real* data;
  int64_t ld;
  KeyRows(DType dtype, const void* x, const HeadStrides& strides, const Group& group, int64_t D, Span keys,
          Real* memory)
      : data(memory), ld(Widths<Real>(D).row) {
    if (kernels::size_of(dtype) == sizeof(Real) && D % kLanes<Real> == 0) {
      ld = strides.row;
      data = static_cast<const Real*>(x) + group.key(strides, keys.from);
      return;
    }
    for (int64_t j = keys.from; j < keys.to; ++j, memory += ld) {
      load_row(dtype, x, group.key(strides, j), D, memory);
      for (int64_t d = D; d < ld; ++d) memory[d] = 0;
    }
  }
};

// s[j] = q · row j of k for the keys of `seen`, which k begins with; whole vectors around them are filled with anything.
template <class Real>
void dot_products(Span seen, Span vectors, int64_t columns, const Real* q, const KeyRows<Real>& k, Real* s) {
  using V = Lanes<Real>;
  constexpr int64_t W = kLanes<Real>;
  for (int64_t j = vectors.from; j < vectors.to; j += W) {
    const Real* row[W];
    for (int64_t i = 0; i < W; ++i) row[i] = k.data + (within(j + i, seen.from, seen.to - 1) - seen.from) * k.ld;
    V sum[W] = {};
    for (int64_t d = 0; d < columns; d += W) {
      const V x = *reinterpret_cast<const V*>(q + d);
#pragma GCC unroll 16
      for (int64_t i = 0; i < W; ++i) sum[i] += x * *reinterpret_cast<const V*>(row[i] + d);
    }
    *reinterpret_cast<V*>(s + j) = sums_of<Real>(sum);
  }
}

// PlainProducts::scores of keys where they lie; k begins with the strip's first key in sight.
template <class Real, int64_t kMost>
void few_scores(const Block<Real, kMost>& block, int64_t first, int64_t strip, Span panels, int64_t D, const Real* q,
                const KeyRows<Real>& k, Real* to) {
  const Widths<Real> width(D);
  for (int64_t r = 0; r < block.count; ++r)
    dot_products(within_strip(block.all, first, strip),
                 whole_vectors<Real>(within_strip(block.keys[r], first, strip), panels), width.columns,
                 q + r * width.row, k, to + r * (strip + kPad));
}

// to [columns] += Σ p[j] · row j of v: kVectors vectors of columns at a time, each as kChains sums over j mod kChains.
template <int64_t kVectors, class Real>
void weighted_rows(int64_t count, const Real* p, const Real* v, int64_t ld, Real* to) {
  using V = Lanes<Real>;
  constexpr int64_t kChains = 8 / kVectors;
  V sum[kChains][kVectors] = {};
  auto add = [&](int64_t j, int64_t chain) {
#pragma GCC unroll 8
    for (int64_t n = 0; n < kVectors; ++n)
      sum[chain][n] += p[j] * *reinterpret_cast<const V*>(v + j * ld + n * kLanes<Real>);
  };
  int64_t j = 0;
  for (; j + kChains <= count; j += kChains)
#pragma GCC unroll 8
    for (int64_t chain = 0; chain < kChains; ++chain) add(j + chain, chain);
  for (; j < count; ++j) add(j, 0);
#pragma GCC unroll 8
  for (int64_t n = 0; n < kVectors; ++n) {
    for (int64_t chain = 1; chain < kChains; ++chain) sum[0][n] += sum[chain][n];
    *reinterpret_cast<V*>(to + n * kLanes<Real>) += sum[0][n];
  }
}

template <class Real>
void weighted_sum(int64_t count, int64_t columns, const Real* p, const KeyRows<Real>& v, Real* to) {
  constexpr int64_t W = kLanes<Real>;
  int64_t d = 0;
  for (; d + 8 * W <= columns; d += 8 * W) weighted_rows<8>(count, p, v.data + d, v.ld, to + d);
  for (; d + 4 * W <= columns; d += 4 * W) weighted_rows<4>(count, p, v.data + d, v.ld, to + d);
  for (; d + 2 * W <= columns; d += 2 * W) weighted_rows<2>(count, p, v.data + d, v.ld, to + d);
  for (; d < columns; d += W) weighted_rows<1>(count, p, v.data + d, v.ld, to + d);
}

// ---- forward --------------------------------------------------------------------------------------------------------

// A packed strip: kᵀ, v and whether v is finite. Memory is counted in Real, of which operands take no more than one each.
template <class Products>
struct ForwardStrip {
  using Real = typename Products::Real;
  using Operand = typename Products::Operand;
  Operand *k_columns, *v_rows;
  Real* finite;
  static int64_t size(int64_t D) { return 2 * kForwardStrip * Widths<Real>(D).row + kLanes<Real>; }
  ForwardStrip(Real* memory, int64_t D)
      : k_columns(reinterpret_cast<Operand*>(memory)),
        v_rows(reinterpret_cast<Operand*>(memory + kForwardStrip * Widths<Real>(D).row)),
        finite(memory + size(D) - kLanes<Real>) {}
  void pack(const EntropyAttentionForward& p, const Group& group, int64_t first, Real* staging) const {
    const int64_t D = p.shape.head_size, count = smaller(kForwardStrip, group.sequence.keys - first);
    pack_keys<Products>(p.dtype, p.k, p.k_strides, group, D, first, count, kForwardStrip, k_columns, nullptr, staging);
    *finite =
        pack_keys<Products>(p.dtype, p.v, p.v_strides, group, D, first, count, kForwardStrip, nullptr, v_rows, staging);
  }
};

// Scores in place: capped, then p = exp(s - m), 0 for what the row does not see.
template <class Real, bool kEntropy, int64_t kMost>
void softmax_rows(const Block<Real, kMost>& block, int64_t first, Span panels, int64_t row, Real* s,
                  Running<Real>* state, Real* out) {
  for (int64_t r = 0; r < block.count; ++r, s += kForwardStrip + kPad, out += row) {
    const Span seen = within_strip(block.keys[r], first, kForwardStrip), vectors = whole_vectors<Real>(seen, panels);
    if (block.capped) cap_row<Real>(s, vectors, block.factor[r], block.cap[r], nullptr);
    fill_unseen(s, seen, vectors, -kInfinity);
    softmax_row<Real, kEntropy>(s, vectors, block.row_factor(r), state[r], out, row);
    clear_around(s, vectors, panels);
  }
}

template <class Real, bool kEntropy, int64_t kMost>
void finish_rows(const EntropyAttentionForward& p, const Group& group, const Block<Real, kMost>& block, int64_t row,
                 const Running<Real>* state, Real* out) {
  for (int64_t r = 0; r < block.count; ++r, out += row) {
    const Running<Real>& x = state[r];
    const bool none = x.sum == 0, nan = x.sum != x.sum;
    const double log_sum = ::log(static_cast<double>(x.sum));
    multiply(out, p.shape.head_size, none ? Real(0) : 1 / x.sum);
    store_row(p.dtype, out, p.shape.head_size, p.out, group.at(p.out_strides, block.first + r));
    const int64_t at = group.at(p.statistic_strides, block.first + r);
    auto put = [at](void* to, double value) {
      if (to != nullptr) static_cast<Real*>(to)[at] = static_cast<Real>(value);
    };
    const double top = static_cast<double>(x.top) * block.row_factor(r);
    put(p.lse, none ? -kInfinity : top + log_sum);
    put(p.max_logit, nan ? kNaN : top);
    put(p.anchor, x.top);
    put(p.log_sum, none ? 0 : log_sum);
    if constexpr (kEntropy) put(p.entropy, none ? 0 : log_sum - kLn2 * x.sum_log / x.sum);
  }
}

template <class Products>
int64_t forward_scratch(int64_t D) {
  using Real = typename Products::Real;
  return (2 * kRows + Products::kPanelKeys) * Widths<Real>(D).row + kRows * (kForwardStrip + kPad);
}

// packed: the group's strips; or room for one, which is packed as it is needed.
template <class Products, bool kEntropy>
void forward_block(const EntropyAttentionForward& p, const Group& group, int64_t index, typename Products::Real* packed,
                   bool all_packed, typename Products::Real* scratch) {
  using Real = typename Products::Real;
  using Strip = ForwardStrip<Products>;
  const int64_t D = p.shape.head_size, row = Widths<Real>(D).row;
  const Block<Real> block(p, group, index);
  Real *q = scratch, *out = q + kRows * row, *staging = out + kRows * row, *s = staging + Products::kPanelKeys * row;
  Running<Real> state[kRows];
  std::memset(out, 0, block.count * row * sizeof(Real));
  if (!block.all.empty()) load_rows(p.dtype, p.q, p.q_strides, group, block, D, static_cast<const Real*>(nullptr), q);
  const auto* rows = Products::narrow(block.count, row, q);
  for (int64_t first = block.all.from / kForwardStrip * kForwardStrip; first < block.all.to; first += kForwardStrip) {
    const Strip strip(packed + (all_packed ? first / kForwardStrip * Strip::size(D) : 0), D);
    if (!all_packed) strip.pack(p, group, first, staging);
    const Span panels = whole_panels(within_strip(block.all, first, kForwardStrip), Products::kPanelKeys);
    Products::scores(block, first, kForwardStrip, panels, D, rows, strip.k_columns, s);
    softmax_rows<Real, kEntropy>(block, first, panels, row, s, state, out);
    Products::sum_over_keys(block, first, kForwardStrip, panels, D, *strip.finite != 0, s, strip.v_rows, out);
  }
  finish_rows<Real, kEntropy>(p, group, block, row, state, out);
}

template <class Real>
int64_t few_scratch(int64_t D) {
  return (2 * kFewRows + 2 * kForwardStrip) * Widths<Real>(D).row + kFewRows * (kForwardStrip + kPad);
}

// A whole group of at most kFewRows rows.
template <class Real, bool kEntropy>
void forward_few(const EntropyAttentionForward& p, const Group& group, Real* scratch) {
  const int64_t D = p.shape.head_size, width = kForwardStrip + kPad;
  const Widths<Real> widths(D);
  const int64_t row = widths.row;
  const Block<Real, kFewRows> block(p, group, 0);
  Real *q = scratch, *out = q + kFewRows * row, *k_memory = out + kFewRows * row,
       *v_memory = k_memory + kForwardStrip * row, *s = v_memory + kForwardStrip * row;
  Running<Real> state[kFewRows];
  std::memset(out, 0, block.count * row * sizeof(Real));
  if (!block.all.empty()) load_rows(p.dtype, p.q, p.q_strides, group, block, D, static_cast<const Real*>(nullptr), q);
  for (int64_t first = block.all.from / kForwardStrip * kForwardStrip; first < block.all.to; first += kForwardStrip) {
    const Span here = within_strip(block.all, first, kForwardStrip), keys{first + here.from, first + here.to};
    const Span panels = whole_panels(here, kPanel<Real>);
    const KeyRows<Real> k(p.dtype, p.k, p.k_strides, group, D, keys, k_memory),
        v(p.dtype, p.v, p.v_strides, group, D, keys, v_memory);
    few_scores(block, first, kForwardStrip, panels, D, q, k, s);
    softmax_rows<Real, kEntropy>(block, first, panels, row, s, state, out);
    for (int64_t r = 0; r < block.count; ++r) {  // over the row's own span: a NaN beyond it stays away
      const Span seen = within_strip(block.keys[r], first, kForwardStrip);
      if (seen.empty()) continue;
      KeyRows<Real> own = v;
      own.data += (seen.from - here.from) * v.ld;
      weighted_sum(seen.to - seen.from, widths.columns, s + r * width + seen.from, own, out + r * row);
    }
  }
  finish_rows<Real, kEntropy>(p, group, block, row, state, out);
}

template <class Products, bool kEntropy>
void forward(const EntropyAttentionForward& p) {
  using Real = typename Products::Real;
  const AttentionShape& shape = p.shape;
  const int64_t D = shape.head_size, groups = shape.batch * shape.kv_heads;
  if (few_rows(shape)) {
    for_tasks(groups, [&](int64_t i) {
      const Lease lease{own_scratch};
      forward_few<Real, kEntropy>(p, Group(shape, i), own_scratch.get<Real>(few_scratch<Real>(D)));
    });
    return;
  }
  const int64_t blocks = parts(shape.heads / shape.kv_heads * shape.queries, kRows),
                strips = parts(shape.keys, kForwardStrip);
  const int64_t strip_size = ForwardStrip<Products>::size(D);
  auto pack_strip = [&](const Group& group, int64_t i, Real* packed, Real* staging) {
    if (i * kForwardStrip < group.sequence.keys)
      ForwardStrip<Products>(packed + i * strip_size, D).pack(p, group, i * kForwardStrip, staging);
  };
  // Threads take whole groups where there are enough of them, else blocks of rows: it is the same arithmetic.
  if (blocks == 1 || groups >= 4 * threads()) {
    for_tasks(groups, [&](int64_t i) {
      const Lease lease{own_scratch};
      const Group group(shape, i);
      Real* scratch = own_scratch.get<Real>(forward_scratch<Products>(D) + (blocks == 1 ? 1 : strips) * strip_size);
      Real *packed = scratch, *rest = scratch + (blocks == 1 ? 1 : strips) * strip_size;
      if (blocks > 1)
        for (int64_t strip = 0; strip < strips; ++strip) pack_strip(group, strip, packed, rest);
      for (int64_t block = 0; block * kRows < group.rows(); ++block)
        forward_block<Products, kEntropy>(p, group, block, packed, blocks > 1, rest);
      Products::end_task();
    });
    return;
  }
  const Lease lease{shared_scratch};
  Real* packed = shared_scratch.get<Real>(groups * strips * strip_size);
  for_tasks(groups * strips, [&](int64_t i) {
    pack_strip(Group(shape, i / strips), i % strips, packed + i / strips * strips * strip_size,
               own_scratch.get<Real>(forward_scratch<Products>(D)));
  });
  for_tasks(groups * blocks, [&](int64_t i) {
    const Group group(shape, i % groups);
    const int64_t block = blocks - 1 - i / groups;  // causal: the last rows see most keys
    if (block * kRows < group.rows())
      forward_block<Products, kEntropy>(p, group, block, packed + i % groups * strips * strip_size, true,
                                        own_scratch.get<Real>(forward_scratch<Products>(D)));
    Products::end_task();
  });
}

// ---- backward -------------------------------------------------------------------------------------------------------

// dot = dout·out, by the products that make dp = dout·v: where one key has nearly all the weight out is nearly its v, and
// what rounding does to dp it does to dot. memory: 2·kPanel rows and kPanel² elements.
template <class Real>
void add_dots(const EntropyAttentionBackward& p, const Group& group, const Block<Real>& block, const Real* dout,
              Real* memory, RowConstants<Real>* constants) {
  constexpr int64_t P = kPanel<Real>;
  const int64_t D = p.shape.head_size, row = Widths<Real>(D).row;
  Real *out = memory, *columns = out + P * row, *dots = columns + P * row;
  for (int64_t r = 0; r < block.count; r += P) {
    const int64_t n = smaller(P, block.count - r);
    for (int64_t i = 0; i < n; ++i)
      load_row(p.dtype, p.out, group.at(p.out_strides, block.first + r + i), D, out + i * row);
    pack_columns(D, out, row, columns);
    product<false, false>(n, P, kTile, dout + r * row, row, columns, 0, dots, P, [&](int64_t, int64_t) {
      return Span{0, D};
    });
    for (int64_t i = 0; i < n; ++i) constants[r + i].dot = dots[i * P + i];
  }
}

// A task of the backward pass: the keys [first, last) of a group with all of the group's rows. dk and dv of the range are its
// own; dq and dτ are sums over ranges, which a second step adds up in their order.
struct Ranges {
  int64_t count, keys;  // keys of a range: whole strips
  explicit Ranges(const AttentionShape& s) {
    const int64_t wanted = smaller(parts(kRangeTasks, larger(1, s.batch * s.kv_heads)), parts(s.keys, kRangeKeys));
    keys = round_up(parts(s.keys, larger(1, wanted)), kBackwardStrip);
    count = larger(1, parts(s.keys, larger(1, keys)));
  }
};

// Row r of a block. dτ = -(1/τ) Σ ds s. Σ ds = dlse, so that s may be taken from any level. At lse - entropy = Σ p s large logits
// keep their digits, and an error in delta, which enters ds as a multiple of p, cancels. (Without the entropy: from lse.)
template <class Real>
void finish_row(const EntropyAttentionBackward& p, const Group& group, const Block<Real>& block, int64_t r, Real* dq,
                Real sum) {
  multiply(dq, p.shape.head_size, block.factor[r]);
  store_row(p.dtype, dq, p.shape.head_size, p.dq, group.at(p.dq_strides, block.first + r));
  if (p.dtemperature == nullptr) return;
  const int64_t at = group.at(p.statistic_strides, block.first + r);
  const Real anchor = statistic<Real>(p.anchor, at);
  const double lse = static_cast<double>(anchor) * block.row_factor(r) + statistic<Real>(p.log_sum, at);
  const Real level = static_cast<Real>(lse - statistic<Real>(p.entropy, at));
  static_cast<Real*>(p.dtemperature)[at] =
      anchor == static_cast<Real>(-kInfinity) ? 0 : -(sum + level * statistic<Real>(p.dlse, at)) / block.temperature[r];
}

template <class Products, bool kEntropy, bool kTemperature>
void backward_range(const EntropyAttentionBackward& p, const Group& group, Span range,
                    typename Products::Real* dq_partial, typename Products::Real* dtemperature_partial) {
  using Real = typename Products::Real;
  using Operand = typename Products::Operand;
  const int64_t D = p.shape.head_size, row = Widths<Real>(D).row, width = kBackwardStrip + kPad, strip = kBackwardStrip;
  const int64_t keys = larger(0, smaller(range.to, group.sequence.keys) - range.from), padded = round_up(keys, strip);
  const Lease lease{own_scratch};
  const bool few = few_rows(p.shape);
  const int64_t staged =
      larger(kPanel<Real> * (2 * row + kPanel<Real>), Products::kPanelKeys * larger(row, kRows + kPanel<Real>));
  Real* next = own_scratch.get<Real>((5 * padded + 5 * kRows + (few ? strip : 0)) * row + staged + 2 * kRows * width +
                                     strip + padded / strip);
  auto take = [&](int64_t count) { return (next += count) - count; };
  auto operands = [&](int64_t count) { return reinterpret_cast<Operand*>(take(count)); };
  Operand *k_columns = operands(padded * row), *v_columns = operands(padded * row), *k_rows = operands(padded * row);
  Operand *q_rows = operands(kRows * row), *dout_rows = operands(kRows * row);
  Real *dk = take(padded * row), *dv = take(padded * row), *dq = take(kRows * row);
  Real *q = take(kRows * row), *dout = take(kRows * row), *staging = take(staged);
  Real *s = take(kRows * width), *dp = take(kRows * width), *slope = take(strip), *finite = take(padded / strip);
  Real* few_keys = take(few ? strip * row : 0);

  for (int64_t j = 0; j < keys; j += strip) {
    const int64_t count = smaller(strip, keys - j);
    finite[j / strip] = pack_keys<Products>(p.dtype, p.k, p.k_strides, group, D, range.from + j, count, strip,
                                            k_columns + j * row, k_rows + j * row, staging);
    pack_keys<Products>(p.dtype, p.v, p.v_strides, group, D, range.from + j, count, strip, v_columns + j * row, nullptr,
                        staging);
  }
  std::memset(dk, 0, 2 * padded * row * sizeof(Real));

  for (int64_t index = 0; index * kRows < group.rows(); ++index) {
    Block<Real> block(p, group, index);
    RowConstants<Real> constants[kRows];
    Real dtemperature[kRows] = {};
    for (int64_t r = 0; r < block.count; ++r) {
      const int64_t at = group.at(p.statistic_strides, block.first + r);
      constants[r].anchor = statistic<Real>(p.anchor, at);
      constants[r].log_sum = statistic<Real>(p.log_sum, at);
      constants[r].entropy = statistic<Real>(p.entropy, at);
      constants[r].dentropy = statistic<Real>(p.dentropy, at);
      constants[r].shift = -statistic<Real>(p.dlse, at);
      if constexpr (kEntropy) constants[r].shift += constants[r].dentropy * constants[r].entropy;
      if (constants[r].anchor == static_cast<Real>(-kInfinity)) block.keys[r] = {};
      block.keys[r] = overlap(block.keys[r], {range.from, range.from + keys});
    }
    block.join_spans();
    std::memset(dq, 0, block.count * row * sizeof(Real));
    bool q_finite = true, dout_finite = true;
    const Operand *q_operand = nullptr, *dout_operand = nullptr;
    if (!block.all.empty()) {
      load_rows(p.dtype, p.q, p.q_strides, group, block, D, block.factor, q);
      q_finite = Products::pack_rows(block.count, D, q, row, q_rows, kRows, 0);
      load_rows<Real>(p.dtype, p.q, p.q_strides, group, block, D, nullptr, q);
      load_rows<Real>(p.dtype, p.dout, p.dout_strides, group, block, D, nullptr, dout);
      dout_finite = Products::pack_rows(block.count, D, dout, row, dout_rows, kRows, 0);
      add_dots(p, group, block, dout, staging, constants);
      dout_operand = Products::narrow(block.count, row, dout);
      if (!few) q_operand = Products::narrow(block.count, row, q);
    }
    for (int64_t first = block.all.from / strip * strip; first < block.all.to; first += strip) {
      const int64_t at = (first - range.from) * row;
      const Span panels = whole_panels(within_strip(block.all, first, strip), Products::kPanelKeys);
      if (few) {
        const Span here = overlap(block.all, {first, first + strip});
        const KeyRows<Real> k(p.dtype, p.k, p.k_strides, group, D, here, few_keys);
        few_scores(block, first, strip, panels, D, q, k, s);
      } else {
        Products::scores(block, first, strip, panels, D, q_operand, k_columns + at, s);
      }
      Products::scores(block, first, strip, panels, D, dout_operand, v_columns + at, dp);
      for (int64_t r = 0; r < block.count; ++r) {
        Real *s_row = s + r * width, *dp_row = dp + r * width;
        const Span seen = within_strip(block.keys[r], first, strip), vectors = whole_vectors<Real>(seen, panels);
        if (p.shape.softcap > 0) cap_row(s_row, vectors, block.factor[r], block.cap[r], slope);
        fill_unseen(s_row, seen, vectors, -kInfinity);
        fill_unseen(dp_row, seen, vectors, 0);
        dtemperature[r] +=
            gradient_row<Real, kEntropy, kTemperature>(s_row, dp_row, vectors, block.row_factor(r), constants[r]);
        if (p.shape.softcap > 0)
          for (int64_t j = seen.from; j < seen.to; ++j) dp_row[j] *= slope[j];
        Real* const both[] = {s_row, dp_row};
        for (Real* x : both) {
          fill_unseen(x, seen, vectors, 0);  // NaN in a row with NaN
          clear_around(x, vectors, panels);
        }
      }
      Products::sum_over_queries(block, first, strip, panels, D, dout_finite, s, dout_rows, dv + at, staging);
      Products::sum_over_queries(block, first, strip, panels, D, q_finite, dp, q_rows, dk + at, staging);
      Products::sum_over_keys(block, first, strip, panels, D, finite[(first - range.from) / strip] != 0, dp,
                              k_rows + at, dq);
    }
    for (int64_t r = 0; r < block.count; ++r) {
      const int64_t i = block.first + r;
      if (dq_partial == nullptr) {
        finish_row(p, group, block, r, dq + r * row, dtemperature[r]);
      } else {
        std::memcpy(dq_partial + i * D, dq + r * row, D * sizeof(Real));
        dtemperature_partial[i] = dtemperature[r];
      }
    }
  }
  Products::end_task();
  std::memset(staging, 0, row * sizeof(Real));
  const int64_t end = p.shape.cu_seqlens == nullptr ? smaller(range.to, p.shape.keys) : range.from + keys;
  for (int64_t j = range.from; j < end; ++j) {
    const int64_t i = j - range.from;
    store_row(p.dtype, i < keys ? dk + i * row : staging, D, p.dk, group.key(p.dk_strides, j));
    store_row(p.dtype, i < keys ? dv + i * row : staging, D, p.dv, group.key(p.dv_strides, j));
  }
}

template <class Real, bool kEntropy, bool kTemperature>
void backward(const EntropyAttentionBackward& p) {
  const AttentionShape& shape = p.shape;
  const Ranges ranges(shape);
  const int64_t D = shape.head_size, groups = shape.batch * shape.kv_heads,
                rows = shape.heads / shape.kv_heads * shape.queries;
  const Lease lease{shared_scratch};
  Real *dq = nullptr, *dtemperature = nullptr;  // [ranges, groups, rows, D], [ranges, groups, rows]
  if (ranges.count > 1) {
    dq = shared_scratch.get<Real>(ranges.count * groups * rows * (D + 1));
    dtemperature = dq + ranges.count * groups * rows * D;
  }
  for_tasks(ranges.count * groups, [&](int64_t i) {  // causal: the first keys are seen by most rows
    const int64_t first = i / groups * ranges.keys;
    const Group group(shape, i % groups);
    const Span range{first, first + ranges.keys};
    Real *dq_partial = dq ? dq + i * rows * D : nullptr, *dtemperature_partial = dq ? dtemperature + i * rows : nullptr;
    if constexpr (kPairs && sizeof(Real) == sizeof(float))
      if (takes_pairs(p) && keys_are_finite(p.k, p.k_strides, group, D) &&
          keys_are_finite(p.v, p.v_strides, group, D) && rows_are_finite(p.q, p.q_strides, group, D) &&
          rows_are_finite(p.dout, p.dout_strides, group, D))
        return backward_range<PairProducts, kEntropy, kTemperature>(p, group, range, dq_partial, dtemperature_partial);
    backward_range<PlainProducts<Real>, kEntropy, kTemperature>(p, group, range, dq_partial, dtemperature_partial);
  });
  if (ranges.count == 1) return;
  const int64_t blocks = parts(rows, kRows), next = groups * rows;
  for_tasks(groups * blocks, [&](int64_t i) {
    const Group group(shape, i / blocks);
    if (i % blocks * kRows >= group.rows()) return;
    const Block<Real> block(p, group, i % blocks);
    for (int64_t r = 0; r < block.count; ++r) {
      const int64_t at = i / blocks * rows + block.first + r;
      for (int64_t range = 1; range < ranges.count; ++range) {
        for (int64_t d = 0; d < D; ++d) dq[at * D + d] += dq[(at + range * next) * D + d];
        dtemperature[at] += dtemperature[at + range * next];
      }
      finish_row(p, group, block, r, dq + at * D, dtemperature[at]);
    }
  });
}

template <class Products>
void forward(const EntropyAttentionForward& p) {
  p.entropy ? forward<Products, true>(p) : forward<Products, false>(p);
}

template <class Real>
void backward(const EntropyAttentionBackward& p) {
  if (p.dentropy)
    p.dtemperature ? backward<Real, true, true>(p) : backward<Real, true, false>(p);
  else
    p.dtemperature ? backward<Real, false, true>(p) : backward<Real, false, false>(p);
}

}  // namespace

void entropy_attention_forward_cpu(const EntropyAttentionForward& p) {
  if (p.dtype == DType::kDouble) return forward<PlainProducts<double>>(p);
  bool pairs = takes_pairs(p);
  for (int64_t i = 0; pairs && i < p.shape.batch * p.shape.kv_heads; ++i)
    pairs = keys_are_finite(p.v, p.v_strides, Group(p.shape, i), p.shape.head_size);
  if constexpr (kPairs)
    if (pairs) return forward<PairProducts>(p);
  forward<PlainProducts<float>>(p);
}

void entropy_attention_backward_cpu(const EntropyAttentionBackward& p) {
  p.dtype == DType::kDouble ? backward<double>(p) : backward<float>(p);
}

}  // namespace isentrope::ops::CPU_CAPABILITY
