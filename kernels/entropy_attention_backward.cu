// The backward pass of entropy_attention (kernels/entropy_attention.cuh).
#include "kernels/entropy_attention.cuh"

namespace isentrope::kernels {
namespace attention {

// Grid: a warp a row. rows [head_rows · B·G]; gate_rows [head_rows · B·G, ⌈S/b⌉] with dgates.
template <class T>
__global__ void __launch_bounds__(kRowThreads)
    entropy_attention_rows_kernel(const EntropyAttentionBackward p, Row* rows, float* gate_rows,
                                  const int64_t head_rows) {
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
  if (p.dgates != nullptr) {
    const int64_t columns = blocks_of(p.shape, p.shape.keys);
    for (int64_t c = lane; c < columns; c += 32) gate_rows[n * columns + c] = 0;
  }
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
  float dsink = 0;
  if (x.anchor == -INFINITY) {
    x.anchor = INFINITY;  // every p becomes 0
  } else {
    x.dentropy = at(p.dentropy) * x.inverse_temperature;
    if (p.dentropy != nullptr) delta += at(p.dentropy) * at(p.entropy);
    delta -= at(p.dlse);
    x.delta = delta * x.inverse_temperature;
    if (p.dsinks != nullptr) {
      const float log2_p = (sink_of(p.bias, head, row) * gpu::kLog2e - x.anchor) - x.log_sum;
      dsink = gpu::exp2_approx(log2_p) * (-delta - at(p.dentropy) * bounded_log(log2_p * gpu::kLn2));
    }
  }
  if (p.dsinks != nullptr) static_cast<float*>(p.dsinks)[place] = dsink;
  rows[n] = x;
}

// In: q·k (or its tanh) and dout·v. Out: p and the gradient of scale · q·k. Returned: the gradient of the logit / τ, and log p.
struct Term {
  float ds, log_p;
};
template <bool kEntropy, bool kSoftcap, bool kOptions>
GPU_DEVICE Term differentiate(float& score, float& gradient, const Row& row, float factor, float bias) {
  // The product is rounded by itself, as in the forward pass: the anchor is one of them.
  float logit = gpu::multiply_rounded(score, factor);
  if constexpr (kOptions) logit += bias;
  const float log2_p = (logit - row.anchor) - row.log_sum;
  const float p = gpu::exp2_approx(log2_p), log_p = bounded_log(log2_p * gpu::kLn2);
  float ds = ::fmaf(gradient, row.inverse_temperature, -row.delta);
  if constexpr (kEntropy) ds = ::fmaf(-row.dentropy, log_p, ds);
  ds *= p;
  // At an unseen key score² is infinite.
  gradient = kSoftcap ? ds * gpu::maximum(1.0f - score * score, 0.0f) : ds;
  score = p;
  return {ds, log_p};
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
template <class T, int kHead, bool kEntropy, bool kOptions>
__global__ void __launch_bounds__(Tiles<T, kHead, 2>::kThreads, kBlocks)
    entropy_attention_backward_queries_kernel(const EntropyAttentionBackward p, const Row* rows, float* gate_rows,
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

  int begin = span_of(p.shape, head, first_row).first / kKeys;
  const int end = gpu::ceil_div(span_of(p.shape, head, last_row).end, kKeys);
  const T *k = static_cast<const T*>(p.k) + key_offset(head, p.k_strides, 0),
          *v = static_cast<const T*>(p.v) + key_offset(head, p.v_strides, 0);
  const auto next = [&](int tile) {
    if constexpr (!kOptions) return tile;
    return next_wanted(tile, end,
                       [&](int x) { return any_kept(p, head, first_row, last_row + 1, x * kKeys, (x + 1) * kKeys); });
  };
  begin = next(begin);
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
    if constexpr (kOptions) {
      const int end_key = first_key + kKeys;
      const bool mine = any_kept(p, head, row[0], row[0] + 1, first_key, end_key) ||
                        any_kept(p, head, row[1], row[1] + 1, first_key, end_key);
      if (!__any_sync(gpu::kAllLanes, mine)) return;
    }
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
      for (int h = 0; h < 2; ++h) {
        const int key = first_key + 8 * n;  // eight keys are of one block
        float log2_gate = 0, sum = 0;
        if constexpr (kOptions) {
          if (keeps(p, head, row[h], key)) {
            log2_gate = ::log2f(gate_of(p, head, row[h], key));
          } else {
            score.value[n][2 * h] = score.value[n][2 * h + 1] = -INFINITY;
          }
        }
        GPU_UNROLL
        for (int i = 2 * h; i < 2 * h + 2; ++i) {
          float bias = 0;
          if constexpr (kOptions)
            bias = bias_of(p, head, row[h], key + 2 * (lane % 4) + i % 2, of[h].inverse_temperature, log2_gate);
          const Term term = differentiate<kEntropy, decltype(softcap)::value, kOptions>(
              score.value[n][i], gradient.value[n][i], of[h], of[h].factor, bias);
          dlog[h] += term.ds * (kOptions ? term.log_p - log2_gate * gpu::kLn2 : term.log_p);
          if constexpr (kOptions) sum += term.ds;
        }
        if constexpr (kOptions) {
          if (p.dgates != nullptr) {
            sum = gpu::warp_reduce<4>(sum, gpu::Sum());
            if (lane % 4 == 0 && warp_row + lane / 4 + 8 * h <= last_row && key < head.keys)
              gate_rows[(head_index * head_rows + row[h]) * blocks_of(p.shape, p.shape.keys) +
                        key / static_cast<int>(p.shape.block_size)] += sum / of[h].inverse_temperature;
          }
        }
      }
    });
    multiply<T, kHead, kKeys>(dq, gradient, k_tile, exchange);
  };
  walk(begin, end, next, load, use);

