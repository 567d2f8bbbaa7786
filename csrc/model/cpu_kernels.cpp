#include "csrc/model/cpu_kernels.h"

#include <cmath>

#include "csrc/model/lanes.h"

namespace isentrope::model::CPU_CAPABILITY {
namespace {

template <class T>
constexpr int64_t kPanel = 2 * kLanes<T>;

int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

template <class T>
void pack(int64_t K, int64_t N, const T* b, int64_t k_stride, int64_t n_stride, T* out) {
  constexpr int64_t P = kPanel<T>;
  for (int64_t first = 0; first < N; first += P, b += P * n_stride, out += K * P) {
    const int64_t columns = N - first < P ? N - first : P;
    if (n_stride == 1 && columns == P) {
      for (int64_t k = 0; k < K; ++k)
        for (int64_t n = 0; n < P; ++n) out[k * P + n] = b[k * k_stride + n];
      continue;
    }
    for (int64_t k = 0; k < K; ++k) {
      for (int64_t n = 0; n < columns; ++n) out[k * P + n] = b[k * k_stride + n * n_stride];
      for (int64_t n = columns; n < P; ++n) out[k * P + n] = 0;
    }
  }
}

template <class T>
void packed_product(int64_t M, int64_t N, int64_t K, const T* a, int64_t a_row, int64_t a_col,
                    const T* packed, T* c, int64_t ldc, bool add) {
  constexpr int64_t P = kPanel<T>;
  int64_t n = 0;
  for (; n + P <= N; n += P, packed += K * P)
    strip<T, kLanes<T>, 2>(M, K, a, a_row, a_col, packed, P, c + n, ldc, add);
  if (n == N) return;
  // The last panel's columns beyond N are computed and left.
  T block[kTile * P];
  for (int64_t m = 0; m < M; m += kTile) {
    const int64_t rows = M - m < kTile ? M - m : kTile;
    strip<T, kLanes<T>, 2>(rows, K, a + m * a_row, a_row, a_col, packed, P, block, P, false);
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t i = 0; i < N - n; ++i) {
        T& to = c[(m + r) * ldc + n + i];
        to = add ? to + block[r * P + i] : block[r * P + i];
      }
  }
}

// ---- norm, gate, rotation -----------------------------------------------------------------------------------------

template <class T>
void rms_norm(int64_t rows, int64_t C, double eps, const T* x, const T* delta, const T* weight, T* sum, T* y,
              T* inverse_rms) {
  for (int64_t row = 0; row < rows; ++row) {
    const T* s = x + row * C;
    T squares = 0;
    if (delta != nullptr) {
      const T* d = delta + row * C;
      T* to = sum + row * C;
#pragma omp simd reduction(+ : squares)
      for (int64_t c = 0; c < C; ++c) {
        const T value = s[c] + d[c];
        to[c] = value;
        squares += value * value;
      }
      s = to;
    } else {
#pragma omp simd reduction(+ : squares)
      for (int64_t c = 0; c < C; ++c) squares += s[c] * s[c];
    }
    const T inverse = T(1) / std::sqrt(squares / static_cast<T>(C) + static_cast<T>(eps));
    T* to = y + row * C;
#pragma omp simd
    for (int64_t c = 0; c < C; ++c) to[c] = s[c] * inverse * weight[c];
    if (inverse_rms != nullptr) inverse_rms[row] = inverse;
  }
}

template <class T>
void rms_norm_backward(int64_t rows, int64_t C, const T* sum, const T* weight, const T* inverse_rms,
                       const T* dy, const T* dsum, T* dx, T* dweight) {
  for (int64_t row = 0; row < rows; ++row) {
    const T *s = sum + row * C, *d = dy + row * C;
    const T inverse = inverse_rms[row];
    T dot = 0;
#pragma omp simd reduction(+ : dot)
    for (int64_t c = 0; c < C; ++c) {
      dot += d[c] * weight[c] * s[c];
      dweight[c] += d[c] * s[c] * inverse;
    }
    const T shift = dot * inverse * inverse / static_cast<T>(C);
    T* to = dx + row * C;
    if (dsum != nullptr) {
      const T* through = dsum + row * C;
#pragma omp simd
      for (int64_t c = 0; c < C; ++c) to[c] = through[c] + inverse * (d[c] * weight[c] - s[c] * shift);
    } else {
#pragma omp simd
      for (int64_t c = 0; c < C; ++c) to[c] = inverse * (d[c] * weight[c] - s[c] * shift);
    }
  }
}

template <class T>
void swiglu(int64_t rows, int64_t M, const T* gate_up, T* y) {
  for (int64_t row = 0; row < rows; ++row) {
    const T *gate = gate_up + row * 2 * M, *up = gate + M;
    T* to = y + row * M;
#pragma omp simd
    for (int64_t i = 0; i < M; ++i) to[i] = gate[i] / (T(1) + exponential(-gate[i])) * up[i];
  }
}

template <class T>
void swiglu_backward(int64_t rows, int64_t M, const T* gate_up, const T* dy, T* dgate_up) {
  for (int64_t row = 0; row < rows; ++row) {
    const T *gate = gate_up + row * 2 * M, *up = gate + M, *d = dy + row * M;
    T *dgate = dgate_up + row * 2 * M, *dup = dgate + M;
#pragma omp simd
    for (int64_t i = 0; i < M; ++i) {
      const T sigmoid = T(1) / (T(1) + exponential(-gate[i]));
      const T silu = gate[i] * sigmoid;
      dup[i] = d[i] * silu;
      dgate[i] = d[i] * up[i] * (sigmoid + silu * (T(1) - sigmoid));
    }
  }
}

template <class T>
void rotate(int64_t heads, int64_t D, const T* x, int64_t x_stride, T* y, int64_t y_stride, const T* cosine,
            const T* sine, T direction) {
  // Half a head is often shorter than the widest vector.
  constexpr int64_t W = kLanes<T> < 32 / sizeof(T) ? kLanes<T> : 32 / sizeof(T);
  using L = Lanes<T, W>;
  const int64_t half = D / 2;
  for (int64_t head = 0; head < heads; ++head, x += x_stride, y += y_stride) {
    int64_t i = 0;
    for (; i + W <= half; i += W) {
      const auto low = L::load(x + i), high = L::load(x + half + i);
      const auto c = L::load(cosine + i), s = L::load(sine + i) * direction;
      L::store(y + i, low * c - high * s);
      L::store(y + half + i, high * c + low * s);
    }
    for (; i < half; ++i) {
      const T low = x[i], high = x[half + i], s = sine[i] * direction;
      y[i] = low * cosine[i] - high * s;
      y[half + i] = high * cosine[i] + low * s;
    }
  }
}

// ---- attention over whole sequences -------------------------------------------------------------------------------

// out [D, ld] = x [T, D] transposed, columns T … ld − 1 zero.
template <class T>
void transpose(int64_t length, int64_t D, const T* x, int64_t ldx, T* out, int64_t ld) {
  for (int64_t d = 0; d < D; ++d) {
    for (int64_t t = 0; t < length; ++t) out[d * ld + t] = x[t * ldx + d];
    for (int64_t t = length; t < ld; ++t) out[d * ld + t] = 0;
  }
}

static_assert(kQueryBlock % kTile == 0, "dk and dv sum over whole tiles of queries before they are stored");

template <class T>
void attention(const AttentionHead<T>& h, T* scratch) {
  const int64_t D = h.head_size, ld = round_up(h.length, kLanes<T>);
  T *keys = scratch, *scores = scratch + D * ld;  // [D, ld], [kTile, ld]
  transpose(h.length, D, h.k.data, h.k.ld, keys, ld);
  for (int64_t t0 = 0; t0 < h.length; t0 += kTile) {
    const int64_t rows = h.length - t0 < kTile ? h.length - t0 : kTile, seen = t0 + rows;
    product<T>(rows, round_up(seen, kLanes<T>), D, h.q.data + t0 * h.q.ld, h.q.ld, 1, keys, ld, scores, ld,
               false);
    T inverse[kTile];
    for (int64_t r = 0; r < rows; ++r) {
      T *s = scores + r * ld, top = s[0], total = 0;
      const int64_t visible = t0 + r + 1;
#pragma omp simd reduction(max : top)
      for (int64_t i = 0; i < visible; ++i) top = s[i] > top ? s[i] : top;
#pragma omp simd reduction(+ : total)
      for (int64_t i = 0; i < visible; ++i) {
        s[i] = exponential((s[i] - top) * h.scale);
        total += s[i];
      }
      for (int64_t i = visible; i < seen; ++i) s[i] = 0;
      h.lse[t0 + r] = top * h.scale + std::log(total);
      inverse[r] = T(1) / total;
    }
    T* out = h.out.data + t0 * h.out.ld;
    product<T>(rows, D, seen, scores, ld, 1, h.v.data, h.v.ld, out, h.out.ld, false);
    for (int64_t r = 0; r < rows; ++r)
#pragma omp simd
      for (int64_t d = 0; d < D; ++d) out[r * h.out.ld + d] *= inverse[r];
  }
}

// p = e^(scale q·k − lse), ds = scale · p (dp − Σ dout · out), for rows t0 … t0 + rows − 1 of p, ds [·, ld],
// which come in as q·k and dp.
template <class T>
void score_gradient(const AttentionHead<T>& h, int64_t t0, int64_t rows, int64_t seen, T* p, T* ds,
                    int64_t ld) {
  for (int64_t r = 0; r < rows; ++r, p += ld, ds += ld) {
    const int64_t t = t0 + r, visible = t + 1;
    const T *o = h.out.data + t * h.out.ld, *d_out = h.dout.data + t * h.dout.ld, lse = h.lse[t];
    T dot = 0;
#pragma omp simd reduction(+ : dot)
    for (int64_t d = 0; d < h.head_size; ++d) dot += o[d] * d_out[d];
#pragma omp simd
    for (int64_t i = 0; i < visible; ++i) {
      p[i] = exponential(p[i] * h.scale - lse);
      ds[i] = p[i] * (ds[i] - dot) * h.scale;
    }
    for (int64_t i = visible; i < seen; ++i) p[i] = ds[i] = 0;
  }
}

template <class T>
void attention_backward(const AttentionHead<T>& h, T* scratch) {
  const int64_t D = h.head_size, ld = round_up(h.length, kLanes<T>);
  T *keys = scratch, *values = keys + D * ld, *p = values + D * ld, *ds = p + kQueryBlock * ld;
  transpose(h.length, D, h.k.data, h.k.ld, keys, ld);
  transpose(h.length, D, h.v.data, h.v.ld, values, ld);
  for (int64_t t0 = 0; t0 < h.length; t0 += kQueryBlock) {
    const int64_t end = h.length - t0 < kQueryBlock ? h.length : t0 + kQueryBlock;
    for (int64_t t = t0; t < end; t += kTile) {
      const int64_t rows = end - t < kTile ? end - t : kTile, seen = t + rows,
                    columns = round_up(seen, kLanes<T>);
      T *p_rows = p + (t - t0) * ld, *ds_rows = ds + (t - t0) * ld;
      product<T>(rows, columns, D, h.q.data + t * h.q.ld, h.q.ld, 1, keys, ld, p_rows, ld, false);
      product<T>(rows, columns, D, h.dout.data + t * h.dout.ld, h.dout.ld, 1, values, ld, ds_rows, ld, false);
      score_gradient(h, t, rows, seen, p_rows, ds_rows, ld);
      product<T>(rows, D, seen, ds_rows, ld, 1, h.k.data, h.k.ld, h.dq.data + t * h.dq.ld, h.dq.ld, false);
    }
    // dk += dsᵀ q, dv += pᵀ dout: keys s … s + kTile − 1 are seen by queries s and later.
    for (int64_t s = 0; s < end; s += kTile) {
      const int64_t rows = end - s < kTile ? end - s : kTile, from = s > t0 ? s : t0,
                    at = (from - t0) * ld + s;
      product<T>(rows, D, end - from, ds + at, 1, ld, h.q.data + from * h.q.ld, h.q.ld,
                 h.dk.data + s * h.dk.ld, h.dk.ld, true);
      product<T>(rows, D, end - from, p + at, 1, ld, h.dout.data + from * h.dout.ld, h.dout.ld,
                 h.dv.data + s * h.dv.ld, h.dv.ld, true);
    }
  }
}

// ---- attention over a cache ---------------------------------------------------------------------------------------

// scores [kBlocks · 16] = q [D] · keys, kBlocks blocks that lie block_stride apart.
template <class T, int kBlocks>
inline void block_scores(int64_t D, const T* q, const T* keys, int64_t block_stride, T* scores) {
  using L = Lanes<T, kLanes<T>>;
  constexpr int kParts = kKeyBlock / kLanes<T>;
  typename L::type sum[kBlocks][kParts] = {};
  for (int64_t d = 0; d < D; ++d)
#pragma GCC unroll 4
    for (int b = 0; b < kBlocks; ++b)
#pragma GCC unroll 8
      for (int i = 0; i < kParts; ++i)
        sum[b][i] += q[d] * L::load(keys + b * block_stride + d * kKeyBlock + i * kLanes<T>);
#pragma GCC unroll 4
  for (int b = 0; b < kBlocks; ++b)
#pragma GCC unroll 8
    for (int i = 0; i < kParts; ++i) L::store(scores + b * kKeyBlock + i * kLanes<T>, sum[b][i]);
}

// out [kCount] = Σ_s weight_s · values[s · stride], as four sums over s mod 4, which run side by side.
template <class T, int kCount>
inline void weighted_sum(int64_t S, const T* weight, const T* values, int64_t stride, T* out) {
  using L = Lanes<T, kCount>;
  typename L::type sum[4] = {};
  int64_t s = 0;
  for (; s + 4 <= S; s += 4)
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) sum[i] += weight[s + i] * L::load(values + (s + i) * stride);
  for (; s < S; ++s) sum[0] += weight[s] * L::load(values + s * stride);
  L::store(out, (sum[0] + sum[1]) + (sum[2] + sum[3]));
}

