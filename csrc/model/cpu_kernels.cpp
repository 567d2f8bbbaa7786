#include "csrc/model/cpu_kernels.h"

#include <algorithm>
#include <array>
#include <cmath>

#include "csrc/model/page_table.h"
#include "csrc/ops/cpu_product.h"

namespace isentrope::model::CPU_CAPABILITY {
namespace {

using ops::CPU_CAPABILITY::kPanel;

// e^x. float: 2^n · p(r), x = n ln 2 + r, |r| ≤ ln 2 / 2, with the polynomial of Cephes' expf (Moshier):
// within one unit in the last place, and p(0) = 1. Below −87.3, where the result would be subnormal, 0.
inline float exponential(float x) {
  const float y = x < -87.3f ? -87.3f : (x > 88.3f ? 88.3f : x);
  constexpr float kRound = 12582912.0f;  // 1.5 · 2^23: adding it rounds to an integer
  const float n = (y * 1.44269504088896341f + kRound) - kRound;
  const float r = (y - n * 0.693359375f) + n * 2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + r + 1.0f;
  const int32_t bits = (static_cast<int32_t>(n) + 127) << 23;
  float power;
  __builtin_memcpy(&power, &bits, sizeof power);
  return x < -87.3f ? 0.0f : p * power;
}
inline double exponential(double x) { return __builtin_exp(x); }

template <class T>
void pack(int64_t K, int64_t N, const T* b, int64_t k_stride, int64_t n_stride, const T* k_scale, const T* n_scale,
          T* out) {
  constexpr int64_t P = kPanel<T>;
  for (int64_t first = 0; first < N; first += P, b += P * n_stride, out += K * P) {
    const int64_t columns = N - first < P ? N - first : P;
    if (columns == P && k_stride == 1 && n_stride >= K && k_scale == nullptr && n_scale == nullptr) {
      ops::CPU_CAPABILITY::pack_columns<T>(K, b, n_stride, out);
      continue;
    }
    T scale[P];
    for (int64_t n = 0; n < P; ++n) scale[n] = n_scale != nullptr && n < columns ? n_scale[first + n] : T(1);
    for (int64_t k = 0; k < K; ++k) {
      const T row = k_scale != nullptr ? k_scale[k] : T(1);
      if (n_stride == 1 && columns == P) {
        for (int64_t n = 0; n < P; ++n) out[k * P + n] = b[k * k_stride + n] * (scale[n] * row);
        continue;
      }
      for (int64_t n = 0; n < columns; ++n) out[k * P + n] = b[k * k_stride + n * n_stride] * (scale[n] * row);
      for (int64_t n = columns; n < P; ++n) out[k * P + n] = 0;
    }
  }
}

template <class T>
void packed_product(int64_t M, int64_t N, int64_t K, const T* a, int64_t lda, bool transposed, const T* packed, T* c,
                    int64_t ldc, bool add) {
  using namespace ops::CPU_CAPABILITY;
  const int64_t panel = K * kPanel<T>;
  if (transposed)
    add ? whole_product<true, true>(M, N, K, a, lda, packed, panel, c, ldc)
        : whole_product<true, false>(M, N, K, a, lda, packed, panel, c, ldc);
  else
    add ? whole_product<false, true>(M, N, K, a, lda, packed, panel, c, ldc)
        : whole_product<false, false>(M, N, K, a, lda, packed, panel, c, ldc);
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
void rms_norm_backward(int64_t rows, int64_t C, const T* sum, const T* weight, const T* inverse_rms, const T* dy,
                       const T* dsum, T* dx, T* dweight) {
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
void recurrence_step(int64_t F, int64_t E, T decay, T beta, const T* k, const T* v, int64_t queries, const T* q,
                     const T* from, T* to, T* u, T* out) {
  std::copy_n(v, E, u);
  if (beta > 0) {
    for (int64_t f = 0; f < F; ++f) {
      const T share = -decay * k[f];
      const T* s = from + f * E;
#pragma omp simd
      for (int64_t e = 0; e < E; ++e) u[e] += share * s[e];
    }
#pragma omp simd
    for (int64_t e = 0; e < E; ++e) u[e] *= beta;
  }
  std::fill_n(out, queries * E, T(0));
  for (int64_t f = 0; f < F; ++f) {
    const T *s = from + f * E, key = k[f];
    T* next = to + f * E;
#pragma omp simd
    for (int64_t e = 0; e < E; ++e) next[e] = decay * s[e] + key * u[e];
    for (int64_t i = 0; i < queries; ++i) {
      const T query = q[i * F + f];
      T* y = out + i * E;
#pragma omp simd
      for (int64_t e = 0; e < E; ++e) y[e] += query * next[e];
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
  constexpr int64_t kBytes = ops::CPU_CAPABILITY::kVectorBytes < 32 ? ops::CPU_CAPABILITY::kVectorBytes : 32;
  constexpr int64_t W = kBytes / sizeof(T);
  using V = typename ops::CPU_CAPABILITY::LanesOf<T, kBytes>::type;
  const auto load = [](const T* p) { return *reinterpret_cast<const V*>(p); };
  const int64_t half = D / 2;
  for (int64_t head = 0; head < heads; ++head, x += x_stride, y += y_stride) {
    int64_t i = 0;
    for (; i + W <= half; i += W) {
      const V low = load(x + i), high = load(x + half + i), c = load(cosine + i), s = load(sine + i) * direction;
      *reinterpret_cast<V*>(y + i) = low * c - high * s;
      *reinterpret_cast<V*>(y + half + i) = high * c + low * s;
    }
    for (; i < half; ++i) {
      const T low = x[i], high = x[half + i], s = sine[i] * direction;
      y[i] = low * cosine[i] - high * s;
      y[half + i] = high * cosine[i] + low * s;
    }
  }
}

// ---- attention of one query over pages ------------------------------------------------------------------------------

// Half a head is often shorter than the widest vector; a head's size is a multiple of 8.
constexpr int64_t kHeadBytes = ops::CPU_CAPABILITY::kVectorBytes < 32 ? ops::CPU_CAPABILITY::kVectorBytes : 32;
constexpr int64_t kHeadLanes = kHeadBytes / sizeof(float);
using HeadLanes = ops::CPU_CAPABILITY::LanesOf<float, kHeadBytes>::type;

inline HeadLanes load_head(const float* p) { return *reinterpret_cast<const HeadLanes*>(p); }
inline HeadLanes load_head(const uint16_t* p) {
  typedef uint16_t Short __attribute__((vector_size(kHeadBytes / 2), aligned(2), may_alias));
  typedef uint32_t Wide __attribute__((vector_size(kHeadBytes)));
  return reinterpret_cast<HeadLanes>(__builtin_convertvector(*reinterpret_cast<const Short*>(p), Wide) << 16);
}

// The products of both steps are chains of fused multiply-adds, each of which waits for the one before: a core needs about eight of
// them at a time, and has registers for twice as many, or four times with AVX-512.
constexpr int64_t kChains = ops::CPU_CAPABILITY::kVectorBytes == 64 ? 16 : 8;
constexpr int64_t kPageVectors = kPagePositions / kHeadLanes;

// scores [kHeads, kPages · kPagePositions] with row stride ld: scale · q k of the pages whose keys are given.
template <int kHeads, int64_t kPages, class Storage>
void page_scores(int64_t D, float scale, const float* q, const std::array<const Storage*, kPages>& keys, float* scores,
                 int64_t ld) {
  constexpr int64_t kVectors = kPages * kPageVectors;
  HeadLanes sum[kHeads][kVectors] = {};
  for (int64_t d = 0; d < D; ++d) {
    HeadLanes key[kVectors];
    for (int64_t n = 0; n < kVectors; ++n)
      key[n] = load_head(keys[n / kPageVectors] + d * kPagePositions + n % kPageVectors * kHeadLanes);
    for (int h = 0; h < kHeads; ++h)
      for (int64_t n = 0; n < kVectors; ++n) sum[h][n] += q[h * D + d] * key[n];
  }
  for (int h = 0; h < kHeads; ++h)
    for (int64_t n = 0; n < kVectors; ++n)
      *reinterpret_cast<HeadLanes*>(scores + h * ld + n * kHeadLanes) = scale * sum[h][n];
}

// out [kHeads, kVectors vectors of D] += weights of one page · its values.
template <int kHeads, int64_t kVectors, class Storage>
void value_vectors(int64_t D, int64_t begin, int64_t end, const float* weights, int64_t ld, const Storage* values,
                   float* out) {
  HeadLanes sum[kHeads][kVectors] = {};
  for (int64_t n = begin; n < end; ++n)
    for (int64_t v = 0; v < kVectors; ++v) {
      const HeadLanes value = load_head(values + n * D + v * kHeadLanes);
      for (int h = 0; h < kHeads; ++h) sum[h][v] += weights[h * ld + n] * value;
    }
  for (int h = 0; h < kHeads; ++h)
    for (int64_t v = 0; v < kVectors; ++v) *reinterpret_cast<HeadLanes*>(out + h * D + v * kHeadLanes) += sum[h][v];
}

template <int kHeads, class Storage>
void page_values(int64_t D, int64_t begin, int64_t end, const float* weights, int64_t ld, const Storage* values,
                 float* out) {
  constexpr int64_t kVectors = kChains / kHeads < 4 ? kChains / kHeads : 4, kStep = kVectors * kHeadLanes;
  int64_t d = 0;
  for (; d + kStep <= D; d += kStep) value_vectors<kHeads, kVectors>(D, begin, end, weights, ld, values + d, out + d);
  for (; d < D; d += kHeadLanes) value_vectors<kHeads, 1>(D, begin, end, weights, ld, values + d, out + d);
}

// Scores of the positions first … count − 1 become weights that add up to 1. lse: or null.
inline void weigh(int64_t first, int64_t count, float softcap, float temperature, float* scores, float* lse) {
  if (softcap > 0)
    for (int64_t i = first; i < count; ++i) scores[i] = softcap * std::tanh(scores[i] / softcap);
  const float inverse = 1 / temperature;
  float top = scores[first], sum = 0;
#pragma omp simd reduction(max : top)
  for (int64_t i = first; i < count; ++i) top = scores[i] > top ? scores[i] : top;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = first; i < count; ++i) sum += scores[i] = exponential((scores[i] - top) * inverse);
  if (lse) *lse = top * inverse + std::log(sum);
  const float share = 1 / sum;
#pragma omp simd
  for (int64_t i = first; i < count; ++i) scores[i] *= share;
}

// kHeads query heads that share key head g.
template <int kHeads, class Storage>
void attend(const PagedAttention<Storage>& p, int64_t g, int64_t h) {
  const int64_t D = p.head_size, plane = D * kPagePositions, from = p.first / kPagePositions, to = pages_of(p.count);
  const int64_t ld = to * kPagePositions;
  float *scores = p.scores + h * ld, *out = p.out + h * D;
  const auto keys = [&](int64_t i) { return p.memory + p.pages[i] * p.page_stride + g * plane; };
  int64_t page = from;
  if constexpr (2 * kPageVectors * kHeads <= kChains)
    for (; page + 2 <= to; page += 2)
      page_scores<kHeads, 2, Storage>(D, p.scale, p.q + h * D, {keys(page), keys(page + 1)},
                                      scores + page * kPagePositions, ld);
  for (; page < to; ++page)
    page_scores<kHeads, 1, Storage>(D, p.scale, p.q + h * D, {keys(page)}, scores + page * kPagePositions, ld);
  for (int r = 0; r < kHeads; ++r)
    weigh(p.first, p.count, p.softcap, p.temperature ? p.temperature[(h + r) * p.temperature_stride] : 1.0f,
          scores + r * ld, p.lse ? p.lse + h + r : nullptr);
  for (int64_t d = 0; d < kHeads * D; ++d) out[d] = 0;
  for (int64_t i = from; i < to; ++i) {
    const int64_t begin = i == from ? p.first % kPagePositions : 0;
    const int64_t end = p.count - i * kPagePositions < kPagePositions ? p.count - i * kPagePositions : kPagePositions;
    page_values<kHeads>(D, begin, end, scores + i * kPagePositions, ld,
                        p.memory + p.pages[i] * p.page_stride + (p.kv_heads + g) * plane, out);
  }
}

template <class Storage>
void attention(const PagedAttention<Storage>& p) {
  const int64_t group = p.heads / p.kv_heads;
  for (int64_t g = 0; g < p.kv_heads; ++g) {
    int64_t h = g * group;
    const int64_t end = h + group;
    for (; h + 4 <= end; h += 4) attend<4>(p, g, h);
    for (; h + 3 <= end; h += 3) attend<3>(p, g, h);
    for (; h + 2 <= end; h += 2) attend<2>(p, g, h);
    for (; h < end; ++h) attend<1>(p, g, h);
  }
}

template <class Storage>
void decode_product(int64_t M, int64_t N, int64_t K, const float* a, int64_t lda, const Storage* packed, float* c,
                    int64_t ldc, bool add) {
  const int64_t panel = K * kPanel<float>;
  add ? ops::CPU_CAPABILITY::whole_product<false, true>(M, N, K, a, lda, packed, panel, c, ldc)
      : ops::CPU_CAPABILITY::whole_product<false, false>(M, N, K, a, lda, packed, panel, c, ldc);
}

// ---- softmax ------------------------------------------------------------------------------------------------------

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
    .name = ops::CPU_CAPABILITY::kVectorBytes == 64   ? "AVX-512"
            : ops::CPU_CAPABILITY::kVectorBytes == 32 ? "AVX2"
                                                      : "baseline",
    .panel = kPanel<T>,
    .pack = pack<T>,
    .packed_product = packed_product<T>,
    .rms_norm = rms_norm<T>,
    .rms_norm_backward = rms_norm_backward<T>,
    .swiglu = swiglu<T>,
    .swiglu_backward = swiglu_backward<T>,
    .rotate = rotate<T>,
    .recurrence_step = recurrence_step<T>,
    .softmax = softmax<T>,
};

template <class Storage>
constexpr DecodeKernels<Storage> kDecodeTable = {.attention = attention<Storage>,
                                                 .packed_product = decode_product<Storage>};

}  // namespace

const CpuKernels<float>& float_kernels() { return kTable<float>; }
const CpuKernels<double>& double_kernels() { return kTable<double>; }
const DecodeKernels<float>& float_decode_kernels() { return kDecodeTable<float>; }
const DecodeKernels<uint16_t>& bfloat16_decode_kernels() { return kDecodeTable<uint16_t>; }

}  // namespace isentrope::model::CPU_CAPABILITY