  GPU_UNROLL
  for (int h = 0; h < 2; ++h) {
    dlog[h] = gpu::warp_reduce<4>(dlog[h], gpu::Sum());
    if (warp_row + lane / 4 + 8 * h > last_row) continue;
    store_row<T>(static_cast<T*>(p.dq) + row_offset(head, p.dq_strides, row[h]), dq, h,
                 static_cast<float>(p.shape.scale), columns);
    if (p.dtemperature != nullptr && lane % 4 == 0) {
      // Σ ds·s as Σ ds·log p + lse · Σ ds, since Σ ds is dlse, the sink's among them: nothing of the size of lse² has to cancel.
      const int64_t place = row_offset(head, p.statistic_strides, row[h]);
      float dlse = p.dlse == nullptr ? 0.0f : static_cast<const float*>(p.dlse)[place];
      if (p.dsinks != nullptr) dlse -= static_cast<const float*>(p.dsinks)[place];
      const float lse = gpu::kLn2 * (of[h].anchor + of[h].log_sum);
      static_cast<float*>(p.dtemperature)[place] =
          of[h].anchor == INFINITY ? 0.0f : -(dlog[h] + lse * (dlse * of[h].inverse_temperature));
    }
  }
}

// Keys held, queries walked: dk and dv, or one of them where both are too many sums for a thread.
template <class T, int kHead, bool kEntropy, bool kDk, bool kDv, bool kOptions>
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
  if (p.shape.causal && p.shape.places == nullptr) {
    first_seeing = bounded(int64_t{first_key - head.start} * head.group, 0, head.rows);
    const int last_key = smaller(first_key + kKeys, head.keys) - 1;
    if (0 < p.shape.window && p.shape.window <= p.shape.keys)
      end_seeing = bounded((last_key + p.shape.window - head.start) * head.group, 0, end_seeing);
  }
  int begin = static_cast<int>(first_seeing) / kRows;
  const int end = gpu::ceil_div(static_cast<int>(end_seeing), kRows);
  const auto next = [&](int tile) {
    if constexpr (!kOptions) return tile;
    return next_wanted(tile, end, [&](int x) {
      return any_kept(p, head, x * kRows, smaller((x + 1) * kRows, head.rows), first_key,
                      smaller(first_key + kKeys, head.keys));
    });
  };
  begin = next(begin);
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
    if constexpr (kOptions) {
      // 16 keys are of one block.
      if (!any_kept(p, head, tile * kRows, tile * kRows + count, warp_key, smaller(warp_key + 16, head.keys))) return;
    }
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
        const int walked_row = tile * kRows + 8 * n + 2 * (lane % 4) + i;
        bool kept = true;
        float log2_gate = 0;
        if constexpr (kOptions) {
          kept = keeps(p, head, walked_row, warp_key);
          if (kept) log2_gate = ::log2f(gate_of(p, head, walked_row, warp_key));
        }
        GPU_UNROLL
        for (int h = 0; h < 2; ++h) {
          float bias = 0;
          if constexpr (kOptions) {
            if (!kept) score.value[n][i + 2 * h] = -INFINITY;
            if (kept)
              bias = bias_of(p, head, walked_row, warp_key + lane / 4 + 8 * h, of.inverse_temperature, log2_gate);
          }
          differentiate<kEntropy, decltype(softcap)::value, kOptions>(score.value[n][i + 2 * h],
                                                                      gradient.value[n][i + 2 * h], of, factor, bias);
        }
      }
    });
    if constexpr (kDv) multiply<T, kHead, kRows>(dv, score, dout_tile, exchange);
    if constexpr (kDk) multiply<T, kHead, kRows>(dk, gradient, q_tile, exchange);
  };
  walk(begin, end, next, load, use);

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

