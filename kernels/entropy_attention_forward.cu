// The forward pass of entropy_attention (kernels/entropy_attention.cuh).
#include "kernels/entropy_attention.cuh"

namespace isentrope::kernels {
namespace attention {

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

template <class T, int kHead, bool kEntropy, bool kOptions>
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
  const auto next = [&](int tile) {
    if constexpr (!kOptions) return tile;
    return next_wanted(tile, end,
                       [&](int x) { return any_kept(p, head, first_row, last_row + 1, x * kKeys, (x + 1) * kKeys); });
  };
  begin = next(begin);
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
  float factor[2], inverse_temperature[2];
  Span span[2];
  GPU_UNROLL
  for (int h = 0; h < 2; ++h) {
    row[h] = smaller(warp_row + lane / 4 + 8 * h, last_row);
    span[h] = span_of(p.shape, head, row[h]);
    inverse_temperature[h] = inverse_temperature_of(p.temperature, p.temperature_strides, head, row[h]);
    factor[h] = factor_of(logits, inverse_temperature[h]);
  }

  Scores<kHead> out;
  State state[2];
  if (p.bias.sinks != nullptr && part == 0) {  // a column met before all keys
    GPU_UNROLL
    for (int h = 0; h < 2; ++h) {
      state[h].maximum = sink_of(p.bias, head, row[h]) * gpu::kLog2e;
      state[h].sum = lane % 4 == 0 && state[h].maximum != -INFINITY ? 1.0f : 0.0f;
    }
  }
  auto use = [&](int tile, int buffer) {
    const int first_key = tile * kKeys;
    if (first_key >= highest.end || first_key + kKeys <= lowest.first) return;  // no row of the warp sees one
    if constexpr (kOptions) {
      const int end_key = first_key + kKeys;
      const bool mine = any_kept(p, head, row[0], row[0] + 1, first_key, end_key) ||
                        any_kept(p, head, row[1], row[1] + 1, first_key, end_key);
      if (!__any_sync(gpu::kAllLanes, mine)) return;
    }
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
      for (int n = 0; n < kKeys / 8; ++n) {
        const int key = first_key + 8 * n;  // eight keys are of one block
        bool kept = true;
        float log2_gate = 0;
        if constexpr (kOptions) {
          kept = keeps(p, head, row[h], key);
          if (kept) log2_gate = ::log2f(gate_of(p, head, row[h], key));
        }
        GPU_UNROLL
        for (int i = 2 * h; i < 2 * h + 2; ++i) {
          // Rounded by itself: the largest logit minus the maximum has to be 0.
          score.value[n][i] = gpu::multiply_rounded(score.value[n][i], c);
          if constexpr (kOptions)
            score.value[n][i] = !kept ? -INFINITY
                                      : score.value[n][i] + bias_of(p, head, row[h], key + 2 * (lane % 4) + i % 2,
                                                                    inverse_temperature[h], log2_gate);
          maximum = gpu::maximum(maximum, score.value[n][i]);
        }
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
  walk(begin, end, next, load, use);

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
      const bool some = has_options(p.shape, p.bias);
      gpu::dispatch<false, true>("entropy_attention_forward: entropy", p.entropy != nullptr, [&](auto entropy) {
        gpu::dispatch<false, true>("entropy_attention_forward: options", some, [&](auto options) {
          gpu::launch(entropy_attention_forward_kernel<T, head_size(), entropy(), options()>,
                      grid_of(heads * row_blocks * parts.count), dim3(Tiles::kThreads), Tiles::kBytes, stream, p, parts,
                      static_cast<int>(row_blocks));
        });
      });
    });
    if (parts.count > 1)
      gpu::launch(entropy_attention_join_kernel<T>, grid_of_rows(parts.rows), dim3(kRowThreads), 0, stream, p, parts);
  });
}

}  // namespace isentrope::kernels