template <class T>
void cached_attention(int64_t S, int64_t H, int64_t G, int64_t D, T scale, const T* q, const T* keys,
                      const T* values, T* out, T* scratch) {
  const int64_t blocks = (S + kKeyBlock - 1) / kKeyBlock, stride = G * D * kKeyBlock;
  for (int64_t head = 0; head < H; ++head, q += D, out += D) {
    const int64_t g = head / (H / G);
    const T *k = keys + g * D * kKeyBlock, *v = values + g * D;
    int64_t block = 0;
    for (; block + 4 <= blocks; block += 4)
      block_scores<T, 4>(D, q, k + block * stride, stride, scratch + block * kKeyBlock);
    for (; block + 2 <= blocks; block += 2)
      block_scores<T, 2>(D, q, k + block * stride, stride, scratch + block * kKeyBlock);
    for (; block < blocks; ++block)
      block_scores<T, 1>(D, q, k + block * stride, stride, scratch + block * kKeyBlock);
    // Positions that are not there yet weigh nothing; whole blocks need no remainder loop.
    for (int64_t s = S; s < blocks * kKeyBlock; ++s) scratch[s] = -INFINITY;
    T top = scratch[0], total = 0;
#pragma omp simd reduction(max : top)
    for (int64_t s = 0; s < blocks * kKeyBlock; ++s) top = scratch[s] > top ? scratch[s] : top;
#pragma omp simd reduction(+ : total)
    for (int64_t s = 0; s < blocks * kKeyBlock; ++s) {
      scratch[s] = exponential((scratch[s] - top) * scale);
      total += scratch[s];
    }
    constexpr int W = kLanes<T>;
    int64_t d = 0;
    for (; d + W <= D; d += W) weighted_sum<T, W>(S, scratch, v + d, G * D, out + d);
    for (; d < D; ++d) weighted_sum<T, 1>(S, scratch, v + d, G * D, out + d);
    const T inverse = T(1) / total;
#pragma omp simd
    for (int64_t i = 0; i < D; ++i) out[i] *= inverse;
  }
}

