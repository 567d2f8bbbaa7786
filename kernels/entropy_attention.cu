// One list of rows for each key head: row r is query r / group of head r % group of the group = H / G heads that share it,
// so k and v are read once for all of them, and causal order is the order of rows.
//
// A block holds a tile of some rows in shared memory and walks over tiles of the other side, two of them in flight; a warp
// has 16 rows of the held tile. Its scores come in the layout of mma's result, and go back as mma's left factor without
// leaving registers. Three walks: forward (queries held, keys walked), dq (the same), dk and dv (keys held, queries walked).
// bfloat16 and half multiply on tensor cores, float by fused multiply-adds on the same layout.
#include "kernels/entropy_attention.h"
#include "kernels/gpu/async_copy.h"
#include "kernels/gpu/dispatch.h"
#include "kernels/gpu/launch.h"
#include "kernels/gpu/mma.h"
#include "kernels/gpu/reduce.h"
#include "kernels/gpu/vector.h"

namespace isentrope::kernels {
namespace attention {

// ---- rows and what they see ------------------------------------------------------------------------------------------

GPU_HOST_DEVICE int64_t bounded(int64_t x, int64_t low, int64_t high) { return x < low ? low : x < high ? x : high; }
GPU_HOST_DEVICE int smaller(int a, int b) { return b < a ? b : a; }
GPU_HOST_DEVICE int larger(int a, int b) { return a < b ? b : a; }

// One key head of one sequence.
struct KeyHead {
  int64_t batch, first_row;  // packed: 0, and the rows before the sequence
  int index, group;          // which of G; query heads that share it
  int rows, keys, start;     // rows: queries · group; keys n_b; the place of the first query
};

// n of the B·G.
GPU_DEVICE KeyHead key_head(const AttentionShape& s, int64_t n) {
  const int64_t b = n / s.kv_heads;
  KeyHead x;
  x.index = static_cast<int>(n % s.kv_heads);
  x.group = static_cast<int>(s.heads / s.kv_heads);
  int64_t queries = s.queries;
  if (s.cu_seqlens != nullptr) {
    x.batch = 0;
    x.first_row = bounded(s.cu_seqlens[b], 0, s.total);
    const int64_t length = bounded(s.cu_seqlens[b + 1], x.first_row, s.total) - x.first_row;
    queries = bounded(length, 0, s.queries);
    x.keys = static_cast<int>(bounded(length, 0, s.keys));
    x.start = 0;
  } else {
    x.batch = b;
    x.first_row = 0;
    x.keys = static_cast<int>(s.key_lengths ? bounded(s.key_lengths[b], 0, s.keys) : s.keys);
    x.start = static_cast<int>(s.query_start ? bounded(s.query_start[b], 0, s.keys) : s.keys - s.queries);
  }
  x.rows = static_cast<int>(queries) * x.group;
  return x;
}

// Element (row or key, 0) in an array with these strides.
GPU_DEVICE int64_t row_offset(const KeyHead& x, const HeadStrides& s, int row) {
  return x.batch * s.batch + (x.index * x.group + row % x.group) * s.head + (x.first_row + row / x.group) * s.row;
}
GPU_DEVICE int64_t key_offset(const KeyHead& x, const HeadStrides& s, int key) {
  return x.batch * s.batch + x.index * s.head + (x.first_row + key) * s.row;
}

// The keys first … end - 1 that a row sees. Neither falls from one row to the next.
struct Span {
  int first, end;
  GPU_DEVICE bool has(int key) const { return first <= key && key < end; }
};
GPU_DEVICE Span span_of(const AttentionShape& s, const KeyHead& x, int row) {
  if (!s.causal) return {0, x.keys};
  const int place = x.start + row / x.group;
  const int first = 0 < s.window && s.window <= place ? place - static_cast<int>(s.window) + 1 : 0;
  return {first, larger(0, smaller(place + 1, x.keys))};
}

// s = factor · (q·k), or factor · tanh(inner · q·k) with softcap; inner is 0 without. An unseen key has -inf for either product.
struct Logits {
  float base, inner;
};
GPU_DEVICE Logits logits_of(const AttentionShape& s) {
  const float scale = static_cast<float>(s.scale), softcap = static_cast<float>(s.softcap);
  return {softcap > 0 ? softcap : scale, softcap > 0 ? scale / softcap : 0.0f};
}
GPU_DEVICE float factor_of(const Logits& logits, float inverse_temperature) {
  return logits.base * inverse_temperature;
}
GPU_DEVICE float inverse_temperature_of(const void* temperature, const HeadStrides& strides, const KeyHead& x,
                                        int row) {
  if (temperature == nullptr) return 1.0f;
  return 1.0f / static_cast<const float*>(temperature)[row_offset(x, strides, row)];
}

// log p, bounded so that p · log p is 0 at p = 0: 2^-10000 is 0 in float. p itself comes from the unbounded one: a NaN stays.
GPU_DEVICE float bounded_log(float x) { return gpu::maximum(x, -1e4f); }

// ---- tiles -----------------------------------------------------------------------------------------------------------

// kHead columns (64, 128 or 256; those past D are 0) of some rows of T in shared memory. The 16-byte chunks of a row are
// permuted by the row's number: eight rows then meet all banks at any column.
template <class T, int kHead>
struct Tile {
  static constexpr int kRowBytes = kHead * static_cast<int>(sizeof(T)), kChunks = kRowBytes / 16;
  static constexpr int kInChunk = 16 / static_cast<int>(sizeof(T));
  // Chunk of_lane ^ constant.
  static GPU_DEVICE char* chunk(char* tile, int row, int of_lane, int constant = 0) {
    return tile + row * kRowBytes + (((of_lane ^ constant) ^ (row & 7)) << 4);
  }
};

// What the gradient needs of a row: log2 p = (factor · score - anchor) - log_sum; delta and dentropy are divided by the temperature.
struct alignas(16) Row {
  float factor, anchor, log_sum, delta, dentropy, inverse_temperature;
  Span span;
};

// kHeld tiles (q; or q and dout; or k and v) of kRows rows, two buffers of two tiles of kWalked rows. So many that all fits the
// shared memory of a block, and that scores and sums fit the 255 registers of a thread.
template <class T, int kHead, int kHeld>
struct Tiles {
  static constexpr int kRowBytes = Tile<T, kHead>::kRowBytes;
  static constexpr bool kFloat = sizeof(T) == 4, kBackward = kHeld == 2;
  static constexpr int kWarps = kFloat && (kRowBytes == 1024 || (kRowBytes == 512 && kBackward)) ? 2 : 4;
  static constexpr int kRows = 16 * kWarps, kThreads = 32 * kWarps;
  static constexpr int kWalked = kRowBytes == 128   ? 64
                                 : kRowBytes == 256 ? (kBackward || kFloat ? 32 : 64)
                                 : kRowBytes == 512 ? (kBackward || kFloat ? 16 : 32)
                                                    : (kBackward ? 8 : 16);
  static constexpr int kHeldBytes = kRows * kRowBytes, kWalkedBytes = kWalked * kRowBytes;
  // float alone: where the lanes of a warp exchange scores
  static constexpr int kExchangeBytes = kFloat ? kWarps * 16 * kWalked * 4 : 0;
  // backward: what the gradient needs of each walked row
  static constexpr int kRowsBytes = kBackward ? 2 * kWalked * static_cast<int>(sizeof(Row)) : 0;
  static constexpr int kBytes = kHeld * kHeldBytes + 4 * kWalkedBytes + kExchangeBytes + kRowsBytes;
  static_assert(kBytes <= 99 * 1024, "a block of sm_86 and sm_120 has no more");
};

// Blocks a multiprocessor has to hold. Said, since otherwise ptxas spills registers to make room for one more.
constexpr int kBlocks = 1;

// Starts the copy of rows first … first + kRows - 1; zeros from row end on and from column columns on.
// offset(row): the row's first element, counted from base.
template <class T, int kHead, int kRows, int kThreads, class Offset>
GPU_DEVICE void copy_rows(char* tile, const T* base, int first, int end, int columns, Offset offset GPU_AT) {
  using Tile = Tile<T, kHead>;
  constexpr int kStep = kThreads / Tile::kChunks;  // rows the block copies at a time: a thread keeps to its column
  static_assert(kThreads % Tile::kChunks == 0 && kRows % kStep == 0, "whole rows");
  const int chunk = static_cast<int>(threadIdx.x) % Tile::kChunks, top = static_cast<int>(threadIdx.x) / Tile::kChunks;
  const bool column = chunk * Tile::kInChunk < columns;
  base += chunk * Tile::kInChunk;
  GPU_UNROLL_BY(2)  // the addresses of more would be kept in registers
  for (int i = 0; i < kRows; i += kStep) {
    const bool valid = column && first + top + i < end;
    gpu::copy_async_16(Tile::chunk(tile, top + i, chunk), base + (valid ? offset(first + top + i) : 0), valid GPU_HERE);
  }
}

// For each walked tile of begin … end - 1: load(tile, buffer) starts its copies, one tile ahead of use(tile, buffer), which sees
// them and those that were started before the walk. One barrier a tile: it also says that all have left the other buffer.
template <class Load, class Use>
GPU_DEVICE void walk(int begin, int end, Load load, Use use) {
  for (int tile = begin; tile <= end; ++tile) {
    const int buffer = (tile - begin) & 1;
    if (tile > begin) {
      gpu::copy_async_wait<0>();
      __syncthreads();
    }
    if (tile < end) {
      load(tile, buffer);
      gpu::copy_async_commit();
    }
    if (tile > begin) use(tile - 1, buffer ^ 1);
  }
}

// Scores of a warp: score[n][i] is row lane / 4 + 8·(i / 2), column 8n + 2·(lane % 4) + i % 2.
template <int kColumns>
struct Scores {
  float value[kColumns / 8][4];
  GPU_DEVICE Scores() {
    GPU_UNROLL
    for (int n = 0; n < kColumns / 8; ++n) value[n][0] = value[n][1] = value[n][2] = value[n][3] = 0;
  }
};

GPU_DEVICE float dot(float sum, const gpu::Pack<float>& a, const gpu::Pack<float>& b) {
  GPU_UNROLL
  for (int i = 0; i < 4; ++i) sum = ::fmaf(a.value[i], b.value[i], sum);
  return sum;
}

// score += A B^T. A: the 16 rows from row on of tile a; B: the kColumns rows of tile b.
template <class T, int kHead, int kColumns>
GPU_DEVICE void multiply_transposed(Scores<kColumns>& score, char* a, int row, char* b, int columns GPU_AT) {
  using Tile = Tile<T, kHead>;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  if constexpr (sizeof(T) == 2) {
    GPU_UNROLL_BY(4)  // in full it would keep registers for the fragments to come
    for (int k = 0; k < kHead / 16; ++k) {
      uint32_t left[4];
      gpu::ldmatrix_x4(left, Tile::chunk(a, row + lane % 16, lane / 16, 2 * k) GPU_HERE);
      GPU_UNROLL
      for (int n = 0; n < kColumns / 16; ++n) {
        uint32_t right[4];
        gpu::ldmatrix_x4(right, Tile::chunk(b, 16 * n + lane % 8 + lane / 16 * 8, lane / 8 % 2, 2 * k) GPU_HERE);
        gpu::mma_m16n8k16<T>(score.value[2 * n], left, right[0], right[1] GPU_HERE);
        gpu::mma_m16n8k16<T>(score.value[2 * n + 1], left, right[2], right[3] GPU_HERE);
      }
    }
  } else {
    using Pack = gpu::Pack<float>;
    for (int k = 0; k < columns / 4; ++k) {
      Pack left[2];
      GPU_UNROLL
      for (int h = 0; h < 2; ++h) left[h] = *reinterpret_cast<const Pack*>(Tile::chunk(a, row + lane / 4 + 8 * h, k));
      GPU_UNROLL
      for (int n = 0; n < kColumns / 8; ++n) {
        GPU_UNROLL
        for (int i = 0; i < 2; ++i) {
          const Pack right = *reinterpret_cast<const Pack*>(Tile::chunk(b, 8 * n + 2 * (lane % 4) + i, k));
          score.value[n][i] = dot(score.value[n][i], left[0], right);
          score.value[n][i + 2] = dot(score.value[n][i + 2], left[1], right);
        }
      }
    }
  }
}

// sum += P B. P: score, rounded to T; B: the kColumns rows of tile b. exchange: the block's kExchangeBytes.
template <class T, int kHead, int kColumns>
GPU_DEVICE void multiply(Scores<kHead>& sum, const Scores<kColumns>& score, char* b, char* exchange GPU_AT) {
  using Tile = Tile<T, kHead>;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  if constexpr (sizeof(T) == 2) {
    GPU_UNROLL
    for (int k = 0; k < kColumns / 16; ++k) {
      const auto &low = score.value[2 * k], &high = score.value[2 * k + 1];
      const uint32_t left[4] = {gpu::pack_pair<T>(low[0], low[1]), gpu::pack_pair<T>(low[2], low[3]),
                                gpu::pack_pair<T>(high[0], high[1]), gpu::pack_pair<T>(high[2], high[3])};
      GPU_UNROLL
      for (int n = 0; n < kHead / 16; ++n) {
        uint32_t right[4];
        gpu::ldmatrix_x4_transposed(right, Tile::chunk(b, 16 * k + lane % 16, lane / 16, 2 * n) GPU_HERE);
        gpu::mma_m16n8k16<T>(sum.value[2 * n], left, right[0], right[1] GPU_HERE);
        gpu::mma_m16n8k16<T>(sum.value[2 * n + 1], left, right[2], right[3] GPU_HERE);
      }
    }
  } else {
    float* p = reinterpret_cast<float*>(exchange) + threadIdx.x / 32 * 16 * kColumns;  // [16, kColumns]
    GPU_UNROLL
    for (int n = 0; n < kColumns / 8; ++n) GPU_UNROLL
    for (int i = 0; i < 4; ++i)
      p[(lane / 4 + i / 2 * 8) * kColumns + 8 * n + 2 * (lane % 4) + i % 2] = score.value[n][i];
    __syncwarp();
    for (int k = 0; k < kColumns; ++k) {
      const float left[2] = {p[lane / 4 * kColumns + k], p[(lane / 4 + 8) * kColumns + k]};
      GPU_UNROLL
      for (int n = 0; n < kHead / 8; ++n) {
        const float* right = reinterpret_cast<const float*>(Tile::chunk(b, k, lane % 4 / 2, 2 * n)) + lane % 2 * 2;
        GPU_UNROLL
        for (int i = 0; i < 4; ++i) sum.value[n][i] = ::fmaf(left[i / 2], right[i % 2], sum.value[n][i]);
      }
    }
    __syncwarp();  // all have read it: the next product writes it anew
  }
}

// score = tanh(inner · score) with softcap.
template <int kColumns>
GPU_DEVICE void soften(Scores<kColumns>& score, const Logits& logits) {
  if (logits.inner == 0) return;
  GPU_UNROLL
  for (int n = 0; n < kColumns / 8; ++n) GPU_UNROLL
  for (int i = 0; i < 4; ++i) score.value[n][i] = ::tanhf(score.value[n][i] * logits.inner);
}

template <class T>
struct alignas(2 * sizeof(T)) Pair {
  T value[2];
};

// to[0 … columns - 1] = the warp's row lane / 4 + 8·half of sum, times scale.
template <class T, int kHead>
GPU_DEVICE void store_row(T* to, const Scores<kHead>& sum, int half, float scale, int columns) {
  const int first = 2 * (static_cast<int>(threadIdx.x) % 4);
  GPU_UNROLL
  for (int n = 0; n < kHead / 8; ++n)
    if (8 * n < columns)
      *reinterpret_cast<Pair<T>*>(to + 8 * n + first) = {
          {gpu::narrow<T>(sum.value[n][2 * half] * scale), gpu::narrow<T>(sum.value[n][2 * half + 1] * scale)}};
}

// ---- forward ---------------------------------------------------------------------------------------------------------

// Of the logits a row has met, in base 2: their maximum m, l = Σ 2^(s - m) and e = Σ 2^(s - m)·(s - m).
struct State {
  float maximum = -INFINITY, sum = 0, sum_log = 0;
};

// Where the exponents of terms start: m, or 0 where every logit was -inf.
GPU_DEVICE float anchor_of(float maximum) { return maximum == -INFINITY ? 0.0f : maximum; }

// Moves a row to a maximum that is no smaller. What is returned multiplies its earlier terms.
template <bool kEntropy>
GPU_DEVICE float raise(State& x, float maximum) {
  const float shift = x.maximum - anchor_of(maximum), scale = gpu::exp2_approx(shift);
  if constexpr (kEntropy) x.sum_log = scale * (x.sum_log + bounded_log(shift) * x.sum);
  x.sum *= scale;
  x.maximum = maximum;
  return scale;
}

// The statistics of a row with state x; logits were taken times factor · log2(e).
GPU_DEVICE void write_statistics(const EntropyAttentionForward& p, const KeyHead& head, int row, const State& x,
                                 float factor) {
  // factor / c is ln 2 but for the rounding of c. In two parts: at large logits their product would lose a digit to it.
  const float c = factor * gpu::kLog2e, high = factor / c, low = ::fmaf(-high, c, factor) / c;
  const float rest = x.maximum * low, log_sum = ::log2f(x.sum);
  const bool empty = x.sum == 0, bad = x.sum != x.sum;
  const int64_t place = row_offset(head, p.statistic_strides, row);
  static_cast<float*>(p.lse)[place] = empty ? -INFINITY : ::fmaf(x.maximum, high, rest + gpu::kLn2 * log_sum);
  if (p.max_logit != nullptr)
    static_cast<float*>(p.max_logit)[place] = empty ? -INFINITY : bad ? x.sum : ::fmaf(x.maximum, high, rest);
  if (p.anchor != nullptr) {
    static_cast<float*>(p.anchor)[place] = x.maximum;
    static_cast<float*>(p.log_sum)[place] = empty ? 0.0f : log_sum;
  }
  if (p.entropy != nullptr) {
    const float entropy = empty ? 0.0f : gpu::kLn2 * (log_sum - x.sum_log / x.sum);
    static_cast<float*>(p.entropy)[place] = entropy < 0 ? 0.0f : entropy;  // rounding alone takes it below
  }
}

// What the parts of the keys say of each row, where a row's keys are cut into more than one part.
struct Parts {
  int count;
  int64_t head_rows, rows;  // of one key head, of all
  State* state;             // [count, rows]
  float* out;               // [count, rows, D], not yet divided by the sum
};

template <class T, int kHead, bool kEntropy>
__global__ void __launch_bounds__(Tiles<T, kHead, 1>::kThreads, kBlocks)
    entropy_attention_forward_kernel(const EntropyAttentionForward p, const Parts parts, const int row_blocks) {
  using Tiles = Tiles<T, kHead, 1>;
  constexpr int kKeys = Tiles::kWalked, kRows = Tiles::kRows, kThreads = Tiles::kThreads;
  GPU_DYNAMIC_SHARED(char, shared);
  char *const q = shared, *const walked = q + Tiles::kHeldBytes, *const exchange = walked + 4 * Tiles::kWalkedBytes;
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const int columns = static_cast<int>(p.shape.head_size), part = static_cast<int>(blockIdx.x % parts.count);
  // The last rows of a causal head see the most keys, so they start first.
  const int row_block = row_blocks - 1 - static_cast<int>(blockIdx.x / parts.count % row_blocks);
  const int64_t head_index = blockIdx.x / parts.count / row_blocks;
  const KeyHead head = key_head(p.shape, head_index);
  const int first_row = row_block * kRows, last_row = smaller(first_row + kRows, head.rows) - 1;
  if (first_row >= head.rows) return;  // packed: a shorter sequence

  int begin = span_of(p.shape, head, first_row).first / kKeys;
  int end = gpu::ceil_div(span_of(p.shape, head, last_row).end, kKeys);
  const int each = gpu::ceil_div(larger(end - begin, 0), parts.count);
  begin += part * each;
  end = smaller(end, begin + each);

  const T *k = static_cast<const T*>(p.k) + key_offset(head, p.k_strides, 0),
          *v = static_cast<const T*>(p.v) + key_offset(head, p.v_strides, 0);
  if (begin < end)
    copy_rows<T, kHead, kRows, kThreads>(q, static_cast<const T*>(p.q), first_row, head.rows, columns,
                                         [&](int row) { return row_offset(head, p.q_strides, row); });
  auto load = [&](int tile, int buffer) {
    char* to = walked + 2 * buffer * Tiles::kWalkedBytes;
    copy_rows<T, kHead, kKeys, kThreads>(to, k, tile * kKeys, head.keys, columns,
                                         [&](int key) { return key * p.k_strides.row; });
    copy_rows<T, kHead, kKeys, kThreads>(to + Tiles::kWalkedBytes, v, tile * kKeys, head.keys, columns,
                                         [&](int key) { return key * p.v_strides.row; });
  };

  const Logits logits = logits_of(p.shape);
  const int warp_row = first_row + 16 * warp;
  const Span lowest = span_of(p.shape, head, smaller(warp_row, last_row)),
             highest = warp_row > last_row ? Span{0, 0} : span_of(p.shape, head, smaller(warp_row + 15, last_row));
  int row[2];
  float factor[2];
  Span span[2];
  GPU_UNROLL
  for (int h = 0; h < 2; ++h) {
    row[h] = smaller(warp_row + lane / 4 + 8 * h, last_row);
    span[h] = span_of(p.shape, head, row[h]);
    factor[h] = factor_of(logits, inverse_temperature_of(p.temperature, p.temperature_strides, head, row[h]));
  }

  Scores<kHead> out;
  State state[2];
  auto use = [&](int tile, int buffer) {
    const int first_key = tile * kKeys;
    if (first_key >= highest.end || first_key + kKeys <= lowest.first) return;  // no row of the warp sees one
    char* k_tile = walked + 2 * buffer * Tiles::kWalkedBytes;
    Scores<kKeys> score;
    multiply_transposed<T, kHead, kKeys>(score, q, 16 * warp, k_tile, columns);
    soften(score, logits);
    if (first_key < highest.first || first_key + kKeys > lowest.end) {
      GPU_UNROLL
      for (int n = 0; n < kKeys / 8; ++n) GPU_UNROLL
      for (int i = 0; i < 4; ++i)
        if (!span[i / 2].has(first_key + 8 * n + 2 * (lane % 4) + i % 2)) score.value[n][i] = -INFINITY;
    }
    GPU_UNROLL
    for (int h = 0; h < 2; ++h) {
      const float c = factor[h] * gpu::kLog2e;
      float maximum = state[h].maximum;
      GPU_UNROLL
      for (int n = 0; n < kKeys / 8; ++n) GPU_UNROLL
      for (int i = 2 * h; i < 2 * h + 2; ++i) {
        // Rounded by itself: the largest logit minus the maximum has to be 0.
        score.value[n][i] = gpu::multiply_rounded(score.value[n][i], c);
        maximum = gpu::maximum(maximum, score.value[n][i]);
      }
      maximum = gpu::warp_reduce<4>(maximum, gpu::Maximum());
      const float scale = raise<kEntropy>(state[h], maximum), anchor = anchor_of(maximum);
      GPU_UNROLL
      for (int n = 0; n < kHead / 8; ++n) GPU_UNROLL
      for (int i = 2 * h; i < 2 * h + 2; ++i) out.value[n][i] *= scale;
      GPU_UNROLL
      for (int n = 0; n < kKeys / 8; ++n) GPU_UNROLL
      for (int i = 2 * h; i < 2 * h + 2; ++i) {
        const float log_p = score.value[n][i] - anchor, term = gpu::exp2_approx(log_p);
        state[h].sum += term;
        if constexpr (kEntropy) state[h].sum_log += term * bounded_log(log_p);
        score.value[n][i] = term;
      }
    }
    multiply<T, kHead, kKeys>(out, score, k_tile + Tiles::kWalkedBytes, exchange);
  };
  walk(begin, end, load, use);

  GPU_UNROLL
  for (int h = 0; h < 2; ++h) {
    state[h].sum = gpu::warp_reduce<4>(state[h].sum, gpu::Sum());
    if constexpr (kEntropy) state[h].sum_log = gpu::warp_reduce<4>(state[h].sum_log, gpu::Sum());
    if (warp_row + lane / 4 + 8 * h > last_row) continue;
    if (parts.count > 1) {
      const int64_t place = part * parts.rows + head_index * parts.head_rows + row[h];
      if (lane % 4 == 0) parts.state[place] = state[h];
      store_row<float>(parts.out + place * columns, out, h, 1.0f, columns);
    } else {
      if (lane % 4 == 0) write_statistics(p, head, row[h], state[h], factor[h]);
      store_row<T>(static_cast<T*>(p.out) + row_offset(head, p.out_strides, row[h]), out, h,
                   state[h].sum == 0 ? 0.0f : 1.0f / state[h].sum, columns);
    }
  }
}

constexpr int kRowThreads = 128;  // of the kernels that give a warp to a row

// Grid: a warp a row. Joins the parts in their order.
template <class T>
__global__ void __launch_bounds__(kRowThreads)
    entropy_attention_join_kernel(const EntropyAttentionForward p, const Parts parts) {
  const int64_t n = (int64_t{blockIdx.x} * kRowThreads + threadIdx.x) / 32;
  if (n >= parts.rows) return;
  const KeyHead head = key_head(p.shape, n / parts.head_rows);
  const int row = static_cast<int>(n % parts.head_rows), lane = static_cast<int>(threadIdx.x) % 32;
  if (row >= head.rows) return;

  State all;
  for (int i = 0; i < parts.count; ++i)
    all.maximum = gpu::maximum(all.maximum, parts.state[i * parts.rows + n].maximum);
  for (int i = 0; i < parts.count; ++i) {
    State x = parts.state[i * parts.rows + n];
    raise<true>(x, all.maximum);
    all.sum += x.sum;
    all.sum_log += x.sum_log;
  }
  if (lane == 0)
    write_statistics(
        p, head, row, all,
        factor_of(logits_of(p.shape), inverse_temperature_of(p.temperature, p.temperature_strides, head, row)));

  T* out = static_cast<T*>(p.out) + row_offset(head, p.out_strides, row);
  const float inverse = all.sum == 0 ? 0.0f : 1.0f / all.sum;
  for (int column = lane; column < p.shape.head_size; column += 32) {
    float sum = 0;
    for (int i = 0; i < parts.count; ++i) {
      State x = parts.state[i * parts.rows + n];
      sum += raise<false>(x, all.maximum) * parts.out[(i * parts.rows + n) * p.shape.head_size + column];
    }
    out[column] = gpu::narrow<T>(sum * inverse);
  }
}

// ---- backward --------------------------------------------------------------------------------------------------------

// Grid: a warp a row. rows [head_rows · B·G].
template <class T>
__global__ void __launch_bounds__(kRowThreads)
    entropy_attention_rows_kernel(const EntropyAttentionBackward p, Row* rows, const int64_t head_rows) {
  using Pack = gpu::Pack<T>;
  const int64_t n = (int64_t{blockIdx.x} * kRowThreads + threadIdx.x) / 32;
  if (n >= head_rows * p.shape.batch * p.shape.kv_heads) return;
  const KeyHead head = key_head(p.shape, n / head_rows);
  const int row = static_cast<int>(n % head_rows), lane = static_cast<int>(threadIdx.x) % 32;
  if (row >= head.rows) return;

  const T *out = static_cast<const T*>(p.out) + row_offset(head, p.out_strides, row),
          *dout = static_cast<const T*>(p.dout) + row_offset(head, p.dout_strides, row);
  float delta = 0;
  for (int i = lane; i < p.shape.head_size / Pack::kSize; i += 32) {
    const Pack a = gpu::load_pack(out + i * Pack::kSize), b = gpu::load_pack(dout + i * Pack::kSize);
    GPU_UNROLL
    for (int j = 0; j < Pack::kSize; ++j) delta += gpu::widen(a.value[j]) * gpu::widen(b.value[j]);
  }
  delta = gpu::warp_reduce(delta, gpu::Sum());
  if (lane != 0) return;

  const int64_t place = row_offset(head, p.statistic_strides, row);
  const auto at = [place](const void* x) { return x == nullptr ? 0.0f : static_cast<const float*>(x)[place]; };
  const float inverse_temperature = inverse_temperature_of(p.temperature, p.temperature_strides, head, row);
  Row x = {factor_of(logits_of(p.shape), inverse_temperature) * gpu::kLog2e,
           at(p.anchor),
           at(p.log_sum),
           0,
           0,
           inverse_temperature,
           span_of(p.shape, head, row)};
  if (x.anchor == -INFINITY) {
    x.anchor = INFINITY;  // every p becomes 0
  } else {
    x.dentropy = at(p.dentropy) * x.inverse_temperature;
    if (p.dentropy != nullptr) delta += at(p.dentropy) * at(p.entropy);
    x.delta = (delta - at(p.dlse)) * x.inverse_temperature;
  }
  rows[n] = x;
}

// In: q·k (or its tanh) and dout·v. Out: p and the gradient of scale · q·k. Returns (gradient of the logit / τ) · log p.
template <bool kEntropy, bool kSoftcap>
GPU_DEVICE float differentiate(float& score, float& gradient, const Row& row, float factor) {
  // The product is rounded by itself, as in the forward pass: the anchor is one of them.
  const float log2_p = (gpu::multiply_rounded(score, factor) - row.anchor) - row.log_sum;
  const float p = gpu::exp2_approx(log2_p), log_p = bounded_log(log2_p * gpu::kLn2);
  float ds = ::fmaf(gradient, row.inverse_temperature, -row.delta);
  if constexpr (kEntropy) ds = ::fmaf(-row.dentropy, log_p, ds);
  ds *= p;
  // At an unseen key score² is infinite.
  gradient = kSoftcap ? ds * gpu::maximum(1.0f - score * score, 0.0f) : ds;
  score = p;
  return ds * log_p;
}

// function(std::true_type) with softcap, else function(std::false_type): one branch a tile.
template <class Function>
GPU_DEVICE void with_softcap(const Logits& logits, Function function) {
  if (logits.inner != 0) {
    function(std::true_type());
  } else {
    function(std::false_type());
  }
}

// Queries held, keys walked: dq and dtemperature.
template <class T, int kHead, bool kEntropy>
__global__ void __launch_bounds__(Tiles<T, kHead, 2>::kThreads, kBlocks)
    entropy_attention_backward_queries_kernel(const EntropyAttentionBackward p, const Row* rows,
                                              const int64_t head_rows, const int row_blocks) {
  using Tiles = Tiles<T, kHead, 2>;
  constexpr int kKeys = Tiles::kWalked, kRows = Tiles::kRows, kThreads = Tiles::kThreads;
  GPU_DYNAMIC_SHARED(char, shared);
  char *const q = shared, *const dout = q + Tiles::kHeldBytes, *const walked = dout + Tiles::kHeldBytes,
              *const exchange = walked + 4 * Tiles::kWalkedBytes;
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const int columns = static_cast<int>(p.shape.head_size);
  const int row_block = row_blocks - 1 - static_cast<int>(blockIdx.x % row_blocks);
  const int64_t head_index = blockIdx.x / row_blocks;
  const KeyHead head = key_head(p.shape, head_index);
  const int first_row = row_block * kRows, last_row = smaller(first_row + kRows, head.rows) - 1;
  if (first_row >= head.rows) return;  // packed: a shorter sequence

  const int begin = span_of(p.shape, head, first_row).first / kKeys;
  const int end = gpu::ceil_div(span_of(p.shape, head, last_row).end, kKeys);
  const T *k = static_cast<const T*>(p.k) + key_offset(head, p.k_strides, 0),
          *v = static_cast<const T*>(p.v) + key_offset(head, p.v_strides, 0);
  if (begin < end) {
    copy_rows<T, kHead, kRows, kThreads>(q, static_cast<const T*>(p.q), first_row, head.rows, columns,
                                         [&](int row) { return row_offset(head, p.q_strides, row); });
    copy_rows<T, kHead, kRows, kThreads>(dout, static_cast<const T*>(p.dout), first_row, head.rows, columns,
                                         [&](int row) { return row_offset(head, p.dout_strides, row); });
  }
  auto load = [&](int tile, int buffer) {
    char* to = walked + 2 * buffer * Tiles::kWalkedBytes;
    copy_rows<T, kHead, kKeys, kThreads>(to, k, tile * kKeys, head.keys, columns,
                                         [&](int key) { return key * p.k_strides.row; });
    copy_rows<T, kHead, kKeys, kThreads>(to + Tiles::kWalkedBytes, v, tile * kKeys, head.keys, columns,
                                         [&](int key) { return key * p.v_strides.row; });
  };

  const Logits logits = logits_of(p.shape);
  const int warp_row = first_row + 16 * warp;
  const Span lowest = span_of(p.shape, head, smaller(warp_row, last_row)),
             highest = warp_row > last_row ? Span{0, 0} : span_of(p.shape, head, smaller(warp_row + 15, last_row));
  int row[2];
  float dlog[2] = {0, 0};
  Row of[2];
  GPU_UNROLL
  for (int h = 0; h < 2; ++h) {
    row[h] = smaller(warp_row + lane / 4 + 8 * h, last_row);
    of[h] = rows[head_index * head_rows + row[h]];
  }

  Scores<kHead> dq;
  auto use = [&](int tile, int buffer) {
    const int first_key = tile * kKeys;
    if (first_key >= highest.end || first_key + kKeys <= lowest.first) return;  // no row of the warp sees one
    char* k_tile = walked + 2 * buffer * Tiles::kWalkedBytes;
    Scores<kKeys> score, gradient;
    multiply_transposed<T, kHead, kKeys>(score, q, 16 * warp, k_tile, columns);
    multiply_transposed<T, kHead, kKeys>(gradient, dout, 16 * warp, k_tile + Tiles::kWalkedBytes, columns);
    soften(score, logits);
    if (first_key < highest.first || first_key + kKeys > lowest.end) {
      GPU_UNROLL
      for (int n = 0; n < kKeys / 8; ++n) GPU_UNROLL
      for (int i = 0; i < 4; ++i)
        if (!of[i / 2].span.has(first_key + 8 * n + 2 * (lane % 4) + i % 2)) score.value[n][i] = -INFINITY;
    }
    with_softcap(logits, [&](auto softcap) {
      GPU_UNROLL
      for (int n = 0; n < kKeys / 8; ++n) GPU_UNROLL
      for (int i = 0; i < 4; ++i)
        dlog[i / 2] += differentiate<kEntropy, decltype(softcap)::value>(score.value[n][i], gradient.value[n][i],
                                                                         of[i / 2], of[i / 2].factor);
    });
    multiply<T, kHead, kKeys>(dq, gradient, k_tile, exchange);
  };
  walk(begin, end, load, use);

  GPU_UNROLL
  for (int h = 0; h < 2; ++h) {
    dlog[h] = gpu::warp_reduce<4>(dlog[h], gpu::Sum());
    if (warp_row + lane / 4 + 8 * h > last_row) continue;
    store_row<T>(static_cast<T*>(p.dq) + row_offset(head, p.dq_strides, row[h]), dq, h,
                 static_cast<float>(p.shape.scale), columns);
    if (p.dtemperature != nullptr && lane % 4 == 0) {
      // Σ ds·s as Σ ds·log p + lse · Σ ds, since Σ ds is dlse: nothing of the size of lse² has to cancel.
      const int64_t place = row_offset(head, p.statistic_strides, row[h]);
      const float dlse = p.dlse == nullptr ? 0.0f : static_cast<const float*>(p.dlse)[place];
      const float lse = gpu::kLn2 * (of[h].anchor + of[h].log_sum);
      static_cast<float*>(p.dtemperature)[place] =
          of[h].anchor == INFINITY ? 0.0f : -(dlog[h] + lse * (dlse * of[h].inverse_temperature));
    }
  }
}

// Keys held, queries walked: dk and dv, or one of them where both are too many sums for a thread.
template <class T, int kHead, bool kEntropy, bool kDk, bool kDv>
__global__ void __launch_bounds__(Tiles<T, kHead, 2>::kThreads, kBlocks)
    entropy_attention_backward_keys_kernel(const EntropyAttentionBackward p, const Row* rows, const int64_t head_rows,
                                           const int key_blocks) {
  using Tiles = Tiles<T, kHead, 2>;
  constexpr int kRows = Tiles::kWalked, kKeys = Tiles::kRows, kThreads = Tiles::kThreads;
  GPU_DYNAMIC_SHARED(char, shared);
  char *const k = shared, *const v = k + Tiles::kHeldBytes, *const walked = v + Tiles::kHeldBytes,
              *const exchange = walked + 4 * Tiles::kWalkedBytes;
  Row* const walked_rows = reinterpret_cast<Row*>(exchange + Tiles::kExchangeBytes);  // [2, kRows]
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const int columns = static_cast<int>(p.shape.head_size);
  const int64_t head_index = blockIdx.x / key_blocks;
  const KeyHead head = key_head(p.shape, head_index);
  const int first_key = static_cast<int>(blockIdx.x % key_blocks) * kKeys;
  const int stored = p.shape.cu_seqlens != nullptr ? head.keys : static_cast<int>(p.shape.keys);
  if (first_key >= stored) return;  // packed: a shorter sequence

  // Rows first_seeing … end_seeing - 1 see one of these keys.
  int64_t first_seeing = 0, end_seeing = first_key < head.keys ? head.rows : 0;
  if (p.shape.causal) {
    first_seeing = bounded(int64_t{first_key - head.start} * head.group, 0, head.rows);
    const int last_key = smaller(first_key + kKeys, head.keys) - 1;
    if (0 < p.shape.window && p.shape.window <= p.shape.keys)
      end_seeing = bounded((last_key + p.shape.window - head.start) * head.group, 0, end_seeing);
  }
  const int begin = static_cast<int>(first_seeing) / kRows, end = gpu::ceil_div(static_cast<int>(end_seeing), kRows);
  if (begin < end) {
    const T *from_k = static_cast<const T*>(p.k) + key_offset(head, p.k_strides, 0),
            *from_v = static_cast<const T*>(p.v) + key_offset(head, p.v_strides, 0);
    copy_rows<T, kHead, kKeys, kThreads>(k, from_k, first_key, head.keys, columns,
                                         [&](int key) { return key * p.k_strides.row; });
    if constexpr (kDk)
      copy_rows<T, kHead, kKeys, kThreads>(v, from_v, first_key, head.keys, columns,
                                           [&](int key) { return key * p.v_strides.row; });
  }
  const Row* from_rows = rows + head_index * head_rows;
  auto load = [&](int tile, int buffer) {
    char* to = walked + 2 * buffer * Tiles::kWalkedBytes;
    copy_rows<T, kHead, kRows, kThreads>(to, static_cast<const T*>(p.q), tile * kRows, head.rows, columns,
                                         [&](int row) { return row_offset(head, p.q_strides, row); });
    copy_rows<T, kHead, kRows, kThreads>(to + Tiles::kWalkedBytes, static_cast<const T*>(p.dout), tile * kRows,
                                         head.rows, columns,
                                         [&](int row) { return row_offset(head, p.dout_strides, row); });
    for (int i = static_cast<int>(threadIdx.x); i < 2 * kRows; i += kThreads) {
      const bool valid = tile * kRows + i / 2 < head.rows;
      gpu::copy_async_16(reinterpret_cast<char*>(walked_rows + buffer * kRows) + 16 * i,
                         reinterpret_cast<const char*>(from_rows + (valid ? tile * kRows : 0)) + (valid ? 16 * i : 0),
                         valid);
    }
  };

  const Logits logits = logits_of(p.shape);
  const int warp_key = first_key + 16 * warp;
  Scores<kHead> dk, dv;
  auto use = [&](int tile, int buffer) {
    const Row* row = walked_rows + buffer * kRows;
    const int count = smaller(kRows, head.rows - tile * kRows);
    const Span lowest = row[0].span, highest = row[count - 1].span;
    if (warp_key >= highest.end || warp_key + 16 <= lowest.first) return;  // no row sees one of the warp's keys
    char *const q_tile = walked + 2 * buffer * Tiles::kWalkedBytes, *const dout_tile = q_tile + Tiles::kWalkedBytes;
    Scores<kRows> score, gradient;
    multiply_transposed<T, kHead, kRows>(score, k, 16 * warp, q_tile, columns);
    if constexpr (kDk) multiply_transposed<T, kHead, kRows>(gradient, v, 16 * warp, dout_tile, columns);
    soften(score, logits);
    if (warp_key < highest.first || warp_key + 16 > lowest.end || count < kRows) {
      GPU_UNROLL
      for (int n = 0; n < kRows / 8; ++n) GPU_UNROLL
      for (int i = 0; i < 4; ++i)
        if (!row[8 * n + 2 * (lane % 4) + i % 2].span.has(warp_key + lane / 4 + i / 2 * 8))
          score.value[n][i] = -INFINITY;
    }
    with_softcap(logits, [&](auto softcap) {
      GPU_UNROLL
      for (int n = 0; n < kRows / 8; ++n) GPU_UNROLL
      for (int i = 0; i < 2; ++i) {
        const Row& of = row[8 * n + 2 * (lane % 4) + i];
        const float factor = of.factor == 0 ? 1.0f : of.factor;  // 0 past the end, where -inf has to stay -inf
        GPU_UNROLL
        for (int h = 0; h < 2; ++h)
          differentiate<kEntropy, decltype(softcap)::value>(score.value[n][i + 2 * h], gradient.value[n][i + 2 * h], of,
                                                            factor);
      }
    });
    if constexpr (kDv) multiply<T, kHead, kRows>(dv, score, dout_tile, exchange);
    if constexpr (kDk) multiply<T, kHead, kRows>(dk, gradient, q_tile, exchange);
  };
  walk(begin, end, load, use);

  GPU_UNROLL
  for (int h = 0; h < 2; ++h) {
    const int key = warp_key + lane / 4 + 8 * h;
    if (key >= stored) continue;
    if constexpr (kDk)
      store_row<T>(static_cast<T*>(p.dk) + key_offset(head, p.dk_strides, key), dk, h,
                   static_cast<float>(p.shape.scale), columns);
    if constexpr (kDv) store_row<T>(static_cast<T*>(p.dv) + key_offset(head, p.dv_strides, key), dv, h, 1.0f, columns);
  }
}

// ---- launches --------------------------------------------------------------------------------------------------------

inline int64_t rows_of_key_head(const AttentionShape& s) { return s.kv_heads ? s.queries * (s.heads / s.kv_heads) : 0; }

void check(const char* name, const AttentionShape& s) {
  const std::string who = name;
  if (s.head_size < 8 || s.head_size > 256 || s.head_size % 8 != 0)
    throw std::invalid_argument(who + ": head size is " + std::to_string(s.head_size) +
                                "; wanted a multiple of 8 from 8 to 256");
  if (s.kv_heads < 0 || (s.kv_heads ? s.heads % s.kv_heads : s.heads) != 0)
    throw std::invalid_argument(who + ": " + std::to_string(s.heads) + " query heads for " +
                                std::to_string(s.kv_heads) + " key heads; wanted a multiple");
  // Rows, keys and their places are int in the kernels, the place of a query up to T + S.
  constexpr int64_t kMost = 1 << 29;
  if (rows_of_key_head(s) > kMost || s.keys > kMost)
    throw std::invalid_argument(who + ": " + std::to_string(rows_of_key_head(s)) + " queries a key head and " +
                                std::to_string(s.keys) + " keys; wanted at most 2^29 of each");
}

dim3 grid_of(int64_t blocks) {
  if (blocks > 2147483647)
    throw std::invalid_argument("entropy_attention: " + std::to_string(blocks) + " blocks; wanted fewer than 2^31");
  return dim3(static_cast<unsigned>(blocks));
}
dim3 grid_of_rows(int64_t rows) { return grid_of(gpu::ceil_div<int64_t>(rows, kRowThreads / 32)); }

template <class Function>
void for_type(const char* what, DType dtype, Function function) {
  gpu::dispatch<DType::kFloat, DType::kBFloat16, DType::kHalf>(what, dtype,
                                                               [&](auto type) { function(gpu::TypeOf<type()>()); });
}
// The smallest of the instantiated head sizes that holds D.
template <class Function>
void for_head_size(int64_t head_size, Function function) {
  gpu::dispatch<64, 128, 256>("entropy_attention: columns",
                              head_size <= 64    ? 64
                              : head_size <= 128 ? 128
                                                 : 256,
                              function);
}

// Into how many parts the keys are cut. Aimed at are 256 blocks, about two for each multiprocessor of a large GPU; a part has at
// least 256 keys, since fewer cost less than the joining; 64 parts are joined by one warp in little time.
int64_t parts_of(const AttentionShape& s) {
  constexpr int64_t kBlocks = 256, kLeastKeys = 256, kMost = 64, kRows = 64;
  const int64_t blocks = s.batch * s.kv_heads * gpu::ceil_div(rows_of_key_head(s), kRows);
  if (blocks == 0) return 1;
  return bounded(bounded(gpu::ceil_div(kBlocks, blocks), 1, s.keys / kLeastKeys), 1, kMost);
}
int64_t aligned(int64_t bytes) { return gpu::ceil_div<int64_t>(bytes, 16) * 16; }

}  // namespace attention

int64_t entropy_attention_workspace(const AttentionShape& shape, DType) {
  using namespace attention;
  const int64_t parts = parts_of(shape), rows = parts * shape.batch * shape.kv_heads * rows_of_key_head(shape);
  if (parts == 1) return 0;
  return aligned(rows * static_cast<int64_t>(sizeof(State))) +
         rows * shape.head_size * static_cast<int64_t>(sizeof(float));
}

int64_t entropy_attention_backward_workspace(const AttentionShape& shape, DType) {
  using namespace attention;
  return shape.batch * shape.kv_heads * rows_of_key_head(shape) * static_cast<int64_t>(sizeof(Row));
}

void entropy_attention_forward_cuda(const EntropyAttentionForward& p, void* stream) {
  using namespace attention;
  check("entropy_attention_forward", p.shape);
  const int64_t heads = p.shape.batch * p.shape.kv_heads, head_rows = rows_of_key_head(p.shape);
  Parts parts = {static_cast<int>(parts_of(p.shape)), head_rows, heads * head_rows, static_cast<State*>(p.workspace),
                 nullptr};
  parts.out = reinterpret_cast<float*>(static_cast<char*>(p.workspace) +
                                       aligned(parts.count * parts.rows * static_cast<int64_t>(sizeof(State))));
  for_type("entropy_attention_forward: dtype", p.dtype, [&](auto type) {
    using T = decltype(type);
    for_head_size(p.shape.head_size, [&](auto head_size) {
      using Tiles = Tiles<T, head_size(), 1>;
      const int64_t row_blocks = gpu::ceil_div<int64_t>(head_rows, Tiles::kRows);
      gpu::dispatch<false, true>("entropy_attention_forward: entropy", p.entropy != nullptr, [&](auto entropy) {
        gpu::launch(entropy_attention_forward_kernel<T, head_size(), entropy()>,
                    grid_of(heads * row_blocks * parts.count), dim3(Tiles::kThreads), Tiles::kBytes, stream, p, parts,
                    static_cast<int>(row_blocks));
      });
    });
    if (parts.count > 1)
      gpu::launch(entropy_attention_join_kernel<T>, grid_of_rows(parts.rows), dim3(kRowThreads), 0, stream, p, parts);
  });
}

void entropy_attention_backward_cuda(const EntropyAttentionBackward& p, void* stream) {
  using namespace attention;
  check("entropy_attention_backward", p.shape);
  const int64_t heads = p.shape.batch * p.shape.kv_heads, head_rows = rows_of_key_head(p.shape);
  Row* rows = static_cast<Row*>(p.workspace);
  for_type("entropy_attention_backward: dtype", p.dtype, [&](auto type) {
    using T = decltype(type);
    gpu::launch(entropy_attention_rows_kernel<T>, grid_of_rows(heads * head_rows), dim3(kRowThreads), 0, stream, p,
                rows, head_rows);
    for_head_size(p.shape.head_size, [&](auto head_size) {
      constexpr int kHead = head_size();
      using Tiles = Tiles<T, kHead, 2>;
      const int64_t key_blocks = gpu::ceil_div<int64_t>(p.shape.keys, Tiles::kRows),
                    row_blocks = gpu::ceil_div<int64_t>(head_rows, Tiles::kRows);
      const auto keys = [&](auto kernel) {
        gpu::launch(kernel, grid_of(heads * key_blocks), dim3(Tiles::kThreads), Tiles::kBytes, stream, p, rows,
                    head_rows, static_cast<int>(key_blocks));
      };
      gpu::dispatch<false, true>("entropy_attention_backward: entropy", p.dentropy != nullptr, [&](auto entropy) {
        if constexpr (kHead <= 128) {
          keys(entropy_attention_backward_keys_kernel<T, kHead, entropy(), true, true>);
        } else {
          keys(entropy_attention_backward_keys_kernel<T, kHead, entropy(), true, false>);
          keys(entropy_attention_backward_keys_kernel<T, kHead, false, false, true>);
        }
        gpu::launch(entropy_attention_backward_queries_kernel<T, kHead, entropy()>, grid_of(heads * row_blocks),
                    dim3(Tiles::kThreads), Tiles::kBytes, stream, p, rows, head_rows, static_cast<int>(row_blocks));
      });
    });
  });
}

}  // namespace isentrope::kernels
