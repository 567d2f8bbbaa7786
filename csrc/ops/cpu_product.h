// Products of blocks that lie in cache, for the CPU backends, compiled for the instruction set of the file that includes
// it. Real is float or double; B is of that type or, for float, bfloat16.
//
//   C [M, N] = or += A [M, K] · B [K, N]
//
// A and C are row-major with leading dimensions lda, ldc; A may be given transposed. B lies in panels of kPanel columns:
// panel i holds columns i·kPanel … , row k of it kPanel elements in a row, filled up with zeros. Up to kTile rows of C and
// one panel's columns are held in registers while k runs; every element is one chain of multiply-adds in the order of k, so
// its bits do not depend on the rows and columns around it.
#pragma once
#include <cstdint>

#include "csrc/ops/cpu_vector.h"

namespace isentrope::ops::CPU_CAPABILITY {

// Two vectors a row: 12 · 2 of 32 registers hold sums in AVX-512, 6 · 2 of 16 in AVX2, 4 · 2 of 16 (or more) elsewhere,
// where a multiply-add also needs a register for the product.
#if defined(__AVX512F__)
inline constexpr int64_t kVectorBytes = 64, kTile = 12;
#elif defined(__AVX2__)
inline constexpr int64_t kVectorBytes = 32, kTile = 6;
#else
inline constexpr int64_t kVectorBytes = 16, kTile = 4;
#endif

template <class Real>
inline constexpr int64_t kLanes = kVectorBytes / sizeof(Real);
template <class Real>
inline constexpr int64_t kPanel = 2 * kLanes<Real>;

template <class Real, int64_t kBytes>
struct LanesOf {
  typedef Real type __attribute__((vector_size(kBytes), aligned(alignof(Real)), may_alias));
};
template <class Real>
using Lanes = typename LanesOf<Real, kVectorBytes>::type;

// B may be kept in bfloat16, as the upper 16 bits of floats.
template <class Real>
Lanes<Real> load_lanes(const Real* p) {
  return *reinterpret_cast<const Lanes<Real>*>(p);
}
template <class Real>
Lanes<Real> load_lanes(const uint16_t* p) {
  static_assert(sizeof(Real) == 4);
  typedef uint16_t Short __attribute__((vector_size(kVectorBytes / 2), aligned(2), may_alias));
  typedef uint32_t Wide __attribute__((vector_size(kVectorBytes)));
  return reinterpret_cast<Lanes<Real>>(__builtin_convertvector(*reinterpret_cast<const Short*>(p), Wide) << 16);
}

inline int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

// from ≤ i < to
struct Span {
  int64_t from = 0, to = 0;
  bool empty() const { return from >= to; }
};
inline Span overlap(Span a, Span b) { return {a.from > b.from ? a.from : b.from, a.to < b.to ? a.to : b.to}; }

// Element (m, k) of A lies at a[m·lda + k], or a[k·lda + m] if transposed.
template <class Real, int kRows, int kVectors, bool kTransposed, bool kAdd, class Packed>
void tile(int64_t K, const Real* a, int64_t lda, const Packed* b, Real* c, int64_t ldc) {
  using V = Lanes<Real>;
  V sum[kRows][kVectors] = {};
  for (int64_t k = 0; k < K; ++k, b += kPanel<Real>) {
    V row[kVectors];
#pragma GCC unroll 2
    for (int n = 0; n < kVectors; ++n) row[n] = load_lanes<Real>(b + n * kLanes<Real>);
#pragma GCC unroll 16
    for (int m = 0; m < kRows; ++m)
#pragma GCC unroll 2
      for (int n = 0; n < kVectors; ++n) sum[m][n] += (kTransposed ? a[k * lda + m] : a[m * lda + k]) * row[n];
  }
#pragma GCC unroll 16
  for (int m = 0; m < kRows; ++m)
#pragma GCC unroll 2
    for (int n = 0; n < kVectors; ++n) {
      V& to = reinterpret_cast<V*>(c + m * ldc)[n];
      to = kAdd ? to + sum[m][n] : sum[m][n];
    }
}

template <class Real, int kVectors, bool kTransposed, bool kAdd, int kRows = kTile, class Packed>
void tile_of(int64_t rows, int64_t K, const Real* a, int64_t lda, const Packed* b, Real* c, int64_t ldc) {
  if (rows == kRows)
    tile<Real, kRows, kVectors, kTransposed, kAdd>(K, a, lda, b, c, ldc);
  else if constexpr (kRows > 1)
    tile_of<Real, kVectors, kTransposed, kAdd, kRows - 1>(rows, K, a, lda, b, c, ldc);
}

// By tiles of `height` ≤ kTile rows. span_of(m, n) is the span of k that the tile of rows m … and columns n … sums over; where
// it is empty C stays as it is. panel: elements from one panel of B to the next. N counts whole vectors of columns.
template <bool kTransposed, bool kAdd, class Real, class Packed, class SpanOf>
void product(int64_t M, int64_t N, int64_t height, const Real* a, int64_t lda, const Packed* b, int64_t panel, Real* c,
             int64_t ldc, const SpanOf& span_of) {
  for (int64_t n = 0; n < N; n += kPanel<Real>, b += panel)
    for (int64_t m = 0; m < M; m += height) {
      const Span k = span_of(m, n);
      if (k.empty()) continue;
      const int64_t rows = M - m < height ? M - m : height;
      const Real* from = a + (kTransposed ? k.from * lda + m : m * lda + k.from);
      const Packed* panel_rows = b + k.from * kPanel<Real>;
      Real* to = c + m * ldc + n;
      if (N - n >= kPanel<Real>)
        tile_of<Real, 2, kTransposed, kAdd>(rows, k.to - k.from, from, lda, panel_rows, to, ldc);
      else
        tile_of<Real, 1, kTransposed, kAdd>(rows, k.to - k.from, from, lda, panel_rows, to, ldc);
    }
}

// The same over all of K, N any number of columns: those of the last panel beyond N are computed and left.
template <bool kTransposed, bool kAdd, class Real, class Packed>
void whole_product(int64_t M, int64_t N, int64_t K, const Real* a, int64_t lda, const Packed* b, int64_t panel, Real* c,
                   int64_t ldc) {
  constexpr int64_t P = kPanel<Real>;
  const auto all = [K](int64_t, int64_t) { return Span{0, K}; };
  const int64_t whole = N / P * P;
  product<kTransposed, kAdd>(M, whole, kTile, a, lda, b, panel, c, ldc, all);
  if (N == whole) return;
  Real block[kTile * P];
  for (int64_t m = 0; m < M; m += kTile) {
    const int64_t rows = M - m < kTile ? M - m : kTile;
    product<kTransposed, false>(rows, P, kTile, a + (kTransposed ? m : m * lda), lda, b + whole / P * panel, 0, block,
                                P, all);
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t i = 0; i < N - whole; ++i) {
        Real& to = c[(m + r) * ldc + whole + i];
        to = kAdd ? to + block[r * P + i] : block[r * P + i];
      }
  }
}

