// One list of rows for each key head: row r is query r / group of head r % group of the group = H / G heads that share it,
// so k and v are read once for all of them, and causal order is the order of rows.
//
// A block holds a tile of some rows in shared memory and walks over tiles of the other side, two of them in flight; a warp
// has 16 rows of the held tile. Its scores come in the layout of mma's result, and go back as mma's left factor without
// leaving registers. Three walks: forward (queries held, keys walked), dq (the same), dk and dv (keys held, queries walked).
// bfloat16 and half multiply on tensor cores, float by fused multiply-adds on the same layout.
#pragma once
#include "kernels/entropy_attention.h"
#include "kernels/gpu/async_copy.h"
#include "kernels/gpu/dispatch.h"
#include "kernels/gpu/launch.h"
#include "kernels/gpu/mma.h"
#include "kernels/gpu/reduce.h"
#include "kernels/gpu/vector.h"

namespace isentrope::kernels::attention {

// ---- rows and what they see ------------------------------------------------------------------------------------------

GPU_HOST_DEVICE int64_t bounded(int64_t x, int64_t low, int64_t high) { return x < low ? low : x < high ? x : high; }
GPU_HOST_DEVICE int smaller(int a, int b) { return b < a ? b : a; }
GPU_HOST_DEVICE int larger(int a, int b) { return a < b ? b : a; }

// One key head of one sequence.
struct KeyHead {
  int64_t sequence, batch, first_row;  // b; packed: batch 0, and the rows before the sequence
  int index, group;                    // which of G; query heads that share it
  int rows, keys, start;               // rows: queries · group; keys n_b; the place of the first query
};

// n of the B·G.
GPU_DEVICE KeyHead key_head(const AttentionShape& s, int64_t n) {
  const int64_t b = n / s.kv_heads;
  KeyHead x;
  x.sequence = b;
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
GPU_DEVICE int place_of(const AttentionShape& s, const KeyHead& x, int row) {
  const int query = row / x.group;
  if (s.places == nullptr) return x.start + query;
  return static_cast<int>(bounded(s.places[x.sequence * s.queries + query], -1, s.keys));
}
GPU_DEVICE Span span_of(const AttentionShape& s, const KeyHead& x, int row) {
  if (!s.causal) return {0, x.keys};
  const int place = place_of(s, x, row);
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

// ---- blocks, gates and slopes: in kernels with kOptions --------------------------------------------------------------

inline bool has_options(const AttentionShape& s, const AttentionBias& bias) {
  return s.block_mask != nullptr || bias.slopes != nullptr;
}
// ⌈n / b⌉ blocks.
GPU_HOST_DEVICE int64_t blocks_of(const AttentionShape& s, int64_t n) { return (n + s.block_size - 1) / s.block_size; }

// Column block 0 of a row in an array of blocks.
GPU_DEVICE int64_t block_offset(const AttentionShape& s, const KeyHead& x, const HeadStrides& strides, int row) {
  const int block = row / x.group / static_cast<int>(s.block_size);
  return x.sequence * strides.batch + (x.index * x.group + row % x.group) * strides.head + block * strides.row;
}
template <class Parameters>
GPU_DEVICE float gate_of(const Parameters& p, const KeyHead& x, int row, int key) {
  if (p.bias.gates == nullptr) return 1.0f;
  const int64_t place = block_offset(p.shape, x, p.bias.gate_strides, row) + key / static_cast<int>(p.shape.block_size);
  return static_cast<const float*>(p.bias.gates)[place];
}
// Whether the block of a row and a key is kept; a row or key that is not there is not.
template <class Parameters>
GPU_DEVICE bool keeps(const Parameters& p, const KeyHead& x, int row, int key) {
  const AttentionShape& s = p.shape;
  if (row >= x.rows || key >= x.keys) return false;
  if (s.block_mask == nullptr) return true;
  return s.block_mask[block_offset(s, x, s.block_strides, row) + key / static_cast<int>(s.block_size)] &&
         gate_of(p, x, row, key) != 0;
}
// Whether any block is kept that rows first_row … end_row - 1 and keys first_key … end_key - 1 meet in.
template <class Parameters>
GPU_DEVICE bool any_kept(const Parameters& p, const KeyHead& x, int first_row, int end_row, int first_key,
                         int end_key) {
  if (p.shape.block_mask == nullptr) return true;
  const int b = static_cast<int>(p.shape.block_size), first_block = first_row / x.group / b;
  for (int block = first_block; block * b * x.group < end_row; ++block)
    for (int head = 0; head < x.group; ++head)
      for (int key = first_key / b * b; key < end_key; key += b)
        if (keeps(p, x, block * b * x.group + head, key)) return true;
  return false;
}
// log2 of what the weight of a key is multiplied by: the gate, and 2 to the power of -slope · distance / τ.
template <class Parameters>
GPU_DEVICE float bias_of(const Parameters& p, const KeyHead& x, int row, int key, float inverse_temperature,
                         float log2_gate) {
  if (p.bias.slopes == nullptr) return log2_gate;
  const float slope = static_cast<const float*>(p.bias.slopes)[x.index * x.group + row % x.group];
  const int distance = place_of(p.shape, x, row) - key;
  return log2_gate -
         slope * inverse_temperature * gpu::kLog2e * static_cast<float>(distance < 0 ? -distance : distance);
}
GPU_DEVICE float sink_of(const AttentionBias& bias, const KeyHead& x, int row) {
  return static_cast<const float*>(bias.sinks)[x.index * x.group + row % x.group];
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

// For each walked tile that next gives from begin on, up to end: load(tile, buffer) starts its copies, one tile ahead of
// use(tile, buffer), which sees them and those that were started before the walk. One barrier a tile: it also says that all have
// left the other buffer. next(tile) is the first of tile … end - 1 that is wanted, or end.
template <class Next, class Load, class Use>
GPU_DEVICE void walk(int begin, int end, Next next, Load load, Use use) {
  bool loaded = false;
  for (int tile = next(begin), before = 0, buffer = 0;; before = tile, tile = next(tile + 1), buffer ^= 1) {
    if (loaded) {
      gpu::copy_async_wait<0>();
      __syncthreads();
    }
    if (tile < end) {
      load(tile, buffer);
      gpu::copy_async_commit();
    }
    if (loaded) use(before, buffer ^ 1);
    if (tile >= end) return;
    loaded = true;
  }
}
// The first of tile … end - 1 that wanted says, or end; a lane asks of one at a time.
template <class Wanted>
GPU_DEVICE int next_wanted(int tile, int end, Wanted wanted) {
  for (; tile < end; tile += 32) {
    const int mine = tile + static_cast<int>(threadIdx.x) % 32;
    const unsigned found = __ballot_sync(gpu::kAllLanes, mine < end && wanted(mine));
    if (found != 0) return tile + __ffs(static_cast<int>(found)) - 1;
  }
  return end;
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

// ---- launches --------------------------------------------------------------------------------------------------------

constexpr int kRowThreads = 128;  // of the kernels that give a warp to a row

inline int64_t rows_of_key_head(const AttentionShape& s) { return s.kv_heads ? s.queries * (s.heads / s.kv_heads) : 0; }

inline void check(const char* name, const AttentionShape& s) {
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

inline dim3 grid_of(int64_t blocks) {
  if (blocks > 2147483647)
    throw std::invalid_argument("entropy_attention: " + std::to_string(blocks) + " blocks; wanted fewer than 2^31");
  return dim3(static_cast<unsigned>(blocks));
}
inline dim3 grid_of_rows(int64_t rows) { return grid_of(gpu::ceil_div<int64_t>(rows, kRowThreads / 32)); }

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

}  // namespace isentrope::kernels::attention