template <class T>
void softmax(int64_t V, T scale, const T* logits, T* weight, T* maximum, T* total, T* entropy) {
  T top = logits[0], sum = 0, moment = 0;
#pragma omp simd reduction(max : top)
  for (int64_t n = 0; n < V; ++n) top = logits[n] > top ? logits[n] : top;
#pragma omp simd reduction(+ : sum, moment)
  for (int64_t n = 0; n < V; ++n) {
    const T y = (logits[n] - top) * scale, w = exponential(y);
    weight[n] = w;
    sum += w;
    moment += w > 0 ? w * y : T(0);  // a logit of −inf weighs nothing
  }
  *maximum = top * scale;
  *total = sum;
  *entropy = std::log(sum) - moment / sum;
}

template <class T>
constexpr CpuKernels<T> kTable = {
    .name = kVectorBytes == 64   ? "AVX-512"
            : kVectorBytes == 32 ? "AVX2"
                                 : "baseline",
    .panel = kPanel<T>,
    .pack = pack<T>,
    .packed_product = packed_product<T>,
    .rms_norm = rms_norm<T>,
    .rms_norm_backward = rms_norm_backward<T>,
    .swiglu = swiglu<T>,
    .swiglu_backward = swiglu_backward<T>,
    .rotate = rotate<T>,
    .attention = attention<T>,
    .attention_backward = attention_backward<T>,
    .cached_attention = cached_attention<T>,
    .softmax = softmax<T>,
};

}  // namespace

const CpuKernels<float>& float_kernels() { return kTable<float>; }
const CpuKernels<double>& double_kernels() { return kTable<double>; }

}  // namespace isentrope::model::CPU_CAPABILITY