// ---- packing --------------------------------------------------------------------------------------------------------

// to [⌈N/kPanel⌉, length, kPanel] = x [K, ldx] in panels; x has its N columns filled up to whole panels. Returns whether all
// of x is finite.
template <class Real>
bool pack_rows(int64_t K, int64_t N, const Real* x, int64_t ldx, Real* to, int64_t length) {
  using V = Lanes<Real>;
  V zero = {};
  for (int64_t n = 0; n < N; n += kPanel<Real>, to += length * kPanel<Real>)
    for (int64_t k = 0; k < K; ++k) {
      const V* from = reinterpret_cast<const V*>(x + k * ldx + n);
      V* row = reinterpret_cast<V*>(to + k * kPanel<Real>);
      row[0] = from[0];
      row[1] = from[1];
      zero += from[0] * 0 + from[1] * 0;  // NaN where an element is not finite
    }
  for (int64_t i = 0; i < kLanes<Real>; ++i)
    if (zero[i] != 0) return false;
  return true;
}

// to [K, kPanel] = the transpose of x [kPanel, ldx]: one panel of B = Xᵀ.
template <class Real>
void pack_columns(int64_t K, const Real* x, int64_t ldx, Real* to) {
  int64_t k = 0;
  if constexpr (sizeof(Real) == 4) {
    typedef Real Four __attribute__((vector_size(16), aligned(4), may_alias));
    typedef int32_t Places __attribute__((vector_size(16)));
    for (; k + 4 <= K; k += 4)
      for (int64_t n = 0; n < kPanel<Real>; n += 4) {
        auto row = [&](int64_t i) { return *reinterpret_cast<const Four*>(x + (n + i) * ldx + k); };
        auto put = [&](int64_t i, Four y) { *reinterpret_cast<Four*>(to + (k + i) * kPanel<Real> + n) = y; };
        const Four low01 = __builtin_shuffle(row(0), row(1), Places{0, 4, 1, 5}),
                   low23 = __builtin_shuffle(row(2), row(3), Places{0, 4, 1, 5}),
                   high01 = __builtin_shuffle(row(0), row(1), Places{2, 6, 3, 7}),
                   high23 = __builtin_shuffle(row(2), row(3), Places{2, 6, 3, 7});
        put(0, __builtin_shuffle(low01, low23, Places{0, 1, 4, 5}));
        put(1, __builtin_shuffle(low01, low23, Places{2, 3, 6, 7}));
        put(2, __builtin_shuffle(high01, high23, Places{0, 1, 4, 5}));
        put(3, __builtin_shuffle(high01, high23, Places{2, 3, 6, 7}));
      }
  }
  for (; k < K; ++k)
    for (int64_t n = 0; n < kPanel<Real>; ++n) to[k * kPanel<Real> + n] = x[n * ldx + k];
}

}  // namespace isentrope::ops::CPU_CAPABILITY
