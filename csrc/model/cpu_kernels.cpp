#include "csrc/model/cpu_kernels.h"

#include <cmath>

#include "csrc/model/lanes.h"

namespace isentrope::model::CPU_CAPABILITY {
namespace {

template <class T>
constexpr int64_t kPanel = 2 * kLanes<T>;

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
void cached_attention(const CachedAttention<T>& a, T* scratch) {
  const int64_t D = a.D, stride = a.G * D * kKeyBlock, S = a.last + 1;
  const int64_t first_block = a.first / kKeyBlock, blocks = (S + kKeyBlock - 1) / kKeyBlock;
  const int64_t begin = first_block * kKeyBlock, end = blocks * kKeyBlock;
  for (int64_t head = 0; head < a.H; ++head) {
    const int64_t g = head / (a.H / a.G);
    const T *q = a.q + head * D, *k = a.keys + g * D * kKeyBlock, *v = a.values + g * D;
    int64_t block = first_block;
    for (; block + 4 <= blocks; block += 4)
      block_scores<T, 4>(D, q, k + block * stride, stride, scratch + block * kKeyBlock);
    for (; block + 2 <= blocks; block += 2)
      block_scores<T, 2>(D, q, k + block * stride, stride, scratch + block * kKeyBlock);
    for (; block < blocks; ++block)
      block_scores<T, 1>(D, q, k + block * stride, stride, scratch + block * kKeyBlock);
    T scale = a.scale;
    if (a.softcap > 0) {  // tanh(x) = 1 − 2 / (e^2x + 1)
      const T inner = 2 * a.scale / a.softcap;
#pragma omp simd
      for (int64_t s = begin; s < end; ++s)
        scratch[s] = a.softcap * (T(1) - T(2) / (exponential(scratch[s] * inner) + T(1)));
      scale = 1;
    }
    if (a.inverse_temperature != nullptr) scale *= a.inverse_temperature[head];
    // Positions that are out of sight weigh nothing; whole blocks need no remainder loop.
    for (int64_t s = begin; s < a.first; ++s) scratch[s] = -INFINITY;
    for (int64_t s = S; s < end; ++s) scratch[s] = -INFINITY;
    T top = -INFINITY, total = 0;
#pragma omp simd reduction(max : top)
    for (int64_t s = begin; s < end; ++s) top = scratch[s] > top ? scratch[s] : top;
#pragma omp simd reduction(+ : total)
    for (int64_t s = begin; s < end; ++s) {
      scratch[s] = exponential((scratch[s] - top) * scale);
      total += scratch[s];
    }
    constexpr int W = kLanes<T>;
    const T *weight = scratch + a.first, *seen = v + a.first * a.G * D;
    T* out = a.out + head * D;
    int64_t d = 0;
    for (; d + W <= D; d += W) weighted_sum<T, W>(S - a.first, weight, seen + d, a.G * D, out + d);
    for (; d < D; ++d) weighted_sum<T, 1>(S - a.first, weight, seen + d, a.G * D, out + d);
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
    .cached_attention = cached_attention<T>,
    .softmax = softmax<T>,
};

}  // namespace

const CpuKernels<float>& float_kernels() { return kTable<float>; }
const CpuKernels<double>& double_kernels() { return kTable<double>; }

}  // namespace isentrope::model::CPU_CAPABILITY
