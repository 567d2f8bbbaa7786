// What the kernels of linear_attention and gated_delta_rule share. A block of 256 threads makes a tile of 64 × 64 sums: thread
// (y, x) of 16 × 16 has rows y + 16 i and columns x + 16 j. Every product of a chunk is `multiply` with factors that are given as
// functions of row and depth, and of depth and column: from global memory, where rows or columns that do not exist give 0, or shared.
#pragma once
#include "kernels/gpu/dispatch.h"
#include "kernels/gpu/launch.h"
#include "kernels/gpu/reduce.h"
#include "kernels/recurrence.h"

namespace isentrope::kernels::recurrence {

// One block a multiprocessor is asked for, and loops are not unrolled: otherwise registers spill.
constexpr int kTile = 64, kDepth = 16, kThreads = 256, kBlocks = 1,
              kWidth = kTile + 1;  // a row of shared memory, without bank conflicts

struct Sums {
  float value[4][4];
  GPU_DEVICE void clear() {
    GPU_UNROLL
    for (int i = 0; i < 4; ++i) GPU_UNROLL
    for (int j = 0; j < 4; ++j) value[i][j] = 0.0f;
  }
  // function(row, column, sum&) of the thread's own.
  template <class Function>
  GPU_DEVICE void each(Function function) {
    const int y = static_cast<int>(threadIdx.x) / 16, x = static_cast<int>(threadIdx.x) % 16;
    GPU_UNROLL
    for (int i = 0; i < 4; ++i) GPU_UNROLL
    for (int j = 0; j < 4; ++j) function(y + 16 * i, x + 16 * j, value[i][j]);
  }
};

// Two factors of a step of `multiply`, [kDepth, kWidth] each.
constexpr int kFactors = 2 * kDepth * kWidth;

// sums += Σ_{k < depth} a(row, k) b(k, column). kDeepA, kDeepB: neighbours in memory are neighbours in k, not in rows or columns.
// factors [kFactors] in shared memory. All threads must call; what a and b read may have been written just before.
template <bool kDeepA, bool kDeepB, class A, class B>
GPU_DEVICE void multiply(Sums& sums, int depth, A a, B b, float* factors GPU_AT) {
  const int thread = static_cast<int>(threadIdx.x), y = thread / 16, x = thread % 16;
  float *left = factors, *right = factors + kDepth * kWidth;
  GPU_UNROLL_BY(1)
  for (int first = 0; first < depth; first += kDepth) {
    GPU_SYNC_THREADS_HERE();  // a and b are written, and the last factors read
    GPU_UNROLL_BY(1)
    for (int i = thread; i < kDepth * kTile; i += kThreads) {
      const int ak = kDeepA ? i % kDepth : i / kTile, row = kDeepA ? i / kDepth : i % kTile;
      left[ak * kWidth + row] = first + ak < depth ? a(row, first + ak) : 0.0f;
      const int bk = kDeepB ? i % kDepth : i / kTile, column = kDeepB ? i / kDepth : i % kTile;
      right[bk * kWidth + column] = first + bk < depth ? b(first + bk, column) : 0.0f;
    }
    GPU_SYNC_THREADS_HERE();
    GPU_UNROLL_BY(1)
    for (int k = 0; k < kDepth; ++k) {
      float l[4], r[4];
      GPU_UNROLL
      for (int i = 0; i < 4; ++i) {
        l[i] = left[k * kWidth + y + 16 * i];
        r[i] = right[k * kWidth + x + 16 * i];
      }
      GPU_UNROLL
      for (int i = 0; i < 4; ++i) GPU_UNROLL
      for (int j = 0; j < 4; ++j) sums.value[i][j] += l[i] * r[j];
    }
  }
}

// ---- chunks ---------------------------------------------------------------------------------------------------------

// One chunk of one key head.
struct Chunk {
  int64_t place;             // of the chunk's states: (chunk place) · G + g
  int64_t n, g;              // sequence and key head
  int64_t batch, first_row;  // the chunk's first step is row first_row of entry batch
  int valid, rows;           // steps that exist; and rows that belong to the chunk, of which those from valid on are 0
};

// Chunk place · G + g of all. rows is 0 where there is none.
GPU_DEVICE Chunk chunk_of(const RecurrenceShape& s, int64_t index) {
  const int64_t place = index / s.kv_heads;
  Chunk c;
  c.place = index;
  c.g = index % s.kv_heads;
  if (s.cu_seqlens == nullptr) {
    c.n = place / gpu::ceil_div(s.steps, s.chunk);
  } else {  // the last sequence that begins at the place or before it
    int64_t low = 0, high = s.sequences;
    while (high - low > 1) {
      const int64_t middle = (low + high) / 2;
      first_chunk(s, middle, recurrence_rows(s, middle)) <= place ? low = middle : high = middle;
    }
    c.n = low;
  }
  const RecurrenceRows rows = recurrence_rows(s, c.n);
  const int64_t first = (place - first_chunk(s, c.n, rows)) * s.chunk;
  c.batch = rows.batch;
  c.first_row = rows.first + first;
  const int64_t end = s.cu_seqlens == nullptr ? s.steps : rows.count;
  c.valid = static_cast<int>(bounded_row(rows.count - first, 0, s.chunk));
  c.rows = static_cast<int>(bounded_row(end - first, 0, s.chunk));
  return c;
}

// The element 0 of step `row` of a chunk, for a head of its own array.
GPU_DEVICE int64_t row_offset(const Chunk& c, const HeadStrides& x, int64_t head, int row) {
  return c.batch * x.batch + head * x.head + (c.first_row + row) * x.row;
}

// b_i · log2 e as a sum of two parts, of which differences keep their digits; in shared memory.
struct Decays {
  float high[kTile], low[kTile];
  GPU_DEVICE float between(int i, int j) const { return gpu::exp2_approx((high[i] - high[j]) + (low[i] - low[j])); }
  GPU_DEVICE float rise(int i) const { return gpu::exp2_approx(high[i] + low[i]); }
};

// All threads must call; what is written may be read after a barrier, as `multiply` begins with one.
GPU_DEVICE void read_decays(const Chunk& c, const void* log_decay, const HeadStrides& strides, Decays& decays GPU_AT) {
  const int i = static_cast<int>(threadIdx.x);
  if (i < kTile) {
    double b = 0;
    if (log_decay != nullptr)
      for (int t = 0; t <= i && t < c.valid; ++t) {
        const double g = static_cast<const float*>(log_decay)[row_offset(c, strides, c.g, t)];
        b += (g < kLowestLogDecay ? kLowestLogDecay : g) * 1.4426950408889634074;
      }
    decays.high[i] = static_cast<float>(b);
    decays.low[i] = static_cast<float>(b - static_cast<double>(decays.high[i]));
  }
  GPU_SYNC_THREADS_HERE();
}

// Rows of T as a function of (row, element): 0 where there is none.
template <class T>
struct RowsOf {
  const T* base;
  int64_t stride;
  int valid, size;
  GPU_DEVICE float operator()(int row, int element) const {
    return row < valid && element < size ? gpu::widen(base[row * stride + element]) : 0.0f;
  }
};
template <class T>
GPU_DEVICE RowsOf<T> rows_of(const Chunk& c, const void* x, const HeadStrides& strides, int64_t head, int64_t size) {
  return {static_cast<const T*>(x) + row_offset(c, strides, head, 0), strides.row, c.valid, static_cast<int>(size)};
}

// A state [D, E] as a function of (key element, value element).
struct StateOf {
  const float* base;
  int64_t D, E;
  GPU_DEVICE float operator()(int d, int e) const { return d < D && e < E ? base[d * E + e] : 0.0f; }
};

// Rows of the tile beginning at element `first`.
template <class Rows>
struct Shifted {
  Rows rows;
  int first;
  GPU_DEVICE float operator()(int row, int element) const { return rows(row, first + element); }
};
template <class Rows>
GPU_DEVICE Shifted<Rows> shifted(const Rows& rows, int64_t first) {
  return {rows, static_cast<int>(first)};
}

template <class T>
GPU_DEVICE void store_tile(const Chunk& c, Sums& sums, void* x, const HeadStrides& strides, int64_t head, int64_t first,
                           int64_t size) {
  T* base = static_cast<T*>(x) + row_offset(c, strides, head, 0) + first;
  sums.each([&](int row, int column, float& sum) {
    if (row < c.rows && first + column < size)
      base[row * strides.row + column] = gpu::narrow<T>(row < c.valid ? sum : 0.0f);
  });
}

// ---- squares --------------------------------------------------------------------------------------------------------

// square [kTile, kWidth] ← (A Bᵀ) ⊙ Γ, 0 above the diagonal. Read after a barrier.
template <class A, class B>
GPU_DEVICE void weighed_scores(const Decays& decays, int depth, const A& a, const B& b, float* square,
                               float* factors GPU_AT) {
  Sums sums;
  sums.clear();
  multiply<true, true>(
      sums, depth, a, [&](int k, int column) { return b(column, k); }, factors GPU_HERE);
  sums.each([&](int i, int j, float& sum) { square[i * kWidth + j] = j <= i ? sum * decays.between(i, j) : 0.0f; });
}

constexpr int64_t tiles_of(int64_t size) { return (size + kTile - 1) / kTile; }

}  // namespace isentrope::kernels::recurrence
