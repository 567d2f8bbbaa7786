// The decoder's inner loops on the CPU, for float and double, shared by training and by decoding. They know
// pointers and sizes only; threads and memory are their callers'. cpu_kernels.cpp is compiled once per
// instruction set and cpu_kernels<T>() returns the widest that the processor has.
//
// N rows, C width, M inner width of the MLP, D head size. A row's result does not depend, bit for bit, on the rows it is
// computed with.
#pragma once
#include <cstdint>

namespace isentrope::model {

// One query of H heads of size D against the positions first … count − 1 of a sequence, whose keys and values lie in pages
// (csrc/model/page_table.h): of one page and layer keys [G, D, kPagePositions], then values [G, kPagePositions, D], in float or, as
// its upper 16 bits, bfloat16. The mathematics is that of kernels/entropy_attention.h.
template <class Storage>
struct PagedAttention {
  int64_t heads, kv_heads, head_size, first, count;
  float scale, softcap;      // softcap 0: none
  const float* temperature;  // of head h at [h · temperature_stride], or null: 1
  int64_t temperature_stride;
  const int32_t* pages;   // [⌈count / kPagePositions⌉]
  const Storage* memory;  // of the layer; page i lies at memory + i · page_stride
  int64_t page_stride;
  const float* q;  // [H, D]
  float* out;      // [H, D]
  float* lse;      // [H], or null
  float* scores;   // [H, count rounded up to whole pages], unused before and after
};

template <class T>
struct CpuKernels {
  const char* name;  // instruction set
  int64_t panel;     // columns of a packed panel, P

  // out [⌈N/P⌉, K, P]: b [K, N] in panels of P columns, the last one filled up with zeros. Element (k, n) of
  // b lies at b[k · k_stride + n · n_stride], and is multiplied by k_scale[k] and n_scale[n]; null for 1.
  void (*pack)(int64_t K, int64_t N, const T* b, int64_t k_stride, int64_t n_stride, const T* k_scale, const T* n_scale,
               T* out);
  // c [M, N] (+)= a [M, K] · b. Element (m, k) of a lies at a[m · lda + k], or a[k · lda + m] if transposed.
  void (*packed_product)(int64_t M, int64_t N, int64_t K, const T* a, int64_t lda, bool transposed, const T* packed,
                         T* c, int64_t ldc, bool add);

  // sum = x + delta (x itself where delta is null, and then sum may be null), y = weight · sum / rms(sum),
  // rms(s) = sqrt(mean(s²) + eps); inverse_rms [rows] may be null. x, delta, sum, y [rows, C].
  void (*rms_norm)(int64_t rows, int64_t C, double eps, const T* x, const T* delta, const T* weight, T* sum, T* y,
                   T* inverse_rms);
  // dx = dsum + gradient through the norm; dsum may be null. dweight [C] is added to.
  void (*rms_norm_backward)(int64_t rows, int64_t C, const T* sum, const T* weight, const T* inverse_rms, const T* dy,
                            const T* dsum, T* dx, T* dweight);

  // y [rows, M] = silu(gate) · up, gate_up [rows, 2M] = gate | up.
  void (*swiglu)(int64_t rows, int64_t M, const T* gate_up, T* y);
  void (*swiglu_backward)(int64_t rows, int64_t M, const T* gate_up, const T* dy, T* dgate_up);

  // y = x rotated by the angles of one position (direction 1) or back (−1), for heads of D elements, x_stride
  // and y_stride apart: pairs (i, i + D/2), cosine and sine [D/2]. y may be x.
  void (*rotate)(int64_t heads, int64_t D, const T* x, int64_t x_stride, T* y, int64_t y_stride, const T* cosine,
                 const T* sine, T direction);

  // One step of a recurrent mixer's head (csrc/model/mixers/recurrence.h), state [F, E]: to = decay · from + k uᵀ with u = v, or
  // beta · (v − decay · fromᵀ k) where beta is above 0; out_i = toᵀ q_i for each query. k [F], v [E], q [queries, F], out
  // [queries, E]; u [E] is overwritten; to may be from.
  void (*recurrence_step)(int64_t F, int64_t E, T decay, T beta, const T* k, const T* v, int64_t queries, const T* q,
                          const T* from, T* to, T* u, T* out);

  // With y = scale · logits and m its maximum: weight_n = e^(y_n − m), total = Σ weight, and the entropy of
  // weight / total.
  void (*softmax)(int64_t V, T scale, const T* logits, T* weight, T* maximum, T* total, T* entropy);
};

// What decoding has beside them: float, with matrices and cache in float or bfloat16.
template <class Storage>
struct DecodeKernels {
  void (*attention)(const PagedAttention<Storage>& p);
  // c [M, N] (+)= a [M, K] · b, packed as CpuKernels::pack does.
  void (*packed_product)(int64_t M, int64_t N, int64_t K, const float* a, int64_t lda, const Storage* packed, float* c,
                         int64_t ldc, bool add);
};

// Elements of b [K, N] in panels.
inline int64_t packed_size(int64_t K, int64_t N, int64_t panel) { return (N + panel - 1) / panel * panel * K; }

template <class T>
const CpuKernels<T>& cpu_kernels();
template <>
const CpuKernels<float>& cpu_kernels();
template <>
const CpuKernels<double>& cpu_kernels();
// float, or uint16_t for bfloat16
template <class Storage>
const DecodeKernels<Storage>& decode_kernels();
template <>
const DecodeKernels<float>& decode_kernels();
template <>
const DecodeKernels<uint16_t>& decode_kernels();

}  // namespace isentrope::model