// Grid: a thread an element of dgates, which sums what its rows gave, in their order.
__global__ void __launch_bounds__(kRowThreads)
    entropy_attention_dgates_kernel(const EntropyAttentionBackward p, const float* gate_rows, const int64_t head_rows,
                                    const int64_t elements) {
  const int64_t n = int64_t{blockIdx.x} * kRowThreads + threadIdx.x;
  if (n >= elements) return;
  const int64_t columns = blocks_of(p.shape, p.shape.keys), row_blocks = blocks_of(p.shape, p.shape.queries);
  const int64_t column = n % columns, block = n / columns % row_blocks, h = n / columns / row_blocks % p.shape.heads;
  const int64_t group = p.shape.heads / p.shape.kv_heads;
  const int64_t head_index = n / columns / row_blocks / p.shape.heads * p.shape.kv_heads + h / group;
  const KeyHead head = key_head(p.shape, head_index);
  const int64_t first = (block * p.shape.block_size) * group + h % group,
                end = bounded((block + 1) * p.shape.block_size * group, 0, head.rows);
  float sum = 0;
  for (int64_t row = first; row < end; row += group)
    sum += gate_rows[(head_index * head_rows + row) * columns + column];
  const int key = static_cast<int>(column * p.shape.block_size);
  const float gate = first < end ? gate_of(p, head, static_cast<int>(first), key) : 0.0f;
  static_cast<float*>(p.dgates)[n] = gate == 0 ? 0.0f : sum / gate;
}

}  // namespace attention

int64_t entropy_attention_backward_workspace(const AttentionShape& shape, DType) {
  using namespace attention;
  const int64_t columns = shape.of_gates ? blocks_of(shape, shape.keys) : 0;
  return shape.batch * shape.kv_heads * rows_of_key_head(shape) *
         static_cast<int64_t>(sizeof(Row) + columns * sizeof(float));
}

void entropy_attention_backward_cuda(const EntropyAttentionBackward& p, void* stream) {
  using namespace attention;
  check("entropy_attention_backward", p.shape);
  const int64_t heads = p.shape.batch * p.shape.kv_heads, head_rows = rows_of_key_head(p.shape);
  Row* rows = static_cast<Row*>(p.workspace);
  float* gate_rows = reinterpret_cast<float*>(rows + heads * head_rows);
  for_type("entropy_attention_backward: dtype", p.dtype, [&](auto type) {
    using T = decltype(type);
    gpu::launch(entropy_attention_rows_kernel<T>, grid_of_rows(heads * head_rows), dim3(kRowThreads), 0, stream, p,
                rows, gate_rows, head_rows);
    for_head_size(p.shape.head_size, [&](auto head_size) {
      constexpr int kHead = head_size();
      using Tiles = Tiles<T, kHead, 2>;
      const int64_t key_blocks = gpu::ceil_div<int64_t>(p.shape.keys, Tiles::kRows),
                    row_blocks = gpu::ceil_div<int64_t>(head_rows, Tiles::kRows);
      const auto keys = [&](auto kernel) {
        gpu::launch(kernel, grid_of(heads * key_blocks), dim3(Tiles::kThreads), Tiles::kBytes, stream, p, rows,
                    head_rows, static_cast<int>(key_blocks));
      };
      const bool some = has_options(p.shape, p.bias);
      gpu::dispatch<false, true>("entropy_attention_backward: entropy", p.dentropy != nullptr, [&](auto entropy) {
        gpu::dispatch<false, true>("entropy_attention_backward: options", some, [&](auto options) {
          constexpr bool kEntropy =
              entropy() || options();  // with options one instance for both: without it dentropy is 0
          if constexpr (kHead <= 128) {
            keys(entropy_attention_backward_keys_kernel<T, kHead, kEntropy, true, true, options()>);
          } else {
            keys(entropy_attention_backward_keys_kernel<T, kHead, kEntropy, true, false, options()>);
            keys(entropy_attention_backward_keys_kernel<T, kHead, false, false, true, options()>);
          }
          gpu::launch(entropy_attention_backward_queries_kernel<T, kHead, kEntropy, options()>,
                      grid_of(heads * row_blocks), dim3(Tiles::kThreads), Tiles::kBytes, stream, p, rows, gate_rows,
                      head_rows, static_cast<int>(row_blocks));
        });
      });
    });
  });
  if (p.dgates == nullptr) return;
  const int64_t elements =
      p.shape.batch * p.shape.heads * blocks_of(p.shape, p.shape.queries) * blocks_of(p.shape, p.shape.keys);
  gpu::launch(entropy_attention_dgates_kernel, grid_of(gpu::ceil_div<int64_t>(elements, kRowThreads)),
              dim3(kRowThreads), 0, stream, p, static_cast<const float*>(gate_rows), head_rows, elements);
}

}  // namespace isentrope::kernels
